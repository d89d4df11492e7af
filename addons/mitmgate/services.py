"""What the stages need beside the policy: counters, keys, the audit trail. Opened once, from the first policy."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from mitmgate.audit.record import Event
from mitmgate.audit.trail import (
    AnchorSettings,
    AnySink,
    AuditSettings,
    ChainSettings,
    FileSink,
    RedisStreamSink,
    StdoutSink,
    SyslogSink,
    open_trail,
)
from mitmgate.audit.writer import AuditTrail
from mitmgate.keys.fetch import ask_issuer, fetch_document
from mitmgate.keys.remote import RemoteKeys
from mitmgate.keys.ring import KeyRing
from mitmgate.net.dialler import Dialler
from mitmgate.net.resolver import Resolver
from mitmgate.policy import model_audit
from mitmgate.policy.model import RedisStore
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.decision_service import Answers, LiveAnswers, RecordedAnswers
from mitmgate.stores.api_keys import ApiKeys, KeyFile
from mitmgate.stores.api_keys import Source as KeySource
from mitmgate.stores.proofs import UsedProofs
from mitmgate.stores.protocol import CounterStore
from mitmgate.stores.revocations import RevocationFile, Revocations, Source
from mitmgate.stores.store import open_store
from mitmgate.usage import UserError


@dataclass(frozen=True, slots=True)
class Services:
    """The services of one process. Their lifetime is the process's; a reload changes the keys alone.

    proofs: remembers which proofs of possession were used. dialler: connects to everything that has a name, but for the
    audit's stream, which has a thread of its own. decisions: what decision services say.
    """

    store: CounterStore
    ring: KeyRing
    trail: AuditTrail
    dialler: Dialler = field(default_factory=Dialler)
    revocations: Revocations = field(default_factory=Revocations)
    proofs: UsedProofs = field(default_factory=UsedProofs)
    api_keys: ApiKeys = field(default_factory=ApiKeys)
    decisions: Answers = field(default_factory=RecordedAnswers)


def open_services(snapshot: Snapshot) -> Services:
    """Open what the policy asks for; nothing connects before it is started. Raises UserError."""
    store, resolver = snapshot.policy.store, snapshot.policy.resolver
    dialler = Dialler(Resolver(resolver.addresses, resolver.max_stale))
    ring = open_ring(snapshot, dialler)
    trail = open_trail(audit_settings(snapshot))
    rule, keys = snapshot.policy.revocation, snapshot.policy.api_keys
    counters = open_store(None) if store == "memory" else _redis(store, dialler, trail.emit)
    return Services(
        store=counters,
        proofs=UsedProofs(None if store == "memory" else counters),
        ring=ring,
        trail=trail,
        dialler=dialler,
        decisions=LiveAnswers(dialler),
        revocations=Revocations()
        if rule is None
        else Revocations(open_revocations(snapshot, dialler), rule.on_failure, trail.emit),
        api_keys=ApiKeys() if keys is None else ApiKeys(open_api_keys(snapshot, dialler), keys.on_failure, trail.emit),
    )


def open_ring(snapshot: Snapshot, dialler: Dialler) -> KeyRing:
    """Make the keys of a policy's issuers; nothing is fetched before it is started."""
    fetch, ask = partial(fetch_document, dialler=dialler), partial(ask_issuer, dialler=dialler)
    ring = KeyRing(open_keys=partial(RemoteKeys, fetch=fetch), ask=ask)
    ring.configure(snapshot.issuers)
    return ring


def open_revocations(snapshot: Snapshot, dialler: Dialler) -> Source:
    """Open the list of revocations that a policy names. Raises UserError; also where the policy names none."""
    store, rule = snapshot.policy.store, snapshot.policy.revocation
    if rule is None:
        raise UserError(f"{snapshot.path}: nothing can be revoked without a list; add revocation: {{file: FILE}}")
    if rule.file is not None:
        file = RevocationFile(snapshot.resolve(rule.file))
        try:
            file.prepare()
        except OSError as error:
            raise UserError(f"the list of revocations {rule.file}: {error.strerror or error}") from error
        return file
    if store == "memory":
        raise UserError("revocation without a file needs a redis store")
    from mitmgate.stores.redis_revocations import RevocationStream  # noqa: PLC0415 - as stores/store.py

    try:
        return RevocationStream(store.url, store.timeout, dialler)
    except ValueError as error:
        raise UserError("store.url has an option that a Redis URL does not take") from error


