"""Image classification over paths: images are requests like others, and pass through the trie of ``prefix.py``.

An encoder's state of its first token is what a head reads: of a classifier behind the final norm, of CLIP's vision
tower projected and normalised (Radford et al. 2021), so that a head is the texts that name the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.functional import normalize

from models.paths.ends import SOFTNESS, Ends, leads
from models.paths.pool import Pool
from models.paths.prefix import CPU_TOKENS, GPU_TOKENS, Requests
from models.sources.heads import Head


@dataclass(frozen=True)
class ImageItems:
    """Images of one task, ready for the encoder."""

    pixels: Tensor
    """``(N, C, H, W)``."""
    labels: Tensor
    """Index of the right class of each, ``(N,)``."""
    head: Head


@dataclass(frozen=True)
class ImageBatch:
    """Images of one or several tasks; the head differs by task. Implements :class:`models.paths.prefix.Scorable`."""

    rows: Tensor
    """Which request each image is, ``(B,)``."""
    inputs: Tensor
    """Pixels, ``(B, C, H, W)``."""
    target: Tensor
    """Index of the right class, ``(B,)``."""
    heads: tuple[tuple[int, int, Head], ...]
    """First image, image behind the last, and their head."""
    texts: bool
    """Whether classes are texts in the space into which the encoder projects."""

    def to(self, device: torch.device) -> ImageBatch:
        """The same batch on a device."""
        heads = tuple((start, stop, head.to(device)) for start, stop, head in self.heads)
        return ImageBatch(self.rows, self.inputs.to(device), self.target.to(device), heads, self.texts)

    def real(self, hidden: Tensor) -> Tensor:
        """Every token, ``(B, T)`` bool: images need no padding."""
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)

    def answering(self, hidden: Tensor) -> Tensor:
        """The first token, which stands for the image, ``(B, T)`` bool."""
        found = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        found[:, 0] = True
        return found

    def likelihoods(self, ends: Ends, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Log-likelihood of the right class, and 1 where it is the likeliest, else 0; ``(B,)`` each."""
        found = features(ends, hidden, self.texts)
        values, right = [], []
        for start, stop, head in self.heads:
            logits, target = head.logits(found[start:stop]), self.target[start:stop]
            values.append(torch.log_softmax(logits, dim=-1).gather(1, target.unsqueeze(1)).squeeze(1).double())
            right.append(logits.argmax(dim=-1) == target)
        likelihood = torch.cat(values).cpu()
        finite = likelihood.isfinite()
        return likelihood.masked_fill(~finite, torch.nan), (torch.cat(right).cpu() & finite).double()

    def soft(self, ends: Ends, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Scorable``: a class is an answer of one token."""
        found = features(ends, hidden, self.texts)
        parts = [leads(head.logits(found[start:stop]), self.target[start:stop]) for start, stop, head in self.heads]
        likelihood, lead = (torch.cat(one) for one in zip(*parts, strict=True))
        return likelihood, torch.sigmoid(lead / SOFTNESS), lead > 0


def features(ends: Ends, hidden: Tensor, texts: bool) -> Tensor:
    """What a head reads ``(B, D)`` of the last layer's states ``(B, T, D')``; the first token stands for the image.

    Where classes are ``texts`` it is projected into their space.
    """
    if texts:
        return normalize(ends.logits(hidden[:, 0]).float(), dim=-1)
    normed: Tensor = ends.norm(hidden[:, 0])
    return normed


def image_tokens(pool: Pool) -> int:
    """Tokens that the encoder makes of an image: its patches, and the one that stands for it."""
    config = pool.skeleton.config
    return int((config.image_size // config.patch_size) ** 2 + 1)


def image_requests(pool: Pool, tasks: Sequence[ImageItems]) -> Requests:
    """The images of several tasks in batches, one task behind the other, so that a batch may hold images of two."""
    tokens = CPU_TOKENS if pool.device.type == "cpu" else GPU_TOKENS
    size = max(1, tokens // image_tokens(pool))
    ends = list(accumulate((len(one.labels) for one in tasks), initial=0))
    texts = pool.architecture.classes == "texts"
    batches = []
    for first in range(0, ends[-1], size):
        last = min(first + size, ends[-1])
        spans = [(max(low, first), min(high, last), low) for low, high in pairwise(ends)]
        within = [(start, stop, low, one) for (start, stop, low), one in zip(spans, tasks, strict=True) if start < stop]
        inputs = _joined([one.pixels[start - low : stop - low] for start, stop, low, one in within]).to(pool.dtype)
        target = _joined([one.labels[start - low : stop - low] for start, stop, low, one in within])
        heads = tuple((start - first, stop - first, one.head) for start, stop, _, one in within)
        batches.append(ImageBatch(torch.arange(first, last), inputs, target, heads, texts))
    return Requests(ends[-1], tuple(batches))


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    """Pieces behind each other; a single one is not copied."""
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))
