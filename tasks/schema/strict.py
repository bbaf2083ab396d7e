"""What every block of the schema has in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from models.text import plain

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Every block refuses keys that it does not know, and characters that nobody sees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _visible(cls, value: Any) -> Any:
        texts = value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
        texts = [*texts, *value.values()] if isinstance(value, Mapping) else texts
        if any(isinstance(text, str) and text != plain(text) for text in texts):
            raise ValueError("holds control characters or such as turn the direction of writing; remove them")
        return value
