"""mitmproxy's flow files, of every version that mitmproxy reads, as a format of recordings."""

from collections.abc import Iterator
from typing import BinaryIO

from mitmgate.replay import tnetstring
from mitmgate.replay.flow_state import arrival_of, read_flow
from mitmgate.replay.presented import PresentedTokens
from mitmgate.replay.tnetstring import DamagedError
from mitmgate.replay.traffic import DAMAGE, Entry, Skipped, plausible


class FlowFormat:
    """Reads flows one by one (ordered.Format)."""

    def __init__(self) -> None:
        """Remember tokens over all files."""
        self._tokens = PresentedTokens()

    def records(self, file: BinaryIO) -> Iterator[tuple[float | None, bytes]]:
        """Yield each flow. A flow that is cut short is the last: nothing can be found behind it."""
        first = True
        while True:
            try:
                raw = tnetstring.read_record(file)
            except DamagedError as error:
                if first:
                    raise ValueError("no flow file of mitmproxy, no HAR and no audit file") from error
                yield None, b""
                return
            if raw is None:
                return
            arrived = None
            try:
                arrived = arrival_of(raw)
            except DAMAGE as error:
                if first:
                    raise ValueError(f"no flow file that this version reads: {error}") from error
            first = False
            yield arrived, raw

    def record(self, file: BinaryIO) -> bytes:
        """Read the flow that begins here."""
        return tnetstring.read_record(file) or b""

    def entry(self, raw: bytes) -> Entry:
        """Read a flow."""
        if not raw:
            return Skipped("", "cut short: the recorder was ended in the middle of it")
        try:
            return plausible(read_flow(raw, self._tokens))
        except DAMAGE:
            return Skipped("", "damaged")
