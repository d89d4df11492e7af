"""The policy in force: loaded, watched and swapped as a whole. Polled by the host; it has no clock and no thread."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mitmgate.policy.compiler import compile_policy
from mitmgate.policy.files import stamp
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.loader import load
from mitmgate.policy.problem import PolicyError, Problem, Stamp
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


class PolicySource:
    """Holds the snapshot in force.

    A host asks `changed` every second or so and calls `reload` then, and on SIGHUP. A bad file never takes effect.
    """

    def __init__(self, path: Path | str, environ: Mapping[str, str]) -> None:
        """Load the policy; raises PolicyError where there is none to begin with. environ is read at every reload."""
        self.path = Path(path)
        self._environ = environ
        self._stamps: dict[Path, Stamp] = {}
        self._put(load(path, environ))

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
        return any(stamp(path) != known for path, known in self._stamps.items())

    def reload(self) -> Change | tuple[Problem, ...]:
        """Load the file again and put it in force; a bad one changes nothing and its problems are returned."""
        try:
            return self.activate(load(self.path, self._environ))
        except PolicyError as error:
            self.seen(error.stamps)
            return error.problems

    def activate(self, loaded: Loaded) -> Change:
        """Put a loaded policy in force: this one, whatever the file says by now."""
        before = self._snapshot.digest
        self._put(loaded)
        return Change(before, self._snapshot.digest)

    def seen(self, stamps: Mapping[Path, Stamp]) -> None:
        """Note that a change was looked at and refused, so that it counts once.

        The files in force stay watched: mending one of them may be what makes the new policy valid.
        """
        for path in self._stamps:
            self._stamps[path] = stamp(path)
        self._stamps.update(stamps)

    def _put(self, loaded: Loaded) -> None:
        snapshot = compile_policy(loaded)
        self._loaded, self._stamps = loaded, dict(loaded.stamps)
        # One reference is replaced: a request that has begun keeps the snapshot that it began with.
        self._snapshot = snapshot


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
