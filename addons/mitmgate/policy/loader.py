"""Load a policy file: every error in it at once, each with its line and column."""

from collections.abc import Mapping
from pathlib import Path

from mitmgate.policy import declared
from mitmgate.policy.checks import check
from mitmgate.policy.compiler import compile_policy
from mitmgate.policy.files import Files, UnreadableError
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.material import Reader
from mitmgate.policy.own_stages import Own, OwnStages
from mitmgate.policy.parsing import parse
from mitmgate.policy.problem import PolicyError, Problem, in_order
from mitmgate.policy.snapshot import Snapshot
from mitmgate.policy.validation import validate

__all__ = ["Loaded", "PolicyError", "Problem", "load", "load_snapshot"]


def load(path: Path | str, environ: Mapping[str, str], running: Mapping[str, Own] | None = None) -> Loaded:
    """Read, validate and check a policy, YAML or JSON, and read the files and variables that it names.

    running: at a reload, the stages of the operator's own that run; no other code is loaded then.
    Raises PolicyError with every problem where there is any error, and nothing else.
    """
    given = str(path)
    files = Files(Path(path).parent)
    try:
        text = files.read(Path(path).name).decode("utf-8-sig")
    except UnreadableError as error:
        raise PolicyError([Problem(given, 1, 1, "error", "", f"the policy {error}")], files.stamps) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise PolicyError(
            [Problem(given, line, column, "error", "", "the policy is not UTF-8")], files.stamps
        ) from error
    document = parse(text, given, environ)
    if document.value is None:
        problems = document.problems or [document.problem((), "the policy is empty", found="")]
        raise PolicyError(problems, files.stamps)
    policy, problems = validate(document)
    reader = Reader(document, files, environ)
    reader.read()
    own = OwnStages(document, files, running)
    own.read()
    read, unreadable = declared.read(reader)
    problems += [*document.problems, *check(document), *reader.problems, *own.problems, *unreadable]
    if policy is None or any(problem.severity == "error" for problem in problems):
        raise PolicyError(problems, files.stamps)
    return Loaded(given, policy, reader.material, document, in_order(problems), files.stamps, own.stages, read)


def load_snapshot(path: Path | str, environ: Mapping[str, str]) -> Snapshot:
    """Load and compile a policy, for hosts. Raises PolicyError as `load` does."""
    return compile_policy(load(path, environ))
