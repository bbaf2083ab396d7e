"""A registered member as MLflow loads it: prompts in, text out. Stored as code beside its weights; needs no hm3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

BATCH = 16
"""Prompts that are generated together."""


class ServedModel(PythonModel):  # type: ignore[misc]
    """Greedy generation with a Hugging Face checkpoint."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint, on the GPU if there is one.

        Raises:
            RuntimeError: the version was registered by its recipe alone.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(context.artifacts["member"])
        if not (folder / "config.json").is_file():
            raise RuntimeError("registered without weights: `hm3 merge recipe.yaml OUT` builds it from its recipe.yaml")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype="auto")
        self.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()  # inference mode

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """The text that follows each prompt.

        Args:
            context: what MLflow loaded.
            model_input: prompts in column ``prompt``, or else in the only column.
            params: ``max_new_tokens``, and ``stop``: strings before which the text ends.
        """
        column = "prompt" if "prompt" in model_input.columns else model_input.columns[0]
        prompts = [str(one) for one in model_input[column]]
        given = params or {}
        most, stop = int(given.get("max_new_tokens", 64)), [str(one) for one in given.get("stop", ()) if str(one)]
        texts: list[str] = []
        for first in range(0, len(prompts), BATCH):
            texts += self._generate(prompts[first : first + BATCH], most, stop)
        return texts

    def _generate(self, prompts: list[str], most: int, stop: list[str]) -> list[str]:
        import torch

        batch = self.tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        batch = batch.to(self.model.device)
        stopping = {"stop_strings": stop, "tokenizer": self.tokenizer} if stop else {}
        with torch.inference_mode():
            tokens = self.model.generate(
                **batch,
                do_sample=False,
                max_new_tokens=most,
                pad_token_id=self.tokenizer.pad_token_id,
                **stopping,
            )
        new = tokens[:, batch["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text[: min([len(text), *(text.find(one) for one in stop if one in text)])] for text in texts]


mlflow.models.set_model(ServedModel())
