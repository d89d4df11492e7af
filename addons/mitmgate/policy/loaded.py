"""A policy that has been read and found valid."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mitmgate.policy.document import Document
from mitmgate.policy.material import Material
from mitmgate.policy.model import Policy
from mitmgate.policy.own_stages import Own
from mitmgate.policy.problem import Problem, Stamp


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid policy with the material that it names. path: the file as it was given.

    warnings: what loading found that is no error; review.lint finds more. document: where every member stands. stamps:
    the files that were read, the policy first, each as it was before it was read. stages: of the operator's own, by
    name, in the order of the file. read: what the gateway's stages have read, by the stage's name.
    """

    path: str
    policy: Policy
    material: Material
    document: Document
    warnings: tuple[Problem, ...]
    stamps: Mapping[Path, Stamp]
    stages: Mapping[str, Own] = field(default_factory=dict)
    read: Mapping[str, object] = field(default_factory=dict)
