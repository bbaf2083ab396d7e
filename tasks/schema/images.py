"""What a profile says of images."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from tasks.schema.strict import Strict


class Images(Strict):
    """Images to be classified, and the head that does it. A text alone names the data."""

    data: str = Field(
        description="A data set that the made family brings, a folder that `datasets` reads, or hub:ORG/NAME@REVISION."
    )
    config: str | None = Field(None, description="Configuration of the data set, where it has several.")
    split: str = Field("test", description="Split from which items are drawn, unless search, selection and test exist.")
    image: str = Field("image", description="Column of the images.")
    label: str = Field("label", description="Column of the classes' numbers.")
    classes: tuple[str, ...] = Field((), description="Names of the classes; the data set's own if left out.")
    templates: tuple[str, ...] = Field(
        ("a photo of a {}.",), min_length=1, description="Texts that name a class to CLIP; `{}` stands for its name."
    )
    head: str | None = Field(
        None, description="File of heads (safetensors); the expert's own head, or one made of texts, if left out."
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"data": given} if isinstance(given, str) else given
