"""What the tests of deploy/ share: a recording upstream."""

from tests.live.conftest import upstream

__all__ = ["upstream"]
