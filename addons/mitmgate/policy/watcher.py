"""The policy in force: loaded, watched and swapped as a whole. Polled by the host; it has no clock and no thread.

`read` and `changed` touch files and may take long: a host calls them in a thread. `activate` and `seen` belong to the
event loop, where requests read `snapshot`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mitmgate.policy.compiler import compile_policy
from mitmgate.policy.files import stamp
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.loader import load
from mitmgate.policy.own_stages import Own
from mitmgate.policy.problem import PolicyError, Stamp
from mitmgate.policy.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Change:
    """A reload that took effect. before and after: digests; the same where only files or comments changed."""

    before: str
    after: str

    @property
    def decides_otherwise(self) -> bool:
        """Tell whether the policy in effect is another one."""
        return self.before != self.after


class Candidate(NamedTuple):
    """A policy that was read and found valid, as a file and as what decides. looked_at: see PolicySource.seen."""

    loaded: Loaded
    snapshot: Snapshot
    looked_at: Mapping[Path, Stamp]


class PolicySource:
    """Holds the snapshot in force.

    A host asks `changed` every second or so; then, and on SIGHUP, it calls `read`, and `activate` with what that
    returned. A bad file never takes effect.
    """

    def __init__(self, path: Path | str, environ: Mapping[str, str], loaded: Loaded | None = None) -> None:
        """Load the policy; raises PolicyError where there is none to begin with. environ is read at every reload.

        loaded: the file, where it was read already.
        """
        self.path = Path(path)
        self._environ = environ
        self._stamps: dict[Path, Stamp] = {}
        self._running: Mapping[str, Own] | None = None
        self._put(self.read() if loaded is None else Candidate(loaded, compile_policy(loaded), loaded.stamps))

    @property
    def snapshot(self) -> Snapshot:
        """The policy in force."""
        return self._snapshot

    @property
    def loaded(self) -> Loaded:
        """The file that the snapshot was compiled from."""
        return self._loaded

    def changed(self) -> bool:
        """Tell whether the policy or a file that it names has changed since it was last read; a few stat calls.

        Time, size and inode are compared, so that an editor's rename over the file and a file put in place of a
        missing one are seen. A bad policy is a change once, not every time it is asked.
        """
        return any(stamp(path) != known for path, known in list(self._stamps.items()))

    def read(self) -> Candidate:
        """Read and compile the file as it is now, and change nothing. Raises PolicyError."""
        # Files in force that the file does not come to name, or does not name any more, were looked at as well.
        watched = {path: stamp(path) for path in list(self._stamps)}
        try:
            loaded = load(self.path, self._environ, self._running)
        except PolicyError as error:
            raise PolicyError(error.problems, {**watched, **error.stamps}) from error
        return Candidate(loaded, compile_policy(loaded), {**watched, **loaded.stamps})

    def activate(self, candidate: Candidate) -> Change:
        """Put a policy in force: this one, whatever the file says by now."""
        before = self._snapshot.digest
        self._put(candidate)
        return Change(before, self._snapshot.digest)

    def seen(self, stamps: Mapping[Path, Stamp]) -> None:
        """Note that a change was looked at and refused, so that it counts once. stamps: of a PolicyError, or looked_at.

        The files in force stay watched: mending one of them may be what makes the new policy valid.
        """
        self._stamps = {**self._stamps, **stamps}

    def _put(self, candidate: Candidate) -> None:
        self._loaded, self._stamps = candidate.loaded, dict(candidate.loaded.stamps)
        self._running = candidate.loaded.stages  # from now on no other code is loaded
        # One reference is replaced: a request that has begun keeps the snapshot that it began with.
        self._snapshot = candidate.snapshot


class InForce:
    """The policy in force, once there is one. Apart from the addon, whose attributes mitmproxy reads one by one."""

    __slots__ = ("source",)

    def __init__(self) -> None:
        """Start without a policy."""
        self.source: PolicySource | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The policy in force; LookupError before there is one."""
        if self.source is None:
            raise LookupError("no policy is in force")
        return self.source.snapshot
