"""The schema of audit events (JSON Schema 2020-12): what each kind has, written as types.

Nothing here makes an event (event.py and ended.py do); tests hold every event that a gateway writes to it. A reader
ignores members that it does not know: one that is new does not change `v`.
"""

from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

from pydantic import ConfigDict, Discriminator, Field, TypeAdapter, with_config

from mitmgate.audit.event import VERSION, Fate

Scalar = str | int | float | bool | None
Time = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$")]
Status = Annotated[int, Field(ge=100, le=999)]
Count = Annotated[int, Field(ge=0)]
Duration = Annotated[float, Field(ge=0)]
Mark = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Event(TypedDict):
    time: Annotated[Time, Field(description="When it happened, a request when it arrived: RFC 3339, UTC.")]
    id: Annotated[str, Field(description="No other event has it; a sink may write one event more than once.")]
    worker: Annotated[Count, Field(description="The process that made it.")]
    v: Annotated[Literal[1], Field(description="The version of this schema.")]
    seq: NotRequired[Annotated[int, Field(ge=1, description="Its number in the hash chain of a file.")]]
    prev: NotRequired[Annotated[Mark, Field(description="The mac of the record before it.")]]
    mac: NotRequired[Annotated[Mark, Field(description="HMAC-SHA256, or SHA-256, of the line before this member.")]]


_documented = with_config(ConfigDict(use_attribute_docstrings=True))


class Check(TypedDict):
    """The proxy that asked."""

    kind: Literal["nginx", "caddy", "traefik", "envoy"] | None
    peer: str


class Limit(TypedDict):
    """A limit that the request was counted by."""

    name: str
    remaining: int


class DecisionService(TypedDict):
    """What a decision service said."""

    service: str
    said: str
    ms: Duration
    cached: NotRequired[bool]
    why: NotRequired[str]


class WebSocket(TypedDict):
    """How a WebSocket ended."""

    code: int
    closed_by: Literal["client", "upstream", "gateway"]
    messages_in: Count
    messages_out: Count


@_documented
class Request(_Event):
    """A request that has ended, however it did."""

    event: Literal["request"]
    request_id: str
    """That of X-Request-ID."""
    trace_id: NotRequired[str]
    traceparent: NotRequired[str]
    client_ip: NotRequired[str | None]
    """The client, as resolved behind trusted proxies."""
    peer: NotRequired[str]
    """The TCP peer."""
    protocol: NotRequired[str]
    """The client's: HTTP/1.0, HTTP/1.1 or HTTP/2.0."""
    check: NotRequired[Check]
    user: NotRequired[str]
    issuer: NotRequired[str]
    key_id: NotRequired[str | None]
    """The API key's."""
    roles: NotRequired[list[str]]
    method: NotRequired[str]
    host: NotRequired[str]
    path: NotRequired[str]
    query: NotRequired[str]
    user_agent: NotRequired[str]
    route: NotRequired[str]
    upstream: NotRequired[str]
    decision_service: NotRequired[DecisionService]
    endpoint: NotRequired[str]
    retries: NotRequired[Count]
    status: Status
    """What the client got, or would have got."""
    outcome: Fate
    decision: Literal["admit", "deny", "answer", "none"]
    stage: NotRequired[str]
    """The stage that decided."""
    reason: str
    detail: NotRequired[str]
    cause: NotRequired[str]
    """What went wrong at the service."""
    observed: NotRequired[list[str]]
    """What report mode would have denied: STAGE/REASON."""
    steps_us: NotRequired[dict[str, Count]]
    """The stages that took 10 microseconds or more, in their order, and how many; the others took less."""
    duration_ms: NotRequired[Duration]
    upstream_ms: NotRequired[Duration]
    bytes_in: NotRequired[Count]
    bytes_out: NotRequired[Count]
    upgraded: NotRequired[bool]
    websocket: NotRequired[WebSocket]
    limits: NotRequired[list[Limit]]
    degraded: NotRequired[bool]
    """Whether the store was away."""
    policy: str
    """The digest of the policy that decided."""


class GatewayStarted(_Event):
    """A process accepts requests."""

    event: Literal["gateway-started"]
    policy: str
    pid: Count
    instance: str


class GatewayStopped(_Event):
    """A process has ended in good order: its last record."""

    event: Literal["gateway-stopped"]
    pid: Count
    instance: str


class WorkerLost(_Event):
    """Another worker has crashed, and its last records may be missing."""

    event: Literal["worker-lost"]
    pid: Count
    how: str


class PolicyReloaded(_Event):
    """Another policy decides from now on."""

    event: Literal["policy-reloaded"]
    policy: str
    previous: str
    by: NotRequired[str]


class PolicyRejected(_Event):
    """A changed policy was refused; the one named stays in force."""

    event: Literal["policy-rejected"]
    policy: str
    problems: list[str]
    by: NotRequired[str]


