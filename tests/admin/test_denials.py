"""What is kept for the status page: bounded, without credentials, and nothing of what was admitted."""

import timeit
from dataclasses import replace

import pytest

from mitmgate.admin.denials import AT_LIMITS, FIELDS, KEPT, POLICIES, Denials, row
from mitmgate.admin.metrics import Metrics
from mitmgate.audit.settings import Redact
from mitmgate.core.browsers import Carried, Shown
from mitmgate.core.decision_service import ServiceAnswer
from mitmgate.core.headers import Headers
from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward
from mitmgate.core.verdict import Step
from mitmgate.pipeline.exchange import Exchange
from tests.admin.test_metrics import sources
from tests.audit.facts import grant
from tests.stages import test_audit
from tests.stages.test_audit import DENIED

USED_UP = grant("per-user", 0)
TOKEN = b"Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"


def exchange(*steps: Step) -> Exchange:
    """Make an exchange of a policy that redacts what is redacted by default."""
    made = test_audit.exchange(*steps)
    vars(made.snapshot)["redact"] = Redact()
    return made


def with_secrets() -> Exchange:
    made = exchange(DENIED)
    fields = [(b"Authorization", TOKEN), (b"Cookie", b"id=hunter2"), (b"X-Api-Key", b"hunter2"), (b"Accept", b"*/*")]
    headers = Headers([*fields, *((b"X-%d" % number, b"x" * 5000) for number in range(100))])
    made.request = replace(made.request, target="/users/7?token=hunter2&a=b", headers=headers)
    made.carried = Carried((b"hunter2",), (b"hunter2",), (b"hunter2",))
    made.shown = Shown("cookie", b"hunter2")
    made.own_fields = ((b"X-Key", b"hunter2"),)
    made.service_answer = ServiceAnswer("opa", "allow", ((b"X-Key", b"hunter2"),))
    made.forward = Forward("GET", "/?token=hunter2", "h", ((b"Authorization", TOKEN),))
    if made.head is not None:
        made.head = replace(made.head, query="token=hunter2&a=b", headers=headers)
    return made


def test_credentials_are_taken_out_and_the_request_itself_is_left_alone() -> None:
    denials, made = Denials(), with_secrets()
    denials.add(made, 401, "denied", Reason.TOKEN_EXPIRED, 0.001)
    denials.settle()
    denials.settle()
    assert "hunter2" not in repr(denials._kept), "also where nobody asks"
    (denial,) = denials.after(0)
    shown = repr(denial)
    assert "hunter2" not in shown
    assert "eyJ" not in shown
    assert denial.exchange.request.headers.one(b"authorization") == b"Bearer [redacted]"
    assert denial.exchange.request.headers.one(b"accept") == b"*/*"
    assert len(denial.exchange.request.headers.fields) == FIELDS
    assert max(len(value) for _, value in denial.exchange.request.headers.fields) < 1100
    assert made.request.headers.one(b"authorization") == TOKEN, "mitmweb and the audit trail have it still"
    assert "hunter2" not in str(row(denial, 1))


def test_only_the_last_are_kept() -> None:
    denials = Denials()
    for _ in range(KEPT + 50):
        denials.add(exchange(DENIED), 401, "denied", Reason.TOKEN_EXPIRED, 0.001)
    assert [denial.number for denial in denials.after(0)] == list(range(51, KEPT + 51))
    assert [denial.number for denial in denials.after(KEPT + 49)] == [KEPT + 50]
    assert denials.find(50) is None
    assert denials.find(51) is not None


def test_former_policies_are_not_kept_for_long() -> None:
    denials = Denials()
    for _ in range(POLICIES + 2):  # each exchange has a policy of its own here
        denials.add(exchange(DENIED), 401, "denied", Reason.TOKEN_EXPIRED, 0.001)
    denials.settle()
    assert [denial.number for denial in denials.after(0)] == [3, 4, 5]


def test_one_that_can_t_be_rid_of_its_credentials_is_not_kept() -> None:
    denials = Denials()
    for _ in range(3):
        denials.add(exchange(DENIED), 401, "denied", Reason.TOKEN_EXPIRED, 0.001)
    vars(denials._kept[1].exchange.snapshot).pop("redact")
    assert [denial.number for denial in denials.after(0)] == [1, 3]
    for _ in range(KEPT + 1):
        denials.add(exchange(DENIED), 401, "denied", Reason.TOKEN_EXPIRED, 0.001)
    assert len(denials.after(0)) == KEPT


def test_who_is_at_a_limit_is_bounded_and_the_last_comes_first() -> None:
    denials, made = Denials(), exchange()
    assert made.principal is not None
    for number in range(AT_LIMITS + 20):
        made = exchange()
        assert made.principal is not None
        made.principal = replace(made.principal, subject=f"user{number}" + "x" * 5000)
        denials.at_limit(made, replace(USED_UP, admitted=number % 2 == 0))
    rows = denials.limits()
    assert len(rows) == AT_LIMITS
    assert str(rows[0]["who"]).startswith(f"user{AT_LIMITS + 19}x")
    assert max(len(str(one["who"])) for one in rows) <= 256
    assert rows[0]["denied"] == 1
    assert rows[1]["denied"] == 0


def test_a_lone_surrogate_in_a_claim_is_written() -> None:
    denials, made = Denials(), exchange(DENIED)
    assert made.principal is not None
    made.principal = replace(made.principal, subject="a\ud800b")
    denials.add(made, 403, "denied", Reason.SCOPE_MISSING, 0.001)
    assert row(denials.after(0)[0], 1)["user"] == "a\\ud800b"


def test_an_admitted_request_costs_nothing_here() -> None:
    metrics, made = Metrics(sources()), exchange()
    metrics.count(made, 200, False)
    assert metrics.denials.after(0) == []
    denied = exchange(DENIED)
    seconds = min(
        timeit.repeat(lambda: metrics.denials.add(denied, 401, "denied", Reason.TOKEN_EXPIRED, 0.1), number=2000)
    )
    assert seconds / 2000 < 20e-6, "ten times what it takes"


@pytest.mark.parametrize("grants", [0, 1])
def test_metrics_see_who_has_used_a_limit_up(grants: int) -> None:
    metrics, made = Metrics(sources()), exchange()
    made.grants = [USED_UP] * grants
    metrics.count(made, 200, False)
    assert len(metrics.denials.limits()) == grants
