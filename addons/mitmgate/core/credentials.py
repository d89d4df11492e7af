"""Credentials in text that anybody may have written: which names hold them, and what they look like without a name.

Theory of operation. There is one list of names and one recogniser, for the audit trail, the log, recordings, mitmweb
and `redact`. Whoever hides says what stands in the place of a credential (`put`): a mark, or as many digits as it had
characters. Nothing is decoded: percent-encoding is read as it stands, since a credential is made of characters that
need none, and one that is encoded nevertheless hides something.

An unauthenticated client chooses these texts. So every function takes time linear in its text, little of it for what
requests usually hold, and a text with more marks than anybody needs (MOST) is not read, but hidden.
"""

import re
from base64 import b64decode
from binascii import Error
from collections.abc import Callable
from itertools import accumulate
from operator import add
from typing import Final

Put = Callable[[str], str]
"""Makes what stands in the place of a credential."""

MOST: Final = 64
"""Parameters, pairs, escapes of one text that are looked at."""

LONGEST_NAME: Final = 100
"""Characters of a name that is looked at; a longer one is a secret one."""

_SHORTEST: Final = 20  # characters of a random string that nothing names
_LONGEST_RUN: Final = 256  # letters and digits without a delimiter: no word is so long
_ODD: Final = 7  # pairs of _SHORTEST characters that no language has

_NAME: Final = re.compile(
    # Anywhere in a name: mytoken, X-CSRF-Token, dbPassword, PHPSESSID, Ocp-Apim-Subscription-Key (below).
    r"(?i:token(?!s)|secret|passw|passphrase|passcode|pwd|jwt|bearer|credential|authoriz|cookie|assertion|signature"
    r"|sess(?:ion|id)|api[-_. ]?key|verifier|saml(?:request|response))"
    # As a word of its own: after a separator, or where a capital begins one.
    r"|(?:(?<![A-Za-z0-9])|(?<=[a-z0-9])(?=[A-Z]))(?i:auth|sig|sid|hmac|otp|totp|pass|dpop)(?![a-z])"
    # As the last word: X-Functions-Key, subscriptionKey, ticket.
    r"|(?:(?<![A-Za-z0-9])|(?<=[a-z0-9])(?=[A-Z]))(?i:key|ticket|pin)[0-9]*$"
    # A code by itself, or of a kind that stands for a credential (RFC 6749, section 4.1.2); no country_code.
    r"|^(?i:code)$"
    r"|(?i:auth|device|user|verification|security|reset|invite|access|recovery|backup|login|confirmation|activation|mfa)"
    r"[-_. ]?(?i:code)$"
)
_NO_SECRET: Final = re.compile(r"(?i:sec-websocket-key|access-control-.*|public[-_]?key.*|.*cache[-_]?key)")

