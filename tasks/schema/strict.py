"""What every block of the schema has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Every block refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
