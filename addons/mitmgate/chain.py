"""The chain: THE ordered list of stages, and the addon that wires them into mitmproxy. A reader starts here."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader

from mitmgate.audit.opening import open_trail
from mitmgate.audit.writer import AuditTrail
from mitmgate.core.rules import Endpoint
from mitmgate.hostoptions import refuse_weakening, required_options
from mitmgate.keys.ring import KeyRing
from mitmgate.policy.loader import PolicyError
from mitmgate.policy.watcher import PolicySource
from mitmgate.stages.arrival import Arrival, SnapshotSource
from mitmgate.stages.audit import Audit
from mitmgate.stages.authentication import Authentication
from mitmgate.stages.authorization import Authorization
from mitmgate.stages.circuit_breaker import CircuitBreaker
from mitmgate.stages.client_quota import ClientQuota
from mitmgate.stages.cors import Cors
from mitmgate.stages.endpoints import Endpoints
from mitmgate.stages.enforcer import Enforcer
from mitmgate.stages.exchange import Exchange
from mitmgate.stages.hygiene import Hygiene
from mitmgate.stages.network_access import NetworkAccess
from mitmgate.stages.rate_limit import RateLimit
from mitmgate.stages.response_headers import ResponseHeaders
from mitmgate.stages.rewrite import Rewrite
from mitmgate.stages.routing import Routing
from mitmgate.stages.size_limit import SizeLimit
from mitmgate.stages.stage import Stage
from mitmgate.stores.opening import open_store
from mitmgate.stores.protocol import CounterStore

logger = logging.getLogger(__name__)


def stages(
    source: SnapshotSource,
    store: CounterStore,
    ring: KeyRing,
    clock: Callable[[], float] = time.time,
) -> tuple[Stage, ...]:
    """Make the stages, in the order in which every request meets them. Enforcer asks each for its signature."""
    return (
        Arrival(source, clock),
        Hygiene(),
        Endpoints(),
        Routing(),
        Cors(),
        NetworkAccess(),
        SizeLimit(),
        ClientQuota(store),
        Authentication(ring),
        Authorization(),
        RateLimit(store),
        CircuitBreaker(clock),
        Rewrite(),
    )


REQUIRED = (
    "arrival",
    "hygiene",
    "endpoints",
    "routing",
    "cors",
    "network-access",
    "size-limit",
    "client-quota",
    "authentication",
    "authorization",
    "rate-limit",
    "circuit-breaker",
    "rewrite",
)
"""The signatures that Enforcer asks for. Written out, so that a stage lost from the list above denies everything."""
