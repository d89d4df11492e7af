"""Via: what a request came through, and whether it goes in circles."""

import pytest

from mitmgate.core.headers import Headers
from mitmgate.core.via import MOST_PASSES, Via

VIA = Via(b"Edge")


@pytest.mark.parametrize(
    ("values", "circles"),
    [
        ([], False),
        ([b"1.1 edge"] * (MOST_PASSES - 1), False),
        ([b"1.1 edge"] * MOST_PASSES, True),
        ([b", ".join([b"1.1 EDGE"] * MOST_PASSES)], True),
        ([b"1.1 edge,2.0 other"] * MOST_PASSES, True),
        ([b"1.1 edge-2"] * MOST_PASSES, False),  # another name that holds ours
        ([b"1.1 edgeedgeedgeedgeedgeedgeedgeedge"], False),
        ([b"1.1 other"] * 100, False),
    ],
)
def test_what_has_come_through_gateways_of_this_name_too_often(values: list[bytes], circles: bool) -> None:
    assert VIA.circles(Headers([(b"Via", value) for value in values])) is circles


def test_a_field_names_the_version_that_the_request_came_in() -> None:
    assert [VIA.field(version) for version in ("HTTP/1.0", "HTTP/1.1", "HTTP/2.0")] == [
        (b"Via", b"1.0 Edge"),
        (b"Via", b"1.1 Edge"),
        (b"Via", b"2.0 Edge"),
    ]
