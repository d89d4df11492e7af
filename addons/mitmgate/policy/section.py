"""The base of every mapping in the policy's model."""

from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    model_validator,
)

from mitmgate.policy.problem import Code, nearest
from mitmgate.policy.scalars import Text, wrong


def _code(text: str) -> str:
    if text not in set(Code) or text == Code.NOTHING_TO_ACKNOWLEDGE:
        raise wrong("no warning has this code", nearest(text, Code) or "`check` shows each warning's code in brackets")
    return str(text)


class Section(BaseModel):
    """A mapping of the policy: no member beside its own, frozen once it is valid.

    A docstring below a member is its description, which schema.py reads: pydantic would parse sources at each start.
    Validators are built when something is validated first, and so for the whole policy once.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    acknowledge: dict[Annotated[str, Strict(), AfterValidator(_code)], Text] = Field(default={}, exclude=True)
    """Warnings of `check` about this mapping, and what is in it, that are meant: their codes, each with the reason."""

    @model_validator(mode="before")
    @classmethod
    def _note(cls, value: Any, info: ValidationInfo) -> Any:
        """Note which section reads this mapping, so that an unknown member can be answered with the nearest one."""
        if isinstance(info.context, dict):
            info.context[id(value)] = cls
        return value