_PUBLIC_FIELDS: Final = frozenset(
    {
        *("traceparent", "tracestate", "x-request-id", "x-correlation-id", "x-amzn-trace-id", "x-cloud-trace-context"),
        *("b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "sentry-trace", "baggage"),
        *("etag", "if-match", "if-none-match", "if-range", "digest", "repr-digest", "content-digest", "content-md5"),
        *("sec-websocket-key", "sec-websocket-accept", "content-security-policy"),
    }
)
"""Fields whose values look random, and are public: hidden in them is what is known by its name, scheme or form."""

# An unreserved character that is percent-encoded, once or more often; RFC 3986, section 2.3: nobody needs to.
_DISGUISE: Final = re.compile(r"%(?:25)*(?:3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|2[Dd]|5[Ff])")
_WORD: Final = re.compile(r"[^/?&;=#\s,\"'<>]+")  # what stands between the delimiters of a URL

# base64url of '{"' is eyJ; of '{' and white space it is eyA, ewo, ew0 or ewk, which English has too.
_JWT_START: Final = re.compile(r"eyJ|(?:eyA|ew[0ok])[\w-]{13}", re.ASCII)
# A run of base64url segments joined by dots, percent-encoded or not. Possessive, so that hostile text costs O(n).
_JWT_RUN: Final = re.compile(r"(?<![\w-])[\w-]++(?:(?:\.|%(?:25)*2[eE])[\w-]*+)++", re.ASCII)
_DOT: Final = re.compile(r"\.|%(?:25)*2[eE]")

# Letters, digits and what base64 has beside them: in a URL without slashes; each also for text that has escapes.
_RUNS: Final = {
    ("", False): re.compile(r"[\w+~-]{20,}+=*", re.ASCII),
    ("/", False): re.compile(r"[\w+/~-]{20,}+=*", re.ASCII),
    ("", True): re.compile(r"[\w+~%-]{20,}+=*", re.ASCII),
    ("/", True): re.compile(r"[\w+/~%-]{20,}+=*", re.ASCII),
}
_MARKS: Final = (
    *("mgk_", "sk_live_", "sk_test_", "rk_live_", "ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "xox", "AKIA"),
)
_DIGEST: Final = "sha256:"
_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_ULID: Final = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_HEX: Final = re.compile(r"[0-9a-f]+|[0-9A-F]+")
_ESCAPE: Final = re.compile(r"%(?:25)*[0-9A-Fa-f]{2}")

# The pairs of letters that English and the names of programs have: 94 of a hundred of theirs, 44 of random ones.
_USUAL: Final = {
    **{"a": "bcdfgiklmnprstuvxy", "b": "aeijlorsuy", "c": "acdehiklmoprstuy", "d": "abcdefilmnorstu"},
    **{"e": "abcdefghilmnopqrstvwxy", "f": "aefilorstu", "g": "aehilnorstu", "h": "aeiort", "i": "abcdefglmnoprstvxz"},
    **{"j": "e", "k": "eis", "l": "acdefilopstuy", "m": "abeilmopsu", "n": "acdefgiklmnoprstuv"},
    **{"o": "abcdfgiklmnoprstuvwx", "p": "acdehiloprstuy", "q": "u", "r": "acdefgiklmnoprstuvy"},
    **{"s": "acdefhiklmnoprstuwy", "t": "abcdefhilmnoprstuy", "u": "abcdefilmnprst", "v": "aei", "w": "aeior"},
    **{"x": "ceipt", "y": "elmnpst", "z": "e"},
}
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_ODD_PAIRS: Final = frozenset(
    {first + second for first in _LETTERS for second in _LETTERS if second not in _USUAL[first]}
    | {first + second for first in _LETTERS for second in "0123456789"}
    | {first + second for first in "0123456789" for second in _LETTERS}
)

# What every secret name has a part of; most queries have none, and are not taken apart.
_PART: Final = re.compile(
    r"token|secret|pass|pwd|jwt|bear|cred|auth|cook|asser|sig|sess|key|verif|saml|code|sid|hmac|otp|dpop|tick|pin|%|@"
)
_SCHEME: Final = re.compile(r"(?<![A-Za-z0-9])(?i:(bearer|apikey|dpop)|basic)((?:[ +:=]|%20)++)([^\s,;&\"'<>]{4,})")
_PAIR: Final = re.compile(
    r"(?<![\w.~%+\[\]-])([\w.~%+\[\]-]++)"  # a name, as queries, forms, cookies and path parameters write it
    r"([\"']?+\s{0,8}+[=:]\s{0,8}+)"  # … and as JSON, YAML and people do
    r"(\"(?:[^\"\\]|\\.)++|'[^']++|[^\s&;?#,\"'<>(){}]++)",
    re.ASCII,
)
_FILE: Final = re.compile(r"\.(?:ya?ml|jsonl?)$")  # api-keys.yaml:12:5: is a place in a file of ours
_PLACE: Final = re.compile(r"[0-9]{1,6}:[0-9]{1,6}:?")
_PARAMETER: Final = re.compile(r"([&;?#])")
_BLANK: Final = re.compile(r"(\s+)")


def is_secret_name(name: str) -> bool:
    """Tell whether a header field, parameter, cookie, or member of a body holds a credential, by its name.

    A name is read as it was written, percent-encoding included: one that encodes what needs no encoding is taken for
    a secret one.
    """
    if len(name) > LONGEST_NAME:
        return True
    name = name.partition("[")[0].partition("%5B")[0].strip("+ ")  # `token[]` is `token` to PHP and others
    if name.isupper():  # where there is no small letter a capital begins no word
        name = name.lower()
    if _NAME.search(name) is not None:
        return _NO_SECRET.fullmatch(name) is None
    return "%" in name and _DISGUISE.search(name) is not None


def looks_random(run: str, digits: int = 32) -> bool:
    """Tell whether a run of letters, digits and `-_~+/=` is no word, and no identifier: a key, a session, a hash.

    It begins as the keys of some services do, or is random. Identifiers are UUIDs, ULIDs, hexadecimal numbers of less
    than `digits` digits, and whatever is shorter than 20 characters. Of the neighbours in random text two of three are
    a pair that no language has, or a letter and a digit; of those in words one of twenty. The most irregular 20
    characters decide.
    """
    if len(run) < _SHORTEST:
        return False
    if len(run) > 4 * _LONGEST_RUN or run.startswith(_MARKS):
        return True
    if "-" in run or "%" in run:
        run = _ESCAPE.sub("-", _UUID.sub("-", run))
    run = run.rstrip("=")
    if len(run) > _LONGEST_RUN:
        return True
    if len(run) < _SHORTEST or run.isdigit() or _ULID.fullmatch(run):
        return False
    if _HEX.fullmatch(run):
        return len(run) >= digits
    run = run.lower()
    odd: list[int] = [0, *accumulate(map(_ODD_PAIRS.__contains__, map(add, run, run[1:])))]
    return any(after - before >= _ODD for before, after in zip(odd, odd[_SHORTEST - 1 :], strict=False))


def without_jwts(text: str, put: Put) -> str:
    """Hide everything in a text that looks like a JWT or a JWE (RFC 7519, section 3)."""
    if "ey" not in text and "ew" not in text:
        return text

    def hide(run: re.Match[str]) -> str:
        found = run[0]
        start = _JWT_START.search(found)
        if start is None or _DOT.search(found, start.end()) is None:
            return found
        return found[: start.start()] + put(found[start.start() :])

    return _JWT_RUN.sub(hide, text)


def hide_in_path(path: str, put: Put) -> str:
    """Hide what a path has of credentials: path parameters, tokens, and where it is a whole URL, its userinfo."""
    if "=" in path or "@" in path:
        if path.count("=") > MOST:
            return put(path)
        path = _without_userinfo(path, put)
        path = "/".join([_hide_pairs(segment, put) if "=" in segment else segment for segment in path.split("/")])
    return _without_tokens(path, put, "")


def hide_in_query(query: str, put: Put, is_secret: Callable[[str], bool] = is_secret_name) -> str:
    """Hide what a query, or a form, has of credentials: parameters by their names, and others by what they hold.

    is_secret: tells it of a name; the names that it adds are the operator's.
    """
    if is_secret is is_secret_name and len(query) < LONGEST_NAME and _PART.search(query.lower()) is None:
        return _without_tokens(query, put, "/")
    parts = _PARAMETER.split(query)
    rest = "".join(parts[2 * MOST :])
    shown = "".join([_hide_parameter(part, put, is_secret) for part in parts[: 2 * MOST]])
    return shown + put(rest) if rest else shown


def _hide_parameter(part: str, put: Put, is_secret: Callable[[str], bool]) -> str:
    name, equals, value = part.partition("=")
    if not equals:
        return _without_tokens(part, put, "/")
    if value and is_secret(name):
        return f"{_without_tokens(name, put, '')}={put(value)}"
    if len(part) < _SHORTEST and "%" not in part:
        return part
    return f"{_without_tokens(name, put, '')}={hide_in_text(value, put)}"


def hide_in_url(url: str, put: Put, is_secret: Callable[[str], bool] = is_secret_name) -> str:
    """Hide what a request target, or any other URL, has of credentials."""
    ends = [at for at in (url.find("?"), url.find("#")) if at >= 0]
    if not ends:
        return hide_in_path(url, put)
    end = min(ends)
    return f"{hide_in_path(url[:end], put)}{url[end]}{hide_in_query(url[end + 1 :], put, is_secret)}"


def hide_in_text(text: str, put: Put, *, random: bool = True) -> str:
    """Hide credentials in text of any kind: a header field's value, a line of a log.

    random: whether random strings are, too, by which nothing else tells that they are credentials.
    """
    pairs = text.count("=") + text.count(":")
    if pairs > MOST:
        return put(text)
    return (
        hide_in_body(text, put, random=random)
        if pairs or " " in text or "@" in text
        else _without_tokens(text, put, _slashes(text), random=random)
    )


def hide_in_body(text: str, put: Put, ids: bool = False, *, random: bool = True) -> str:
    """Hide credentials in text of any kind and any size: what an operator looks at, and no client makes us read.

    ids: request ids, which are hexadecimal numbers of 128 bits, stay. random: see hide_in_text.
    """
    text = _without_userinfo(text, put)
    lower = text.lower()
    if "bearer" in lower or "basic" in lower or "apikey" in lower or "dpop" in lower:
        text = _SCHEME.sub(lambda found: _hide_scheme(found, put), text)
    if "=" in text or ":" in text:
        text = _hide_pairs(text, put)
    return _without_tokens(text, put, _slashes(text), 33 if ids else 32, random=random)


def hide_in_name(name: str, put: Put) -> str:
    """Hide a credential that stands in the place of a header field's name, as behind a line end too many."""
    return name if len(name) < _SHORTEST else _without_tokens(name, put, "", random=False)


def hide_in_field(name: str, value: str, put: Put) -> str:
    """Hide what a header field has of credentials whose name, in small letters, makes it no secret as a whole."""
    if name == "host" and "@" in value:  # userinfo without the slashes of a URL
        userinfo, at, host = value.rpartition("@")
        return f"{put(userinfo)}{at}{host}"
    if name == "sec-websocket-protocol":
        return _hide_protocols(value, put)
    return hide_in_text(value, put, random=name not in _PUBLIC_FIELDS)


def _hide_protocols(value: str, put: Put) -> str:
    """Hide tokens among the names of subprotocols: `bearer, TOKEN` and `x.bearer.TOKEN`.

    Scripts in a browser can set no other field of a handshake.
    """
    protocols = value.split(",")
    if len(protocols) > MOST:
        return put(value)
    follows = False  # the one before says that it is a token
    for number, protocol in enumerate(protocols):
        name = protocol.strip(" \t")
        if not name:
            continue
        told = _NAME.search(name)
        if follows:
            hidden = put(name)
        elif told is not None and told.end() < len(name):
            hidden = name[: told.end()] + put(name[told.end() :])
        else:
            hidden = hide_in_text(name, put)
        follows = told is not None
        protocols[number] = protocol.replace(name, hidden)
    return ",".join(protocols)


def _slashes(text: str) -> str:
    """Say whether a slash is a part of a run, as in base64, or ends it, as in a URL."""
    return "" if "://" in text or text.startswith("/") else "/"


def _hide_scheme(found: re.Match[str], put: Put) -> str:
    """Hide the credential behind a scheme (RFC 9110, section 11.4); "Basic" is a word, too."""
    text = found[0]
    if found[1] is None:
        if len(found[3]) < 8:
            return text
        try:
            if b":" not in b64decode(found[3].rstrip("=") + "==", validate=True):
                return text
        except (Error, ValueError):
            return text
    return text[: found.start(3) - found.start()] + put(found[3])


def _hide_pairs(text: str, put: Put) -> str:
    def hide(pair: re.Match[str]) -> str:
        name, equals, value = pair.groups()
        if not is_secret_name(name) or (_FILE.search(name) and _PLACE.fullmatch(value)):
            return pair[0]
        quote = value[0] if value[0] in "\"'" else ""
        return f"{name}{equals}{quote}{put(value[len(quote) :])}"

    return _PAIR.sub(hide, text)


def _without_userinfo(text: str, put: Put) -> str:
    """Hide user and password of every URL in a text (RFC 3986, section 3.2.1), up to the last "@" of its word."""
    if "@" not in text or "//" not in text:
        return text
    words = _BLANK.split(text)
    for number, word in enumerate(words):
        start, at = word.find("//"), word.rfind("@")
        if 0 <= start < at - 2:
            words[number] = f"{word[: start + 2]}{put(word[start + 2 : at])}{word[at:]}"
    return "".join(words)


def _without_tokens(text: str, put: Put, slash: str, digits: int = 32, *, random: bool = True) -> str:
    """Hide what is recognised without a name: disguised words, JWTs, random strings. slash: "/" where runs have it."""
    escaped = "%" in text
    if len(text) < _SHORTEST and not escaped:
        return text
    if escaped and _DISGUISE.search(text) is not None:
        if text.count("%") > MOST:
            return put(text)
        text = _WORD.sub(lambda word: put(word[0]) if _DISGUISE.search(word[0]) else word[0], text)
    text = without_jwts(text, put)
    if max(map(len, text.split() if slash else text.split("/")), default=0) < _SHORTEST:
        return text
    return _without_random(text, put, _RUNS[slash, escaped], digits if random else 0)


def _without_random(text: str, put: Put, run: re.Pattern[str], digits: int) -> str:
    found = 0

    def hide(one: re.Match[str]) -> str:
        nonlocal found
        found += 1
        if text.endswith(_DIGEST, 0, one.start()):  # of a policy, say: it is meant to be shown
            return one[0]
        is_one = looks_random(one[0], digits) if digits else one[0].startswith(_MARKS)
        return put(one[0]) if found > MOST or is_one else one[0]

    return run.sub(hide, text)
