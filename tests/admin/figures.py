"""Reports of workers as tests make them, and exported text read back by prometheus_client's own parser."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from mitmgate.admin.exposition import open_metrics
from mitmgate.admin.families import Series
from mitmgate.admin.readiness import Condition, Missing, Readiness
from mitmgate.admin.report import Rejection, Report

NO_POLICY = Missing(Condition.POLICY, "No policy is in force.")
DRAINING = Missing(Condition.NOT_DRAINING, "The gateway is shutting down.")

Labels = frozenset[tuple[str, str]]


def worker(
    requests: int = 1,
    *,
    missing: Readiness = (),
    rejections: tuple[Rejection, ...] = (),
    digest: str = "sha256:one",
    **series: Series,
) -> bytes:
    """Make the snapshot of a worker that has ended so many requests of the route `users`."""
    made: dict[str, Series] = {
        "mitmgate_requests": {("users", "GET", "200", "ok"): requests},
        "mitmgate_decision_duration_seconds": {("users",): [requests, *[0] * 15, requests * 0.00001]},
        "mitmgate_connections": {(): 3},
        "mitmgate_circuit_state": {("users", "http://a:1", "closed"): 1, ("users", "http://a:1", "open"): 0},
        "mitmgate_key_set_age_seconds": {("corp",): float(requests)},
        "mitmgate_key_set_usable": {("corp",): 1},
        "mitmgate_policy": {(digest,): 1},
        "mitmgate_ready": {(): int(not missing)},
        "mitmgate_workers": {(): 1},
    }
    return Report(made | series, missing, rejections).encode()


def samples(text: str) -> dict[tuple[str, Labels], float]:
    """Read OpenMetrics text strictly; a sample that comes twice fails."""
    found: dict[tuple[str, Labels], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} is exported twice"
            found[key] = float(sample.value)
    return found


def exported(report: Report) -> dict[tuple[str, Labels], float]:
    """Export a report and read it back."""
    return samples(open_metrics(report.series).decode())


def value(found: dict[tuple[str, Labels], float], name: str, **labels: str) -> float:
    """Return one sample."""
    return found[name, frozenset(labels.items())]
