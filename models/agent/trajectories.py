"""Scored paths as tensors: what the networks are trained on, offline and online."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.candidate import Candidate
from models.front import Array, own_preference
from models.search.environment import Actions, PathSpace
from models.search.reward import Reward


@dataclass(frozen=True)
class Trajectories:
    """N paths with T + 1 actions at most, STOP included (T = T_max), and what came of them."""

    actions: Tensor  # (N, T + 1), -1 behind STOP
    taken: Tensor  # (N, T + 1) bool, whether there is an action
    legal: Tensor  # (N, T + 1, A) bool; everything where there is no action, so that a policy is defined there
    depths: Actions  # (N,) layers
    costs: Array  # (N, K)

    def __len__(self) -> int:
        return len(self.actions)

    def take(self, index: npt.NDArray[np.int64]) -> Trajectories:
        """Those paths, in that order."""
        i = torch.from_numpy(index)
        return Trajectories(self.actions[i], self.taken[i], self.legal[i], self.depths[index], self.costs[index])

    def relabel(self, reward: Reward, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Preferences (N, R, K) for each path and its utility (N, R) under them (hindsight relabelling).

        The first half of the R = ``count`` are Dirichlet samples. The others are what the path itself serves best,
        mixed with up to as much of a Dirichlet sample: it would be the same R/2 times over without. With a ``count``
        of 0 nothing is relabelled: each path keeps one Dirichlet sample for good, R = 1.
        """
        if count == 0:
            digests = [zlib.crc32(row.tobytes()) for row in self.actions.numpy()]
            fixed = [np.random.default_rng(one).dirichlet(np.ones(self.costs.shape[1])) for one in digests]
            preferences = np.array(fixed)[:, None]
        else:
            shape = (len(self), count, self.costs.shape[1])
            samples = rng.dirichlet(np.ones(shape[2]), size=shape[:2])
            share = np.where(np.arange(count) < count // 2, 1.0, 0.5 * rng.random(shape[:2]))[..., None]
            preferences = share * samples + (1 - share) * own_preference(self.costs)[:, None]
        utility = reward.utility(self.costs[:, None], self.depths[:, None], preferences)
        return torch.from_numpy(preferences).float(), torch.from_numpy(utility).float()


def trajectories(space: PathSpace, reward: Reward, candidates: Sequence[Candidate], scores: Array) -> Trajectories:
    """Scored paths of a space: task scores (N, K_tasks)."""
    actions = space.encode(candidates)
    taken = torch.from_numpy(actions >= 0)
    depths = np.array([candidate.depth for candidate in candidates], dtype=np.int64)
    legal = torch.from_numpy(space.masks(actions)) | ~taken[:, :, None]
    return Trajectories(torch.from_numpy(actions), taken, legal, depths, reward.costs(scores, depths))
