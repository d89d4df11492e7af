"""Flows made out of parts are what mitmproxy's own constructor makes."""

import uuid

from mitmproxy.http import HTTPFlow
from mitmproxy.test.tflow import tclient_conn, tserver_conn

from mitmgate.pipeline.message import flow_id, make_flow


def test_a_flow_has_what_the_constructor_gives_it() -> None:
    client, server = tclient_conn(), tserver_conn()
    made, constructed = vars(make_flow(client, server)), vars(HTTPFlow(client, server, live=True))
    own = {"id", "timestamp_created"}
    assert made.keys() == constructed.keys()
    assert {name: made[name] for name in made.keys() - own} == {name: constructed[name] for name in made.keys() - own}
    assert abs(made["timestamp_created"] - constructed["timestamp_created"]) < 60


def test_ids_are_random_uuids_each_another() -> None:
    """RFC 9562, section 5.4: version 4, variant 10."""
    ids = [flow_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    parsed = [uuid.UUID(text) for text in ids]
    assert [str(one) for one in parsed] == ids
    assert {one.version for one in parsed} == {4}
    assert {one.variant for one in parsed} == {uuid.RFC_4122}
    ones = [sum(one.int >> bit & 1 for one in parsed) for bit in range(128)]
    assert sum(400 < count < 600 for count in ones) >= 128 - 6  # all but version and variant are of chance
