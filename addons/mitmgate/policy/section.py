"""The base of every mapping in the policy's model."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator


class Section(BaseModel):
    """A mapping of the policy: no member beside its own, frozen once it is valid."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _note(cls, value: Any, info: ValidationInfo) -> Any:
        """Note which section reads this mapping, so that an unknown member can be answered with the nearest one."""
        if isinstance(info.context, dict):
            info.context[id(value)] = cls
        return value
