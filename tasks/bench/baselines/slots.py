"""Paths as an array of switches: the data-flow space of evolutionary model merging (Akiba et al. 2024, section 3.2).

All layers of all models of the pool are laid out in sequence, r times over, and a switch says for each whether it takes
part. The sequence here goes from layer to layer and lists the models at each, where the paper's goes from model to
model: so one switch skips or repeats a layer and two swap its source, while a model-by-model sequence has to move the
rest of the path to its next repetition for that. Going back is what the repetitions allow, in either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from models.candidate import Candidate
from models.search.environment import Actions, PathSpace

Switches = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Slots:
    """The switches of a space of paths."""

    space: PathSpace

    @cached_property
    def actions(self) -> Actions:
        """The action (D,) that each switch adds to a path; D = r L M, r being how often a layer index may be used."""
        models, layers = len(self.space.models), self.space.layers
        once = np.arange(models * layers).reshape(models, layers).T.ravel()
        return np.tile(once, self.space.rules.repeats)

    def __len__(self) -> int:
        """D."""
        return len(self.actions)

    def decode(self, switches: Switches) -> Candidate:
        """The legal path of switches (D,): those that are on, in order, without those that the path rules forbid.

        Where the path may not stop behind the last of them, it goes on forward in the same model until it may.
        """
        prefix: list[int] = []
        legal = self._legal(prefix)
        for action in self.actions[switches]:
            if legal[action]:
                prefix.append(int(action))
                legal = self._legal(prefix)
        while not legal[self.space.stop]:
            model, layer = divmod(prefix[-1], self.space.layers) if prefix else (0, -1)
            ahead = np.flatnonzero(legal[model * self.space.layers :][layer + 1 : self.space.layers])
            prefix.append(model * self.space.layers + layer + 1 + int(ahead[0]))
            legal = self._legal(prefix)
        return self.space.decode(prefix)

    def encode(self, candidate: Candidate) -> Switches | None:
        """The switches (D,) of a path, or None if no switches give it."""
        switches = np.zeros(len(self), dtype=bool)
        if not self.space.contains(candidate):
            return None
        slot = -1
        for action in self.space.encode([candidate])[0][: candidate.depth]:
            later = np.flatnonzero(self.actions[slot + 1 :] == action)
            if len(later) == 0:
                return None
            slot += 1 + int(later[0])
            switches[slot] = True
        return switches if self.decode(switches) == candidate else None

    def _legal(self, prefix: list[int]) -> Switches:
        return np.asarray(self.space.legal(np.array([prefix], dtype=np.int64).reshape(1, -1))[0])
