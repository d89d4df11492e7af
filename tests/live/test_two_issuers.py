"""Two issuers may each have an alice: to the service she is not the same, and no client says whose subject it is."""

from pathlib import Path

from tests.live.harness import Gateway, Host, mint, policy, route, write_policy
from tests.live.harness_upstream import RecordingUpstream

OTHER = "https://other.example"


def test_the_issuer_goes_with_the_subject(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    made = policy(tmp_path, upstream)
    issuers = made["identity"]["issuers"]
    issuers["other"] = {**issuers["dev"], "issuer": OTHER}
    route(made, "users", auth={"issuers": ["dev", "other"]})
    with Gateway(write_policy(tmp_path, made), host=host) as gateway:
        claims = [("X-User-Issuer", "dev"), ("X_User_Issuer", "dev"), ("x-user-issuer", "root")]
        for token, path, issuer in [
            (mint("alice"), "/api/v1/users", "dev"),
            (mint("alice", iss=OTHER), "/api/v1/users", "other"),
            (mint("alice"), "/api/v1/orders", "dev"),  # told on every route, also where it is plain
        ]:
            assert gateway.get(path, token=token, headers=claims).status == 200
            seen = upstream.last()
            assert (seen.one("x-user-id"), seen.one("x-user-issuer")) == ("alice", issuer)
            assert not [value for name, value in seen.headers if "_" in name or value == "root"]
        assert gateway.get("/public", headers=claims).status == 200
        assert upstream.last().all("x-user-issuer") == []


def test_with_one_issuer_it_is_not_told_and_no_client_says_it(
    tmp_path: Path, upstream: RecordingUpstream, host: Host
) -> None:
    with Gateway(write_policy(tmp_path, policy(tmp_path, upstream)), host=host) as gateway:
        assert gateway.get("/api/v1/users", token=mint(), headers=[("X-User-Issuer", "dev")]).status == 200
        assert upstream.last().all("x-user-issuer") == []
