"""A policy that has been read and found valid."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mitmgate.policy.document import Document
from mitmgate.policy.material import Material
from mitmgate.policy.model import Policy
from mitmgate.policy.problem import Problem, Stamp


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid policy with the material that it names. path: the file as it was given.

    warnings: what loading found that is no error; lint.lint finds more. document: where every member stands. stamps:
    the files that were read, the policy first, each as it was before it was read.
    """

    path: str
    policy: Policy
    material: Material
    document: Document
    warnings: tuple[Problem, ...]
    stamps: Mapping[Path, Stamp]
