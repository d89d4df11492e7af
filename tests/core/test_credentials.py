"""What is taken for a credential, by name or by itself, what is not, and what it costs to find out."""

import base64
import random
import string
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core import credentials
from mitmgate.core.credentials import (
    hide_in_body,
    hide_in_field,
    hide_in_name,
    hide_in_path,
    hide_in_query,
    hide_in_text,
    hide_in_url,
    is_secret_name,
    looks_random,
)

HIDE: tuple[Callable[[str, credentials.Put], str], ...] = (hide_in_path, hide_in_query, hide_in_text, hide_in_url)


def mark(text: str) -> str:
    return "[redacted]"


SECRET = (
    *("token", "access_token", "X-API-Key", "Ocp-Apim-Subscription-Key", "apiKey", "jwt", "auth", "secret"),
    *("code", "sig", "session", "key", "client_secret", "X-Amz-Signature", "X-Amz-Credential", "PHPSESSID"),
    *("JSESSIONID", "connect.sid", "subscriptionKey", "X-Functions-Key", "password", "pwd", "DB_PASSWORD"),
    *("KEY", "token[]", "token%5B%5D", "t%6Fken", "api%5Fkey", "%2574oken", "X-Auth-Token", "DPoP"),
    *("private-token", "x-csrf-token", "authToken", "userPass", "SAMLResponse", "refreshToken", "id_token_hint"),
    *("sessionid", "ticket", "pin", "device_code", "auth-code", "X-Vault-Token", "Authorization"),
    *("Proxy-Authorization", "Cookie", "Set-Cookie", "oauth_verifier", "+token", "token+"),
)
PLAIN = (
    *("page", "q", "sort", "tokens", "max_tokens", "country_code", "zip_code", "keyword", "monkey", "author"),
    *("authenticate", "www-authenticate", "Sec-WebSocket-Key", "Access-Control-Allow-Credentials", "user-agent"),
    *("accept", "lang", "design", "signal", "passenger", "compass", "x-cache-key", "zipcode", "barcode"),
    *("status_code", "inside", "shipping", "KEYBOARD", "host", "id", "user", "signed", "assign", "x", "passed"),
    *("tick", "etag"),
)


@pytest.mark.parametrize("name", SECRET)
def test_a_name_of_a_credential(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", PLAIN)
def test_a_name_of_nothing_secret(name: str) -> None:
    assert not is_secret_name(name)


def test_a_name_that_nobody_reads_to_its_end_is_a_secret_one() -> None:
    assert is_secret_name("x" * 101) and not is_secret_name("x" * 100)


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/users/550e8400-e29b-41d4-a716-446655440000/orders/01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "/getUserProfileInformationById/isItOkToDoXyz2024",
        "/OrderV2CustomerHistoryReport2024",
        "/static/js/main.8f3d2c1a.chunk.js",
        "/a%20b/eyJ/ewo",
        "/507f1f77bcf86cd799439011",
        "/reports/2024-01-15T10-30-00Z-final-report-v2-abc",
        "/this-is-a-long-kebab-case-article-title-2024-edition-part-2",
        "/wiki/Some_Very_Long_Article_Title_About_World_War_2_And_1945",
        "/%E4%BD%A0%E5%A5%BD%E4%BD%A0%E5%A5%BD%E4%BD%A0%E5%A5%BD/%C3%A9",
        "/users/someone@example.org",
        "/12345678901234567890123",
        "/filter/name=abc/x",
        "/api/v1beta1/k8s2/s3/ec2instances/i18n/a11y",
    ],
)
def test_a_path_that_says_what_was_asked_for_stays(path: str) -> None:
    assert hide_in_path(path, mark) == path
    assert hide_in_url(f"{path}?page=2&sort=name&q=a+b", mark) == f"{path}?page=2&sort=name&q=a+b"


