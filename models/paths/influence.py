"""Block influence: how much each layer of a path turns the hidden states that pass it (ShortGPT, Men et al. 2025).

BI_i = 1 - E cos(x_i, x_{i+1}) over all tokens, x_i and x_{i+1} being the residual stream before and behind layer i. A
layer of small influence does little, so it can be left out (their Eq. 1 and section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from models.candidate import Candidate
from models.front import Array
from models.paths.pool import Pool
from models.paths.prefix import Requests


def block_influence(pool: Pool, candidate: Candidate, requests: Iterable[Requests]) -> Array:
    """Influence (T,) of each layer of a path on the tokens of some requests; NaN where hidden states are not finite.

    Raises:
        BadInput: the candidate can't be built from the pool.
        ValueError: there are no tokens.
    """
    pool.check(candidate)
    ends, total, count = pool.ends(candidate.host), np.zeros(candidate.depth), 0
    with torch.inference_mode():
        for batch in (one.to(pool.device) for some in requests for one in some.batches):
            hidden, calls = ends.embed(batch.inputs)
            real = batch.real(hidden)
            count += int(real.sum())
            for position, (model, layer) in enumerate(candidate.path):
                after = calls[layer].replay(pool.block(model, layer), hidden)
                cosine = cosine_similarity(hidden.float(), after.float(), dim=-1)
                total[position] += float(cosine[real].double().sum())
                hidden = after
    if count == 0:
        raise ValueError("there are no tokens to measure block influence on")
    return 1 - total / count


@dataclass(frozen=True)
class Influence:
    """The job (:class:`models.paths.pool.Job`) of :func:`block_influence` on some requests."""

    requests: tuple[Requests, ...]

    def run(self, pool: Pool, candidates: Sequence[Candidate], on_done: Callable[[float], None]) -> list[Array]:
        """Influence (T,) of each layer of each candidate."""
        found = []
        for candidate in candidates:
            found.append(block_influence(pool, candidate, self.requests))
            on_done(1)
        return found
