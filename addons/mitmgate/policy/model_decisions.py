"""The `decision_services` of a policy: who else is asked whether a request may pass, and what `check` says of them."""

from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, model_validator

from mitmgate.keys.discovery import needs_consent, problem
from mitmgate.policy.model_routes import WRITTEN_BY_THE_GATEWAY
from mitmgate.policy.scalars import (
    FRAMING,
    READ_BY_THE_GATEWAY,
    Boolean,
    Claim,
    Duration,
    DurationOrZero,
    HeaderName,
    Name,
    Text,
    duration,
    one_or_more,
    wrong,
)
from mitmgate.policy.section import Section

LONGEST_TIMEOUT: Final = 30.0
LONGEST_CACHE: Final = 3600.0
_OURS: Final = WRITTEN_BY_THE_GATEWAY - {"authorization"}


def _url(text: str) -> str:
    if problem(text) is not None:
        raise wrong("must be an http or https URL without credentials", "write http://127.0.0.1:8181/v1/data/gateway")
    return text


def _service(text: str) -> str:
    if text == "none":
        raise wrong("a route that says none asks nobody", "give it another name")
    return text


ServiceName = Annotated[Name, AfterValidator(_service)]


class DecisionService(Section):
    """A service that is asked whether a request may pass which everything else admits."""

    protocol: Literal["authzen", "opa", "ext_authz"]
    """authzen: OpenID AuthZEN 1.0, access evaluation; opa: Open Policy Agent, data API; ext_authz: that of Envoy."""
    url: Annotated[Text, AfterValidator(_url)]
    """What is asked: https://HOST/access/v1/evaluation, http://HOST:8181/v1/data/PATH, or with ext_authz what stands
    before the request's own path."""
    timeout: Duration = duration("500ms", "How long a request waits for its answer, connecting included (seconds).")
    ca: Text | None = None
    """A PEM file with the only authorities that the service is verified by; unset: the system's."""
    plain_http: Boolean = False
    """Whether a service of another machine may be asked over plain http: who is on the way can answer for it."""
    headers: Annotated[tuple[HeaderName, ...], one_or_more(HeaderName)] = ()
    """Header fields of the request that it is told. Nothing of a credential, unless it is named here."""
    claims: Annotated[tuple[Claim, ...], one_or_more(Claim)] = ()
    """Claims of the token that it is told, beside subject, issuer, roles and scopes; not with ext_authz."""
    query: Boolean = False
    """Whether it is told the query."""
    forward: Annotated[tuple[HeaderName, ...], one_or_more(HeaderName)] = ()
    """Fields of its answer that the upstream gets; a client's own of these names are removed. With ext_authz alone."""
    token_env: Text | None = None
    """The environment variable with the secret that it is shown (`Authorization: Bearer`)."""
    on_failure: Literal["deny", "admit"] = "deny"
    """While it can't be reached, is late, or has an error of its own (5xx). admit: the request goes on, on record. An
    answer that is no decision, which a client may bring about, denies in either case."""
    cache: DurationOrZero = duration("0s", "How long an answer is good for the very same question (seconds).")

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if not self.plain_http and needs_consent(self.url):
            message = "decisions over plain http: who is on the way can make them"
            raise wrong(message, "use https, or say plain_http: true", at="url", unquoted=message)
        if self.timeout > LONGEST_TIMEOUT:
            raise wrong(f"must be at most {LONGEST_TIMEOUT:g}s", at="timeout")
        if self.cache > LONGEST_CACHE:
            raise wrong("must be at most 1h", at="cache")
        checked = self.protocol == "ext_authz"
        if checked and self.claims:
            raise wrong("a check request has no place for claims", "name header fields", at="claims")
        if checked and "?" in self.url:
            raise wrong("what stands before a path has no query", "leave it out", at="url")
        if self.forward and not checked:
            raise wrong("only an answer of ext_authz has header fields", "leave it out", at="forward")
        for member, names, refused in (
            ("headers", self.headers, FRAMING | _OURS),
            ("forward", self.forward, FRAMING | WRITTEN_BY_THE_GATEWAY),
        ):
            lower = [name.lower() for name in names]
            for name in names:
                if name.lower() in refused:
                    raise wrong(f"{name} is written by the gateway alone", at=member)
                if member == "forward" and name.lower() in READ_BY_THE_GATEWAY:
                    raise wrong(f"{name} of the client is what the gateway goes by", "name another header", at=member)
                if lower.count(name.lower()) > 1:
                    raise wrong(f"{name} is listed twice", at=member)
        if self.token_env is not None and checked and "authorization" in {name.lower() for name in self.headers}:
            raise wrong("two of Authorization: the client's and the gateway's own", "keep one", at="token_env")
        return self