@pytest.mark.parametrize(
    "text",
    [
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36",
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) Version/17.0 Mobile/15E148 Safari/604.1",
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "Dalvik/2.1.0 (Linux; U; Android 13; SM-G991B Build/TP1A.220624.014)",
        "Apache-HttpClient/4.5.13 (Java/17.0.8)",
        "curl/8.5.0",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
        "https://app.example/path/to/some/page?lang=en#x",
        "Basic plan",
        "multipart/form-data; boundary=x",
        "policy sha256:f98952a932b21f98e68fbfc6e3a4d260e6a47adae33a88a6411192193722613c is in force",
    ],
)
def test_a_field_that_says_who_asks_stays(text: str) -> None:
    assert hide_in_text(text, mark) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Bearer abcdef", "Bearer [redacted]"),
        ("x bearer: abcdef, y", "x bearer: [redacted], y"),
        ("Basic YWxpY2U6cGFzcw==", "Basic [redacted]"),
        ("a (token=abc; b)", "a (token=[redacted]; b)"),
        ('{"password": "p w\\" x", "a": 1}', '{"password": "[redacted]", "a": 1}'),
        ("redis://:a/b@c@h:6379/0 refused", "redis://[redacted]@h:6379/0 refused"),
        ("https://u:p@h/x?key=1", "https://[redacted]@h/x?key=[redacted]"),
        ("password: hunter2", "password: [redacted]"),
        ("apikeys.yaml:12:5: warning: audit: none", "apikeys.yaml:12:5: warning: audit: none"),
        ("api-keys.jsonl: s3cret", "api-keys.jsonl: [redacted]"),
        ("api-key: 12:5", "api-key: [redacted]"),
    ],
)
def test_a_credential_in_text(text: str, shown: str) -> None:
    assert hide_in_text(text, mark) == shown
    assert hide_in_body(text, mark) == shown


def test_user_information_of_a_host() -> None:
    assert hide_in_field("host", "me:pw@a.example", mark) == "[redacted]@a.example"


KEY = f"mgk_3tvRSxyYPh_{'a1B' * 16}z"
JWT = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
OPAQUE = "opaque-Zz9Zz9Zz9Zz9Zz9Zz9"


@pytest.mark.parametrize("name", sorted(credentials._PUBLIC_FIELDS))
@pytest.mark.parametrize(
    "value",
    [
        *(KEY, f"u={KEY}", JWT, JWT.replace("e", "%65"), f"Bearer {OPAQUE}", f"a=b,access_token={OPAQUE}"),
        *(
            f"authorization=Bearer {OPAQUE};p=1",
            f"DPoP {OPAQUE}",
            f'{{"token":"{OPAQUE}"}}',
            f"https://x:{OPAQUE}@a.b/",
        ),
        KEY.replace("g", "%67", 1),
    ],
)
def test_what_tells_itself_is_hidden_in_public_fields_too(name: str, value: str) -> None:
    shown = hide_in_field(name, value, mark)
    assert "[redacted]" in shown
    for secret in (OPAQUE, KEY[15:], JWT.rpartition(".")[2]):
        assert secret not in shown


def test_a_credential_in_the_place_of_a_name_is_hidden() -> None:
    for name in (KEY, JWT, JWT.replace("e", "%65")):
        shown = hide_in_name(name, mark)
        assert "[redacted]" in shown
        assert name[-30:] not in shown
    for name in (
        "Access-Control-Request-Private-Network",
        "X-Amzn-Oidc-Accesstoken",
        "sec-ch-ua-full-version-list",
        "a",
    ):
        assert hide_in_name(name, mark) == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE,dd=s:2;o:rum;t.dm:-4;p:0f1e2d3c4b5a6978"),
        ("baggage", "userId=alice,serverNode=DF%2028,sentry-trace_id=4bf92f3577b34da6a3ce929d0e0e4736"),
        ("if-none-match", 'W/"t61rcWkgMzEx8Zq29dLmP0aB", "33a64df551425fcc55e4d42a148795d9f25f89d4"'),
        ("repr-digest", "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"),
        ("x-amzn-trace-id", "Root=1-67891233-abcdef012345678912345678;Parent=463ac35c9f6413ad;Sampled=1"),
        (
            "content-security-policy",
            "default-src 'self'; img-src https: data:; script-src 'nonce-t61rcWkgMzEx8Zq29dLm'",
        ),
    ],
)
def test_public_fields_stay_as_they_are(name: str, value: str) -> None:
    assert hide_in_field(name, value, mark) == value


