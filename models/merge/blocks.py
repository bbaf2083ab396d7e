"""Blocks of a recipe beside its models: the vocabulary of the result, and how the seams of a path are repaired."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Dtype = Literal["float32", "bfloat16", "float16", "float64"]


class Strict(BaseModel):
    """Every block refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenRow(Strict):
    """The row of a token, which may be another one, in a model."""

    kind: Literal["model_token"]
    model: str
    token: str | None = None
    token_id: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _names_one(self) -> TokenRow:
        if (self.token is None) == (self.token_id is None):
            raise ValueError("give either `token` or `token_id`")
        return self


class Zero(Strict):
    """A row of zeros."""

    kind: Literal["zero"]


class Token(Strict):
    """Row of a token in models that lack it, or with ``force`` in all."""

    source: TokenRow | Zero | str
    force: bool = False


class TokenizerBlock(Strict):
    """What the vocabulary is made of, where ``tokenizer_source`` does not say enough."""

    source: str = "union"
    tokens: dict[str, Token] = {}
    pad_to_multiple_of: Annotated[int, Field(ge=1, le=2**16)] | None = None


class Repair(Strict):
    """How the seams of a path are repaired; see ``models.paths.repair``. mergekit has no such block."""

    rows: str
    """File of the calibration items."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Digest of the items that are used."""
    tokens: Annotated[int, Field(ge=1)]
    """The first items that hold so many tokens are used."""
    ridge: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    dtype: Dtype = "float32"
    """In which the models read the items."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Layers of the result that are refitted."""
    in_turn: bool = False
    """Whether each is refitted behind those before it, of the cut model; else all of the uncut one."""
