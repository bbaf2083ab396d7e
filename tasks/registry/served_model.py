"""A registered member as MLflow loads it: prompts or messages in, text out. Code beside its weights; needs no hm3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

BATCH = 16
"""Prompts that are generated together."""

COLUMNS = ("messages", "prompt", "input", "inputs")
"""Names of the column to answer; a column without a name holds prompts."""


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
    ) -> list[str] | dict[str, Any]:
        """The text that follows each prompt, or the answer to a conversation.

        Args:
            context: what MLflow loaded.
            model_input: prompts in column ``prompt`` or a column without a name; or conversations in column
                ``messages``: one a row as a list of messages, or a single one with a message a row, as the chat form
                ``{"messages": […]}`` of a request arrives.
            params: ``max_new_tokens`` or ``max_tokens``, and ``stop``: strings before which the text ends.

        Returns:
            A text a row; for a single conversation a chat completion.

        Raises:
            MlflowException: there is no chat template, or the input has another form.
        """
        given = params or {}
        self._check(given)
        most = int(given.get("max_tokens") or given.get("max_new_tokens", 64))
        stop = [str(one) for one in given.get("stop", ()) if str(one)]
        column = next((name for name in COLUMNS if name in model_input.columns), model_input.columns[0])
        if isinstance(column, str) and column not in COLUMNS:
            raise refused(f"column {column!r}: unknown; prompts come in `prompt`, a conversation in `messages`")
        rows = list(model_input[column])
        if column != "messages":
            return self._texts([str(one) for one in rows], most, stop)
        if rows and isinstance(rows[0], dict):
            (text,) = self._texts([self._rendered(rows)], most, stop, rendered=True)
            answer = {"index": 0, "message": {"role": "assistant", "content": text}}
            return {"object": "chat.completion", "model": given.get("model") or "", "choices": [answer]}
        return self._texts([self._rendered(list(one)) for one in rows], most, stop, rendered=True)

    def _check(self, given: dict[str, Any]) -> None:
        if given.get("temperature"):
            raise refused(f"temperature {given['temperature']}: answers are greedy; leave it out or give 0")
        if given.get("stream"):
            raise refused("stream: answers come whole; leave it out")

    def _rendered(self, messages: list[Any]) -> str:
        """A conversation as the tokenizer's chat template writes it, up to where the answer begins."""
        if not self.tokenizer.chat_template:
            raise refused("messages: this model's tokenizer has no chat template; send the text as `prompt`")
        if not all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in messages):
            raise refused("messages: each needs a `role` and a `content`")
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _texts(self, prompts: list[str], most: int, stop: list[str], *, rendered: bool = False) -> list[str]:
        texts: list[str] = []
        for first in range(0, len(prompts), BATCH):
            texts += self._generate(prompts[first : first + BATCH], most, stop, rendered)
        return texts

    def _generate(self, prompts: list[str], most: int, stop: list[str], rendered: bool) -> list[str]:
        import torch

        # A chat template writes the special tokens itself.
        batch = self.tokenizer(
            prompts, return_tensors="pt", padding=True, return_token_type_ids=False, add_special_tokens=not rendered
        )
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


def refused(reason: str) -> MlflowException:
    """What a server answers with status 400 to a request that can't be met."""
    return MlflowException(reason, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(ServedModel())
