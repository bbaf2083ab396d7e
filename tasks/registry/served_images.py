"""A registered encoder of images as MLflow loads it: images in, a label for each task out. Needs no hm3."""

from __future__ import annotations

import base64
import binascii
import io
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

BATCH = 64
"""Images that are classified together."""


class ServedImages(PythonModel):  # type: ignore[misc]
    """Classification with a Hugging Face checkpoint and the heads that lie beside it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint, on the GPU if there is one.

        Raises:
            RuntimeError: the version was registered by its recipe alone.
        """
        import torch
        from safetensors.torch import load_file
        from transformers import AutoImageProcessor, CLIPVisionModelWithProjection, ViTForImageClassification

        folder = Path(context.artifacts["member"])
        if not (folder / "config.json").is_file():
            raise RuntimeError("registered without weights: `hm3 merge recipe.yaml OUT` builds it from its recipe.yaml")
        self.texts = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"].startswith("clip")
        family = CLIPVisionModelWithProjection if self.texts else ViTForImageClassification
        self.model = family.from_pretrained(folder, use_safetensors=True, dtype="auto")
        self.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()  # inference mode
        self.processor = AutoImageProcessor.from_pretrained(str(folder), backend="pil")
        self.heads = load_file(folder / "heads.safetensors", device=str(self.model.device))
        self.classes = json.loads((folder / "heads.json").read_text(encoding="utf-8"))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """The likeliest class of each image, by task.

        Args:
            context: what MLflow loaded.
            model_input: images in column ``image`` or the only one: each a file (PNG, JPEG, …) in base64, or nested
                lists of grey or RGB values from 0 to 255.
            params: ``task``: answer to this one alone; ``scores``: give probabilities in place of labels.

        Returns:
            A column a task, a row an image: a label, or a dictionary of all labels with their probabilities.

        Raises:
            MlflowException: there is no such task, or an image can't be read.
        """
        given = params or {}
        wanted = [str(given["task"])] if given.get("task") else list(self.classes)
        if wanted[0] not in self.classes:
            raise refused(f"task {wanted[0]!r}: unknown; there are {', '.join(self.classes)}")
        column = "image" if "image" in model_input.columns else model_input.columns[0]
        given_images = list(model_input[column])
        if len(given_images) == 1 and np.ndim(given_images[0]) in (1, 4):  # so arrives {"image": [several]}
            given_images = list(given_images[0])
        images = [picture(one) for one in given_images]
        rows: list[dict[str, Any]] = []
        for first in range(0, len(images), BATCH):
            rows += self._answers(images[first : first + BATCH], wanted, bool(given.get("scores")))
        return pd.DataFrame(rows, columns=wanted)

    def _answers(self, images: list[Any], tasks: list[str], scores: bool) -> list[dict[str, Any]]:
        import torch

        pixels = torch.cat([self.processor(one, return_tensors="pt").pixel_values for one in images])
        rows: list[dict[str, Any]] = [{} for _ in images]
        with torch.inference_mode():
            features = self._features(pixels.to(self.model.device, self.model.dtype)).float()
            for task in tasks:
                weight, bias = self.heads[f"{task}.weight"], self.heads.get(f"{task}.bias")
                logits = float(self.heads[f"{task}.scale"]) * (features @ weight.T)
                logits = logits if bias is None else logits + bias
                for row, values in zip(rows, logits.softmax(-1).tolist(), strict=True):
                    named = dict(zip(self.classes[task], values, strict=True))
                    row[task] = named if scores else max(named, key=lambda name: named[name])
        return rows

    def _features(self, pixels: Any) -> Any:
        """What the heads read, ``(B, D)``."""
        import torch

        if self.texts:
            return torch.nn.functional.normalize(self.model(pixel_values=pixels).image_embeds.float(), dim=-1)
        return self.model.base_model(pixel_values=pixels).last_hidden_state[:, 0]


def picture(given: Any) -> Any:
    """An image in colour, of a file in base64 or of numbers.

    Raises:
        MlflowException: it is neither.
    """
    from PIL import Image

    try:
        if isinstance(given, str | bytes):
            data = base64.b64decode(given, validate=True) if isinstance(given, str) else given
            with Image.open(io.BytesIO(data)) as opened:
                return opened.convert("RGB")
        return Image.fromarray(np.asarray(given).astype(np.uint8)).convert("RGB")
    except (binascii.Error, OSError, TypeError, ValueError) as error:
        raise refused(f"image: neither a file in base64 nor rows of numbers ({error})") from None


def refused(reason: str) -> MlflowException:
    """What a server answers with status 400 to a request that can't be met."""
    return MlflowException(reason, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(ServedImages())
