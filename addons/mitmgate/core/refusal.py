"""Why something is not taken: a message, a head, a token."""

from typing import NamedTuple

from mitmgate.core.cause import Cause
from mitmgate.core.headers import Fields
from mitmgate.core.reason import Reason


class Refusal(NamedTuple):
    """A reason, and a sentence for the client: constant, with nothing of a token in it.

    Of a message it has the parts of the head that could be read as well. After such a refusal nothing that follows on
    an HTTP/1.1 connection can be trusted to be where it seems: it must be closed. cause: of a response's.
    """

    reason: Reason
    detail: str
    method: bytes = b""
    target: bytes = b""
    fields: Fields = ()
    cause: Cause | None = None
