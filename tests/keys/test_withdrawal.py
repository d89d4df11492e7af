"""A published key set behind a running gateway: what withdraws a key, and what is an issuer's accident."""

from pathlib import Path

from tests.admin.asking import AdminGateway
from tests.keys.jwks_server import JwksServer
from tests.keys.signing import jwk, jwk_set, private_key
from tests.live.harness import mint, policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream

ONE, TWO = private_key("ES256", 20), private_key("ES256", 21)
BOTH = jwk_set(jwk("ES256", ONE, kid="one"), jwk("ES256", TWO, kid="two"))
ACCIDENTS = [b'{"keys": []}', jwk_set(jwk("ES256", ONE, kid="one", use="enc")), jwk_set({"kty": "AKP"})]


def test_a_dropped_key_is_withdrawn_and_an_empty_set_withdraws_nothing(tmp_path: Path) -> None:
    with RecordingUpstream() as upstream, JwksServer(BOTH) as keys:
        made = policy(tmp_path, upstream)
        source = {"jwks_url": keys.url, "refresh": "1s", "min_refresh": "100ms"}
        made["identity"]["issuers"]["dev"] |= {"algorithms": ["ES256"], "keys": source}
        with AdminGateway(tmp_path, made) as gateway:

            def ask(kid: str) -> int:
                token = mint(key={"one": ONE, "two": TWO}[kid], algorithm="ES256", headers={"kid": kid})
                return gateway.get("/api/v1/users", token=token).status

            assert (ask("one"), ask("two")) == (200, 200)
            for accident in ACCIDENTS:
                keys.document = accident
                fetches = keys.fetches
                wait_for(lambda before=fetches: keys.fetches > before + 2, "the set to be fetched again")  # type: ignore[misc]
                assert (ask("one"), ask("two")) == (200, 200)
                assert gateway.missing() == []
            assert gateway.value("mitmgate_key_set_refresh_failures_total", issuer="dev") >= len(ACCIDENTS)
            assert "the key set has no usable key; key 1: not for signatures (use); those that are kept" in gateway.log
            keys.document = jwk_set(jwk("ES256", TWO, kid="two"))
            wait_for(lambda: ask("one") == 401, "the key to be withdrawn")
            assert ask("two") == 200
            seen = len(upstream.requests)
            assert ask("one") == 401
            assert len(upstream.requests) == seen
