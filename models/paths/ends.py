"""What a family's own code does around its blocks: embedding, norm and head, and how it calls each block."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SOFTNESS = 0.5
"""Lead in logits at which an answer's token counts as three quarters given, where answers are to have slopes."""


@dataclass(frozen=True)
class Call:
    """How a family calls a block."""

    hidden: Tensor
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def replay(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The block's output ``(B, T, D)`` for other hidden states of the same tokens."""
        output: Tensor = block(hidden, *self.arguments, **self.options)
        return output


_CALLS: ContextVar[list[Call]] = ContextVar("_CALLS")


class Listener(nn.Module):
    """Stands in a block's place: notes what the family's own code hands to it, and lets the hidden states through."""

    def forward(self, hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Hidden states ``(B, T, D)``, unchanged."""
        _CALLS.get().append(Call(hidden, arguments, options))
        return hidden


class Ends(nn.Module):
    """What lies outside the blocks and belongs to a path's host: its whole model, with listeners for blocks."""

    def __init__(self, model: PreTrainedModel, norm: str, head: str) -> None:
        super().__init__()
        self.model = model
        self.norm = model.get_submodule(norm)
        self.head = model.get_submodule(head)
        self.vocabulary = int(getattr(model.config, "vocab_size", 0) or model.config.num_labels)
        self.softcap: float | None = getattr(model.config, "final_logit_softcapping", None)

    def embed(self, inputs: Tensor) -> tuple[Tensor, list[Call]]:
        """Hidden states ``(B, T, D)`` of token ids ``(B, T)``, or of images ``(B, C, H, W)``, and each layer's call."""
        calls: list[Call] = []
        token = _CALLS.set(calls)
        try:
            self.model.base_model(inputs, **({"use_cache": False} if self.model.can_generate() else {}))
        finally:
            _CALLS.reset(token)
        return calls[0].hidden, calls

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``(…, V)`` of the last block's hidden states ``(…, D)``."""
        logits: Tensor = self.head(self.norm(hidden))
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def leads(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood of targets ``(P,)`` under logits ``(P, V)``, and by how much each leads the likeliest other."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    index = target.unsqueeze(1)
    own = logits.gather(1, index).squeeze(1)
    others = logits.scatter(1, index, -torch.inf).amax(dim=1)
    return own - logits.logsumexp(dim=1), own - others
