"""Certificates: which names count, and how a proxy's field is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.certificate import Certificates, ClientCertificate, names_in, pattern, principal_of
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal

RULE = Certificates(frozenset({"prod.example"}), (("dns", (pattern("*.jobs.example"),)),), ())
ID = "spiffe://prod.example/api"


def test_it_ends_when_the_certificate_does() -> None:
    shown = ClientCertificate("CN=x", (ID,), until=100.0)
    principal = principal_of(shown, RULE, 99.9)
    assert isinstance(principal, Principal)
    assert (principal.subject, principal.expires) == (ID, 100.0)
    late = principal_of(shown, RULE, 100.0)
    assert isinstance(late, Refusal)
    assert late.reason is Reason.CERTIFICATE_EXPIRED
    undated = principal_of(ClientCertificate("", (ID,)), RULE, 100.0)
    assert isinstance(undated, Principal)
    assert undated.expires == 100.0 + 86_400


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_whatever_a_field_holds_is_read_or_refused(values: list[bytes]) -> None:
    assert isinstance(names_in(values), ClientCertificate | Refusal | None)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_subjects_come_as_they_are_written(name: str) -> None:
    subject = "CN=" + "".join("\\" + one if one in '\\",+;<>' else one for one in name)  # RFC 4514, section 2.4
    read = names_in([f'Hash=ab;Subject="{subject}";URI={ID}'.encode()])
    assert read == ClientCertificate(subject, (ID,))


@pytest.mark.parametrize("accepted", ["CN=admin,O=Corp", "CN=*,O=Corp"])
def test_a_comma_in_a_name_ends_none(accepted: str) -> None:
    rule = Certificates(frozenset(), (("subject", (pattern(accepted),)),), ())
    for subject, taken in (("CN=admin,O=Corp", True), (r"CN=admin\,O=Corp", False), (r"CN=admin\\,O=Corp", False)):
        for shown in (ClientCertificate(subject), names_in([f'Hash=ab;Subject="{subject}"'.encode()])):
            assert isinstance(shown, ClientCertificate)
            assert isinstance(principal_of(shown, rule, 0.0), Principal) is taken


@pytest.mark.parametrize(
    ("text", "taken", "others"),
    [
        (
            "CN=*,O=Corp",
            ["CN=x,O=Corp", "CN=a b-c=d,O=Corp"],
            ["CN=x,OU=y,O=Corp", "CN=x+OU=y,O=Corp", "CN=x,O=Corp,C=X"],
        ),
        (
            "CN=*,OU=*,O=Corp",
            ["CN=x,OU=y,O=Corp"],
            ["CN=x,OU=y,OU=z,O=Corp", "CN=x,L=z,OU=y,O=Corp", "CN=x,OU=y+L=z,O=Corp"],
        ),
        ("CN=admin,*", ["CN=admin,O=Corp"], ["CN=admin,OU=guests,O=Corp", "CN=admin,O=a+O=b"]),
        ("*,O=Corp", ["CN=x,O=Corp"], ["CN=x,OU=y,O=Corp", "UID=7+CN=x,O=Corp"]),
        ("*@corp.example", ["a+b@corp.example"], ["a,b@corp.example"]),
    ],
)
def test_a_star_is_no_other_attribute(text: str, taken: list[str], others: list[str]) -> None:
    """RFC 4514, sections 2.1 and 2.2; roles are given by the same patterns."""
    assert [name for name in (*taken, *others) if pattern(text).fullmatch(name)] == taken
    rule = Certificates(frozenset(), (("subject", (pattern("CN=a,OU=b,O=Corp"),)),), ((pattern(text), ("role",)),))
    principal = principal_of(ClientCertificate("CN=a,OU=b,O=Corp"), rule, 0.0)
    assert isinstance(principal, Principal)
    assert principal.roles == (("role",) if text == "CN=*,OU=*,O=Corp" else ())


@pytest.mark.parametrize("text", ["*", "a*", "*.example", "spiffe://prod.example/*"])
def test_a_star_is_no_slash_and_no_at(text: str) -> None:
    assert pattern(text).fullmatch(text.replace("*", "abc.d"))
    for wild in ("", "a/b", "a@b", "a\\"):
        assert not pattern(text).fullmatch(text.replace("*", wild))
