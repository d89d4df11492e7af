"""A policy as replay takes it: without the secrets, keys and certificates that only production has.

No signature is checked with an issuer's secret, no TLS connection is made and no assertion is signed, so what is
missing of that is noted, not an error. Everything else is as in `load`: a policy with any other error is refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mitmgate.core.rules import Issuer, KeySource, named
from mitmgate.keys.material import problem as key_problem
from mitmgate.policy import declared
from mitmgate.policy.checks import check
from mitmgate.policy.compiler import compile_policy
from mitmgate.policy.document import Document
from mitmgate.policy.files import MAX_BYTES, Files, UnreadableError
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.material import Reader
from mitmgate.policy.own_stages import OwnStages
from mitmgate.policy.parsing import parse
from mitmgate.policy.problem import Location, Problem, dotted, in_order
from mitmgate.policy.snapshot import Snapshot
from mitmgate.policy.validation import validate
from mitmgate.usage import UserError

_ABSENT = KeySource("jwks_url")
"""Keys that are not there: every token that needs them is refused with keys-unavailable."""


@dataclass(frozen=True, slots=True)
class OfflinePolicy:
    """A policy to decide with. ignored: lower-case header names that no comparison looks at. notes: what is missing."""

    loaded: Loaded
    snapshot: Snapshot
    ignored: frozenset[bytes]
    notes: tuple[str, ...]

    @property
    def path(self) -> str:
        """The policy file, as it was given."""
        return self.loaded.path


def load_offline(
    path: str,
    environ: Mapping[str, str],
    jwks: Mapping[str, str] | None = None,
    changes: Iterable[tuple[Location, object]] = (),
) -> OfflinePolicy:
    """Load a policy for replay. jwks: files with JWK sets by issuer name, in place of what the policy names.

    changes: values that take the place of what the file says at these members. Raises UserError with every error.
    """
    files = Files(Path(path).parent)
    try:
        text = files.read(Path(path).name).decode("utf-8-sig")
    except (UnreadableError, UnicodeDecodeError) as error:
        reason = str(error) if isinstance(error, UnreadableError) else "is not UTF-8"
        raise UserError(f"{path}: the policy {reason}") from error
    document = parse(text, path, environ)
    if document.value is None:
        raise UserError("\n".join(map(str, document.problems)) or f"{path}: the policy is empty")
    for location, changed in changes:
        put(document, location, changed)
    policy, problems = validate(document)
    reader = Reader(document, files, environ)
    reader.read()
    own = OwnStages(document, files)
    own.read()
    read, unreadable = declared.read(reader)
    problems += [*document.problems, *check(document), *own.problems, *unreadable]
    problems += [known for known in reader.problems if not _is_missing(known)]
    errors = [known for known in in_order(problems) if known.severity == "error"]
    if policy is None or errors:
        raise UserError("\n".join(map(str, errors)))
    material = reader.material
    notes = [_note(known) for known in reader.problems if _is_missing(known)]
    for name in policy.identity.issuers:
        material.issuers.setdefault(name, _ABSENT)
    loaded = Loaded(path, policy, material, document, (), files.stamps, own.stages, read)
    snapshot = compile_policy(loaded)
    assertion = snapshot.forward.assertion
    snapshot = replace(
        unsigned(snapshot),
        issuers={name: _with_keys(issuer, (jwks or {}).get(named(name))) for name, issuer in snapshot.issuers.items()},
    )
    for name in jwks or {}:
        if name not in policy.identity.issuers:
            raise UserError(f"--jwks {name}: {path} has no such issuer; issuers: {', '.join(policy.identity.issuers)}")
    ignored = frozenset({assertion.header} if assertion is not None else ())
    return OfflinePolicy(loaded, snapshot, ignored, tuple(notes))


def unsigned(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot that signs no assertion: it costs more than the whole decision, and no two compare."""
    return replace(snapshot, forward=replace(snapshot.forward, assertion=None))


def put(document: Document, location: Location, changed: object) -> None:
    """Set a member of a document; the mappings on the way to it are made where the file leaves them out."""
    inner = document.value
    for step in location[:-1]:
        if isinstance(inner, dict) and step not in inner:
            inner[step] = {}
        inner = inner[step] if isinstance(inner, dict) else None
    if not isinstance(inner, dict):
        raise UserError(f"{document.file}: {dotted(location)}: there is no such member")
    inner[location[-1]] = changed


def _is_missing(problem: Problem) -> bool:
    """Tell whether a problem is that material is not here, and no more."""
    return problem.severity == "warning" or "is not set" in problem.message or "can't be read" in problem.message


def _note(problem: Problem) -> str:
    return f"{problem.file}:{problem.line}: {problem.path}: {problem.message}"


def _with_keys(issuer: Issuer, path: str | None) -> Issuer:
    if path is None:
        return issuer
    try:
        with open(path, "rb") as file:
            source = KeySource("jwks", file.read(MAX_BYTES))
    except OSError as error:
        raise UserError(f"--jwks {issuer.name}={path}: {(error.strerror or str(error)).lower()}") from error
    problem = key_problem(source, issuer.algorithms)
    if problem is not None:
        raise UserError(f"--jwks {issuer.name}={path}: {problem}")
    return replace(issuer, keys=source)


def parse_jwks(options: Iterable[str]) -> dict[str, str]:
    """Read `--jwks NAME=FILE` options. Raises UserError."""
    parsed = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not name or not equals or not path:
            raise UserError(f"--jwks {option}: must be NAME=FILE, like corp=jwks.json")
        parsed[name] = path
    return parsed