class CircuitTurned(_Event):
    """A circuit has opened or closed for this process, and what was the last straw."""

    event: Literal["circuit"]
    state: Literal["closed", "open", "half-open"]
    upstream: str
    endpoint: NotRequired[str]
    why: NotRequired[str]
    cause: NotRequired[str]
    request_id: NotRequired[str]


class StoreLost(_Event):
    """The counters' store is away, or refuses."""

    event: Literal["store-lost"]
    store: str
    error: str


class StoreRecovered(_Event):
    """It counts again."""

    event: Literal["store-recovered"]
    store: str
    seconds: Duration


class StageFailed(_Event):
    """A stage could not decide on requests: they were denied."""

    event: Literal["stage-failed"]
    stage: str
    error: str
    count: Count


class StageSlow(_Event):
    """A stage took long for a request."""

    event: Literal["stage-slow"]
    stage: str
    seconds: Duration
    count: Count


class OperatorActed(_Event):
    """An operator has changed what the process knows."""

    event: Literal["operator"]
    act: Literal["circuits-reset", "limits-reset"]
    by: str
    what: NotRequired[str]


@_documented
class Revoked(_Event):
    """This process holds something for revoked, or no longer."""

    event: Literal["revoked", "revocation-lifted"]
    kind: Literal["jti", "sub", "sid", "kid", "iss"]
    issuer: str
    until: Time
    value: NotRequired[str]
    before: NotRequired[Time]
    by: NotRequired[str]
    """Who has revoked it, and from where."""


class ListUnknown(_Event):
    """This process can't find out what is revoked, or which keys are good."""

    event: Literal["revocations-unknown", "api-keys-unknown"]
    decides: Literal["deny", "last-known"]
    error: str


class ListKnown(_Event):
    """It knows again, or has just started."""

    event: Literal["revocations-known", "api-keys-known"]
    count: Count
    seconds: NotRequired[Duration]


class ApiKeyLearnt(_Event):
    """This process takes a further key."""

    event: Literal["api-key-learnt"]
    key_id: str
    user: str
    by: NotRequired[str]


class ApiKeyEnded(_Event):
    """This process no longer takes a key."""

    event: Literal["api-key-ended"]
    key_id: str
    user: str
    how: Literal["revoked", "removed"]
    by: NotRequired[str]


class AuditDropped(_Event):
    """Records are missing here: the queue was full."""

    event: Literal["audit-dropped"]
    count: Count
    total: Count


class AuditRecovered(_Event):
    """What an earlier end of a process, or somebody who moved files, has left."""

    event: Literal["audit-recovered"]
    sink: str
    torn_bytes: NotRequired[Count]
    unclean: NotRequired[bool]
    missing: NotRequired[Count]
    head_missing: NotRequired[bool]
    rolled_back: NotRequired[bool]


class RefusalsMoved(_Event):
    """Refused requests are so many that further ones go to a log of their own."""

    event: Literal["refusals-moved"]
    sink: str
    to: str


class AnchorsFailed(_Event):
    """The end of a log can't be anchored."""

    event: Literal["anchors-failed"]
    sink: str
    error: str


class AnchorsRecovered(_Event):
    """It is anchored again."""

    event: Literal["anchors-recovered"]
    sink: str


class SinkFailed(_Event):
    """A sink takes no records."""

    event: Literal["sink-failed"]
    sink: str
    error: str
    spilling: bool


class SinkRecovered(_Event):
    """A sink takes records again, and has those that it had missed."""

    event: Literal["sink-recovered"]
    sink: str
    seconds: Duration
    count: Count


class StageTold(_Event):
    """A stage of the operator's own has told something of a request."""

    event: Literal["stage"]
    stage: str
    request_id: str
    said: dict[str, Scalar]


class ShadowDifference(_Event):
    """A candidate policy decides otherwise on a request."""

    event: Literal["shadow-difference"]
    request_id: str
    kind: str
    before: Any
    after: Any
    route: str | None
    policy: str
    candidate: str
    user: NotRequired[str]
    issuer: NotRequired[str]


AnyEvent = Annotated[
    Request
    | GatewayStarted
    | GatewayStopped
    | WorkerLost
    | PolicyReloaded
    | PolicyRejected
    | CircuitTurned
    | StoreLost
    | StoreRecovered
    | StageFailed
    | StageSlow
    | OperatorActed
    | Revoked
    | ListUnknown
    | ListKnown
    | ApiKeyLearnt
    | ApiKeyEnded
    | AuditDropped
    | AuditRecovered
    | RefusalsMoved
    | AnchorsFailed
    | AnchorsRecovered
    | SinkFailed
    | SinkRecovered
    | StageTold
    | ShadowDifference,
    Discriminator("event"),
]

_TITLE: Final = f"mitmgate audit events, version {VERSION}"


def schema() -> dict[str, Any]:
    """Make the JSON Schema of a line of an audit file."""
    made = TypeAdapter(AnyEvent).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": _TITLE, **made}
