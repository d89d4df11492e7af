"""Who holds a key makes DPoP proofs (RFC 9449, section 4.2), honest ones and others."""

import json
import secrets
import time
from hashlib import sha256
from typing import Any

from mitmgate.core.proof import AHEAD
from tests.keys.signing import b64, jwk, private_key, sign


class Holder:
    """Holds a key, and proves it."""

    def __init__(self, algorithm: str = "ES256", number: int = 0) -> None:
        self.algorithm = algorithm
        self.key = private_key(algorithm, number)
        self.jwk = {name: value for name, value in jwk(algorithm, self.key).items() if name in {*"xyne", "kty", "crv"}}

    @property
    def thumbprint(self) -> str:
        """RFC 7638."""
        return b64(sha256(json.dumps(self.jwk, separators=(",", ":"), sort_keys=True).encode()).digest()).decode()

    @property
    def cnf(self) -> dict[str, str]:
        """What a token says that is bound to this key."""
        return {"jkt": self.thumbprint}

    def prove(
        self, token: str, url: str, method: str = "GET", *, header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """Make a proof; members given as ... are left out.

        Of a clock that is as fast as may be: a gateway takes none that may have been made before its start.
        """
        members: dict[str, Any] = {
            "jti": secrets.token_urlsafe(12),
            "htm": method,
            "htu": url,
            "iat": time.time() + AHEAD,
            "ath": b64(sha256(token.encode()).digest()).decode(),
        } | claims
        named: dict[str, Any] = {"typ": "dpop+jwt", "alg": self.algorithm, "jwk": self.jwk} | (header or {})
        named = {name: value for name, value in named.items() if value is not ...}
        members = {name: value for name, value in members.items() if value is not ...}
        return sign(self.algorithm, self.key, members, named).decode()
