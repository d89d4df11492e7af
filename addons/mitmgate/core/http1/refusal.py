"""Why bytes are not a message that the gateway reads."""

from typing import NamedTuple

from mitmgate.core.headers import Fields
from mitmgate.core.reason import Reason


class Refusal(NamedTuple):
    """A reason and a sentence for the client, with the parts of the head that could be read.

    After a refusal nothing that follows on the connection can be trusted to be where it seems: it must be closed.
    """

    reason: Reason
    detail: str
    method: bytes = b""
    target: bytes = b""
    fields: Fields = ()
