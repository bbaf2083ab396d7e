"""Jobs of a pool (:class:`models.paths.pool.Job`): what is computed of candidates, in this process or in another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from models.candidate import Candidate
from models.front import Array
from models.paths.influence import block_influence
from models.paths.pool import Pool
from models.paths.prefix import Requests, path_likelihoods


@dataclass(frozen=True)
class PathLikelihoods:
    """What :func:`models.paths.prefix.path_likelihoods` gives for some requests."""

    requests: Requests
    shares: bool = False
    """Give shares in place of bools."""

    def run(
        self, pool: Pool, candidates: Sequence[Candidate], on_done: Callable[[float], None]
    ) -> list[tuple[Tensor, Tensor]]:
        """For each candidate ``(N,)`` log-likelihoods, and bools or shares."""
        return path_likelihoods(pool, candidates, self.requests, on_done, shares=self.shares)


@dataclass(frozen=True)
class Influence:
    """Block influence on some requests."""

    requests: tuple[Requests, ...]

    def run(self, pool: Pool, candidates: Sequence[Candidate], on_done: Callable[[float], None]) -> list[Array]:
        """Influence (T,) of each layer of each candidate."""
        found = []
        for candidate in candidates:
            found.append(block_influence(pool, candidate, self.requests))
            on_done(1)
        return found