def test_fields_that_are_random_and_public_stay() -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert hide_in_field("traceparent", trace, mark) == trace
    for sent, shown in {
        "chat, superchat": "chat, superchat",
        "chat, bearer, word": "chat, bearer, [redacted]",
        "bearer,,word": "bearer,,[redacted]",
        "x.bearer.io.word": "x.bearer[redacted]",
        "auth-token, word": "auth[redacted], [redacted]",
        ",".join("ab" * 100): "[redacted]",
    }.items():
        assert hide_in_field("sec-websocket-protocol", sent, mark) == shown
    assert hide_in_field("x-other", trace, mark) == "[redacted]"


def random_text(source: random.Random, alphabet: str, size: int) -> str:
    return "".join(source.choices(alphabet, k=size))


@pytest.mark.parametrize(
    ("alphabet", "size", "missed"),
    [
        (string.ascii_letters + string.digits, 32, 0.005),
        (string.ascii_letters + string.digits + "-_", 22, 0.03),
        (string.ascii_lowercase + string.digits, 32, 0.005),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 32, 0.005),
        (string.hexdigits.lower(), 32, 0.0),
        (string.ascii_lowercase + "012345", 24, 0.02),
    ],
)
def test_random_text_is_recognised(alphabet: str, size: int, missed: float) -> None:
    source = random.Random(7)
    texts = [random_text(source, alphabet, size) for _ in range(2000)]
    assert sum(not looks_random(text) for text in texts) <= missed * len(texts)


def test_words_and_names_are_not_taken_for_random_text() -> None:
    """Names of the standard library and of this project, joined as paths and slugs join them."""
    import ast
    import keyword
    import sys

    words = sorted({word for name in sys.stdlib_module_names | set(dir(ast)) for word in name.strip("_").split("_")})
    words = [word for word in [*words, *keyword.kwlist] if len(word) > 2]
    source = random.Random(7)
    slugs = [source.choice("-_").join(source.choices(words, k=source.randint(3, 6))) for _ in range(2000)]
    assert sum(map(looks_random, slugs)) <= 0.02 * len(slugs)


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=255), max_size=300))
def test_hiding_keeps_the_length_where_what_stands_there_does(text: str) -> None:
    for hide in (*HIDE, hide_in_body):
        assert len(hide(text, lambda hidden: "x" * len(hidden))) == len(text)


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_jwt_is_hidden_whatever_is_around_it(before: str, after: str) -> None:
    payload = base64.urlsafe_b64encode(b'{"sub":"somebody"}').decode().rstrip("=")
    token = f"eyJhbGciOiJIUzI1NiJ9.{payload}.c2lnbmF0dXJl"
    for hide in HIDE:
        assert payload not in hide(f"{before} {token} {after}", mark)


HOSTILE = (
    *("%25", "%41", "%1&", "a=&", "eyJ.", "eyJ. ", "a", "A1", "//@", "/", "basic ", "bearer ", "token=a;", ":", "a = "),
    *(
        "%2B",
        "a='",
        "a        ",
        "[",
        "session",
        "token",
        "aB3-",
        "http://a:b@",
        "=",
        "&",
        "?",
        "%2525",
        "aaaaaaaaaaaaaaaaaaaaa ",
    ),
    *("a1b2c3d4e5f6g7h8i9j0k1 ", "eyA", "ew0aaaaaaaaaaaaa", ".", "%2e", "x:", '"a":"b",', "é", "bearer%20"),
)


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_text_costs_linear_time(unit: str) -> None:
    """Sixteen times the text takes less than a hundred times as long: what is quadratic takes 256 times."""

    def cost(size: int) -> float:
        text = unit * (size // len(unit))
        best = float("inf")
        for _ in range(3):
            started = time.process_time()
            for hide in HIDE:
                hide(text, mark)
            best = min(best, time.process_time() - started)
        return best

    assert cost(65_536) < 100 * max(cost(4096), 0.000_5)


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_text_of_the_length_that_is_looked_at_costs_little(unit: str) -> None:
    """1,024 characters in each of path, query and user agent must not make a denial dear: 2 ms, a hundred-fold room."""
    text = unit * (1024 // len(unit))
    started = time.process_time()
    for hide in HIDE:
        hide(text, mark)
    assert time.process_time() - started < 0.05
