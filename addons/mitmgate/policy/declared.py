"""What the gateway's stages declare of the policy: the members that are theirs, and the models that have them all.

Stages stand above the policy, so that nothing here names them. chain.py hands them over when it is imported, and who
reads a policy before that has it imported: every entry point sees the same members.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

from pydantic import Field, create_model

from mitmgate.policy.document import Document
from mitmgate.policy.material import Reader
from mitmgate.policy.model import Policy
from mitmgate.policy.model_routes import Route
from mitmgate.policy.problem import Problem
from mitmgate.policy.section import Section

if TYPE_CHECKING:  # it has stages of the operator's own, which have their places among these
    from mitmgate.policy.loaded import Loaded

CHAIN: Final = "mitmgate.chain"


class Declares(Protocol):
    """A stage's class (pipeline.stage.Stage), as far as the policy is concerned."""

    name: str
    section: type[Section]
    route_section: type[Section]

    def read(self, reader: Reader) -> tuple[object, Sequence[Problem]]:
        """Read what its sections name, and say what is wrong with it."""
        ...

    def compiled(self, loaded: "Loaded") -> object:
        """Make what the stage decides by."""
        ...

    def mistakes(self, document: Document) -> Iterator[Problem]:
        """Yield errors that its sections can't see."""
        ...

    def fields(self, document: Document) -> Iterator[tuple[str, str]]:
        """Yield the fields of requests that it writes, and in whose name."""
        ...


_STAGES: Final[list[Declares]] = []
_POLICY: Final[list[type[Policy]]] = []


def declare(stages: Sequence[Declares]) -> None:
    """Take all stages of the gateway, in their order. Raises ValueError where two declare one member."""
    for base, models in ((Policy, [one.section for one in stages]), (Route, [one.route_section for one in stages])):
        taken = dict.fromkeys(base.model_fields, "the policy")
        for stage, model in zip(stages, models, strict=True):
            for member in model.model_fields.keys() - Section.model_fields.keys():
                if member in taken:
                    raise ValueError(f"{stage.name} declares the member {member}, which {taken[member]} has")
                taken[member] = stage.name
    _STAGES[:] = stages
    _POLICY[:] = [_policy([one.section for one in stages], [one.route_section for one in stages])]


def stages() -> Sequence[Declares]:
    """Return the classes of all stages, in their order."""
    if not _STAGES:
        import_module(CHAIN)
    return _STAGES


def policy_model() -> type[Policy]:
    """Return the model of a whole policy: every mistake in a member of a stage has its place as in any other."""
    if not _POLICY:
        import_module(CHAIN)
    return _POLICY[0]


def read(reader: Reader) -> tuple[dict[str, object], list[Problem]]:
    """Let every stage read what its sections name; return that by the stage's name, and what is wrong with it."""
    found, problems = dict[str, object](), list[Problem]()
    for stage in stages():
        found[stage.name], wrong = stage.read(reader)
        problems += wrong
    return found, problems


def fields(document: Document) -> Iterator[tuple[str, str]]:
    """Yield the fields of requests that stages write, as the policy has them, and in whose name each is written.

    They are taken from clients on every route, and nobody else writes them.
    """
    for stage in stages():
        yield from stage.fields(document)


def of[Declared: Section](section: Section, declared: type[Declared]) -> Declared:
    """Return a policy, or a route, as what has the members that a stage declares. Raises TypeError."""
    if not isinstance(section, declared):
        raise TypeError(f"no stage of the chain declares {declared.__name__}")
    return section


def _policy(sections: Sequence[type[Section]], of_routes: Sequence[type[Section]]) -> type[Policy]:
    """Put the members of stages behind those that every policy has, in the order of the chain."""
    route, policy = _with(Route, of_routes), Policy
    if route is not Route:
        routes = Field(min_length=1, description=Policy.model_fields["routes"].description)
        policy = create_model("Policy", __base__=Policy, __doc__=Policy.__doc__, routes=(tuple[route, ...], routes))  # type: ignore[valid-type]  # made here
    return _with(policy, sections)


def _with[Base: Section](base: type[Base], sections: Sequence[type[Section]]) -> type[Base]:
    declared: tuple[type[Any], ...] = tuple(dict.fromkeys(one for one in reversed(sections) if one is not Section))
    if not declared:
        return base
    made: type[Base] = create_model(base.__name__, __base__=(*declared, base), __doc__=base.__doc__)
    return made
