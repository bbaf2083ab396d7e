"""What a path is worth: the utility of its scores and depth under a preference (method.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.front import Array, Scale, scalarise

LAYERS = "layers"
"""Name of the depth objective, T/L, which is known exactly and so never predicted. It comes last where it is one."""


@dataclass(frozen=True)
class Reward:
    """u_λ(f, α) = -max_k λ_k c_k - ρ Σ_k λ_k c_k - β₁ T/L, with β₁ = 0 where depth is an objective of its own.

    K counts all objectives, K_tasks those that are predicted.
    """

    scale: Scale
    layers: int
    depth_cost: float = 0.02
    linear: bool = False
    """The paper's reward instead: -Σ_k λ_k c_k - β₁ T/L. An ablation: it misses the concave parts of a front."""

    @property
    def tasks(self) -> int:
        """K_tasks."""
        return len(self.scale.names) - self.depth_counts

    @property
    def depth_counts(self) -> bool:
        """Whether depth is an objective of its own."""
        return self.scale.names[-1] == LAYERS

    @property
    def shortest(self) -> int:
        """Layers of the shortest paths that are worth searching: nothing is gained below the ideal depth."""
        return max(1, int(self.scale.ideal[-1] * self.layers)) if self.depth_counts else self.layers

    def wants_cuts(self, preferences: Array) -> bool:
        """Whether fewer layers are worth anything under some preference (M, K)."""
        return self.depth_counts and bool(preferences[:, -1].any())

    def scores(self, task_scores: npt.ArrayLike, depths: npt.ArrayLike) -> Array:
        """Scores (..., K) from task scores (..., K_tasks) and depths (...,) in layers."""
        tasks = np.asarray(task_scores, dtype=np.float64)
        if not self.depth_counts:
            return tasks
        relative = np.broadcast_to(np.asarray(depths) / self.layers, tasks.shape[:-1])
        return np.concatenate([tasks, relative[..., None]], axis=-1)

    def costs(self, task_scores: npt.ArrayLike, depths: npt.ArrayLike) -> Array:
        """Costs (..., K), clipped at 1.1, from task scores (..., K_tasks) and depths (...,) in layers."""
        return self.scale.costs(self.scores(task_scores, depths))

    def utility(self, costs: Array, depths: npt.ArrayLike, preferences: Array) -> Array:
        """u_λ (...,) of costs (..., K) and depths (...,) under preferences (..., K), element by element."""
        u = -(preferences * costs).sum(axis=-1) if self.linear else scalarise(costs, preferences)
        return u if self.depth_counts else u - self.depth_cost * np.asarray(depths) / self.layers
