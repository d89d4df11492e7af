"""The curl lines that the demo prints, each with the status that it shows."""

from typing import NamedTuple

ROLE = "user"
SCOPES = ("users.read", "orders.read")


class Example(NamedTuple):
    """A line to paste. statuses: what the gateway answers, in the order of first appearance."""

    title: str
    line: str
    statuses: tuple[int, ...]


def examples(base: str, reader: str, stranger: str, hurried: str) -> list[Example]:
    """Make the lines for a gateway at `base` ("http://127.0.0.1:8080").

    reader: a token with the role and scopes that the routes ask for. stranger: one without. hurried: as reader, of
    another subject, so that using up its quota leaves the reader's alone.
    """
    users, orders = f"{base}/api/v1/users", f"{base}/api/v1/orders"
    return [
        Example("admitted", f"curl -i {users}/7 -H 'Authorization: Bearer {reader}'", (200,)),
        Example("401, no token", f"curl -i {users}/7", (401,)),
        Example("403, a token without the scope", f"curl -i {users}/7 -H 'Authorization: Bearer {stranger}'", (403,)),
        Example("404, no such route", f"curl -i {base}/api/v1/usersX -H 'Authorization: Bearer {reader}'", (404,)),
        Example(
            "413, a body of 2 MB",
            f"head -c 2000000 /dev/zero | curl -i {orders} -H 'Authorization: Bearer {reader}' --data-binary @-",
            (413,),
        ),
        Example(
            "429, more than 100 requests a minute",
            f"for i in $(seq 1 105); do curl -s -o /dev/null -w '%{{http_code}}\\n' {users}/7"
            f" -H 'Authorization: Bearer {hurried}'; done | sort | uniq -c",
            (200, 429),
        ),
        Example("health", f"curl -i {base}/health", (200,)),
        Example(
            "CORS preflight",
            f"curl -i -X OPTIONS {users}/7 -H 'Origin: https://app.example' -H 'Access-Control-Request-Method: GET'"
            " -H 'Access-Control-Request-Headers: authorization'",
            (204,),
        ),
    ]