def open_api_keys(snapshot: Snapshot, dialler: Dialler) -> KeySource:
    """Open the list of API keys that a policy names. Raises UserError; also where the policy names none."""
    store, rule = snapshot.policy.store, snapshot.policy.api_keys
    if rule is None:
        raise UserError(f"{snapshot.path}: there are no API keys without a list; add api_keys: {{file: FILE}}")
    if rule.file is not None:
        return KeyFile(snapshot.resolve(rule.file))
    if store == "memory":
        raise UserError("api_keys without a file needs a redis store")
    from mitmgate.stores.redis_api_keys import KeyList  # noqa: PLC0415 - as stores/store.py

    try:
        return KeyList(store.url, store.timeout, dialler)
    except ValueError as error:
        raise UserError("store.url has an option that a Redis URL does not take") from error


def _redis(store: RedisStore, dialler: Dialler, emit: Callable[[Event], None]) -> CounterStore:
    try:
        return open_store(store.url, store.timeout, dialler, emit)
    except ValueError as error:
        # Without the URL, and without the error's text: either may hold the password.
        raise UserError("store.url has an option that a Redis URL does not take") from error


def audit_settings(snapshot: Snapshot) -> AuditSettings:
    """Translate the policy's `audit` for the trail; paths become absolute."""
    audit, store, resolver = snapshot.policy.audit, snapshot.policy.store, snapshot.policy.resolver
    sinks: list[AnySink] = []
    for sink in audit.sinks:
        if isinstance(sink, model_audit.FileSink):
            sinks.append(FileSink(snapshot.resolve(sink.file), sink.rotate, sink.keep, sink.fsync))
        elif isinstance(sink, model_audit.StdoutSink):
            sinks.append(StdoutSink())
        elif isinstance(sink, model_audit.SyslogSink):
            sinks.append(_syslog(sink, resolver.addresses, resolver.max_stale))
        elif store == "memory":
            raise UserError(f"the audit sink {sink.redis_stream} needs a redis store")
        else:
            spill = snapshot.resolve(sink.spill)
            sinks.append(
                RedisStreamSink(
                    sink.redis_stream,
                    store.url,
                    sink.maxlen,
                    spill,
                    nameservers=resolver.addresses,
                    max_stale=resolver.max_stale,
                )
            )
    rule, anchors = audit.anchors, None
    if rule is not None:
        if snapshot.anchor_key is None:
            raise UserError("audit.anchors has no key")
        anchors = AnchorSettings(snapshot.resolve(rule.file), snapshot.anchor_key, rule.every)
    return AuditSettings(
        sinks=tuple(sinks),
        queue=audit.queue,
        on_full=audit.on_full,
        chain=ChainSettings(snapshot.audit_key, anchors),
        redact=snapshot.redact,
    )


def _syslog(sink: model_audit.SyslogSink, nameservers: tuple[tuple[str, int], ...], max_stale: float) -> SyslogSink:
    found = re.fullmatch(model_audit.SYSLOG, sink.syslog)
    if found is None:
        raise UserError(f"{sink.syslog} is no address of a syslog server")
    if found["path"] is not None:
        return SyslogSink("unix", found["path"], facility=sink.facility, app_name=sink.app_name)
    transport: Literal["udp", "tcp"] = "udp" if found["transport"] == "udp" else "tcp"
    host, port = found["host"].strip("[]"), int(found["port"])
    return SyslogSink(
        transport,
        host=host,
        port=port,
        facility=sink.facility,
        app_name=sink.app_name,
        nameservers=nameservers,
        max_stale=max_stale,
    )
