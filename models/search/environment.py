"""The Markov decision process over inference paths (method.md, section 4).

A state is a prefix of a path, an action appends one source layer (m, l) or STOPs. Transitions are deterministic, the
reward comes with STOP. Action a = m·L + l for model m of the pool and layer l, and STOP = M·L.

A path determines its host: the pool model that gives most of its layers, ties to the one that comes first. So the
identity path of a model is that model, and embedding, final norm and head fit most of what lies between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.candidate import Candidate, SourceLayer

Actions = npt.NDArray[np.int64]
"""Action sequences (N, T), filled up with -1 where a sequence has ended or is still open."""
Mask = npt.NDArray[np.bool_]

UNREACHABLE = 10**6


@dataclass(frozen=True)
class PathRules:
    """Which paths are legal. ``mask="none"`` lifts every bound but the length."""

    mask: Literal["default", "none"] = "default"
    start: int = 2  # last layer at which a path may start
    end: int = 2  # a path may stop at one of so many last layers
    forward: int = 4  # longest jump forward, in layers; 1 is the next layer
    backward: int = 7  # longest jump backward, in layers
    repeats: int = 2  # how often a layer index may be used, whatever the model
    stretch: float = 1.25  # longest path over the number of layers of the base


@dataclass(frozen=True)
class PathSpace:
    """All legal paths over the layers of some models."""

    models: tuple[str, ...]
    layers: int
    rules: PathRules = PathRules()

    @property
    def stop(self) -> int:
        """The action STOP."""
        return len(self.models) * self.layers

    @property
    def actions(self) -> int:
        """Number of actions A, STOP included."""
        return self.stop + 1

    @property
    def longest(self) -> int:
        """T_max: layers of the longest path. Its action sequence has one more, STOP."""
        return int(self.rules.stretch * self.layers + 1e-9)

    def legal(self, prefixes: Actions) -> Mask:
        """Legal actions after each prefix (B, T) of a path: (B, A). None follows STOP.

        A source layer is legal only if STOP can still be reached within ``longest`` layers, so an open prefix has at
        least one legal action. Going on forward is enough to decide that: whatever lies behind a jump backward is
        reached as fast without it.
        """
        layer = self._layer_indices(prefixes)
        used = (layer[:, :, None] == np.arange(self.layers)).sum(axis=1)
        return self._legal(layer, used, (prefixes == self.stop).any(axis=1), np.arange(len(prefixes)))

    def masks(self, actions: Actions) -> Mask:
        """Legal actions at every step of padded action sequences (N, T): (N, T, A). All prefixes in one go."""
        layer, is_stop = self._layer_indices(actions), actions == self.stop
        is_used = layer[:, :, None] == np.arange(self.layers)
        used = is_used.cumsum(axis=1) - is_used
        ended = is_stop.cumsum(axis=1) > is_stop
        path = np.arange(len(actions)).repeat(actions.shape[1])
        legal = self._legal(layer, used.reshape(-1, self.layers), ended.ravel(), path)
        return legal.reshape(*actions.shape, self.actions)

    def _layer_indices(self, actions: Actions) -> Actions:
        """Layer of each action (N, T), -1 where it is none."""
        return np.where((actions >= 0) & (actions != self.stop), actions % self.layers, -1)

    def _legal(self, layer: Actions, used: Actions, ended: Mask, path: Actions) -> Mask:
        """Legal actions (B, A) after beginnings of paths.

        Args:
            layer: layer indices of the paths (N, T).
            used: how often each beginning uses each layer index (B, L).
            ended: whether it has a STOP (B,).
            path: of which path it is the beginning (B,).
        """
        every, length = np.arange(self.layers), used.sum(axis=1)
        left = self.longest - length
        if self.rules.mask == "none":
            step = np.broadcast_to((left > 0)[:, None], used.shape)
            stop = length > 0
        else:
            last = np.pad(layer, ((0, 0), (1, 0)), constant_values=-1)[path, length]
            jump = every - last[:, None]
            near = (jump <= self.rules.forward) & (-jump <= self.rules.backward)
            near = np.where(last[:, None] < 0, every <= self.rules.start, near)
            free = used < self.rules.repeats
            step = near & free & (1 + self._steps_to_end(free) <= left[:, None])
            stop = last >= max(self.layers - self.rules.end, 0)
        step, stop = step & ~ended[:, None], stop & ~ended
        return np.concatenate([np.tile(step, (1, len(self.models))), stop[:, None]], axis=1)

    def _steps_to_end(self, free: Mask) -> Actions:
        """(B, L): layers still to take after layer l until STOP is legal, through layers that are free (B, L)."""
        steps = np.full(free.shape, UNREACHABLE)
        for layer in reversed(range(self.layers)):
            if layer >= self.layers - self.rules.end:
                steps[:, layer] = 0
                continue
            ahead = slice(layer + 1, layer + 1 + self.rules.forward)
            steps[:, layer] = 1 + np.where(free[:, ahead], steps[:, ahead], UNREACHABLE).min(axis=1)
        return steps

    def are_legal(self, actions: Actions) -> Mask:
        """Whether each padded action sequence (N, T) is a whole legal path that ends with STOP: (N,)."""
        taken = np.take_along_axis(self.masks(actions), np.maximum(actions, 0)[:, :, None], axis=2)[:, :, 0]
        ended = (actions == self.stop).any(axis=1)
        return np.asarray(ended & (taken | (actions < 0)).all(axis=1))

    def host(self, path: Sequence[SourceLayer]) -> str:
        """The model that gives most layers of a path; ties go to the one that comes first."""
        return Counter(model for model, _ in path).most_common(1)[0][0]

    def candidate(self, path: Sequence[SourceLayer]) -> Candidate:
        """A path with its host."""
        return Candidate(self.host(path), tuple(path))

    def encode(self, candidates: Sequence[Candidate]) -> Actions:
        """Action sequences (N, T_max + 1) of paths over the pool, with STOP."""
        actions = np.full((len(candidates), self.longest + 1), -1, dtype=np.int64)
        index = {model: m for m, model in enumerate(self.models)}
        for row, candidate in zip(actions, candidates, strict=True):
            row[: candidate.depth] = [index[model] * self.layers + layer for model, layer in candidate.path]
            row[candidate.depth] = self.stop
        return actions

    def decode(self, actions: Sequence[int] | Actions) -> Candidate:
        """The candidate of one action sequence, which ends with STOP or where it is filled up."""
        path = [divmod(int(action), self.layers) for action in actions if 0 <= action < self.stop]
        return self.candidate([(self.models[m], layer) for m, layer in path])

    def legal_orders(self, orders: Sequence[Sequence[int]]) -> Mask:
        """Whether each sequence of layer indices is that of a legal path (N,): the models don't matter."""
        actions = np.full((len(orders), self.longest + 1), -1, dtype=np.int64)
        fits = np.array([0 < len(order) <= self.longest for order in orders], dtype=bool)
        one_model = replace(self, models=self.models[:1])
        for row, order, fit in zip(actions, orders, fits, strict=True):
            if fit:
                row[: len(order)], row[len(order)] = order, one_model.stop
        distinct, place = np.unique(actions, axis=0, return_inverse=True)
        return np.asarray(fits & one_model.are_legal(distinct)[place.ravel()])

    def contains(self, candidate: Candidate) -> bool:
        """Whether a candidate is a legal path over the pool, with the host that its path determines."""
        known = all(model in self.models and 0 <= layer < self.layers for model, layer in candidate.path)
        if not known or not 0 < candidate.depth <= self.longest or candidate.host != self.host(candidate.path):
            return False
        return bool(self.are_legal(self.encode([candidate]))[0])

    def identity(self, model: str) -> Candidate:
        """All layers of one model in their own order."""
        return Candidate.identity(model, self.layers)

    def random_path(self, rng: np.random.Generator) -> Candidate:
        """A random legal path that mostly goes forward and mostly stays with a model; every legal path can come up.

        Uniform actions would wander backwards: there are more of them. A jump to l instead of the natural next layer n
        weighs 8^-|l - n|, the model at hand as much as all others together, STOP 1.
        """
        prefix: list[int] = []
        while not prefix or prefix[-1] != self.stop:
            legal = self.legal(np.array([prefix], dtype=np.int64).reshape(1, -1))[0]
            model, layer = divmod(prefix[-1], self.layers) if prefix else (-1, -1)
            near = 0.125 ** np.abs(np.arange(self.layers) - layer - 1)
            stay = np.where(np.arange(len(self.models)) == model, max(len(self.models) - 1, 1), 1)
            weight = np.append(np.outer(stay / stay.sum(), near).ravel(), 1.0) * legal
            prefix.append(int(rng.choice(self.actions, p=weight / weight.sum())))
        return self.decode(prefix)

    def edits(self, candidate: Candidate, rng: np.random.Generator, count: int) -> list[Candidate]:
        """Up to ``count`` different legal paths that are one or two edits away from a path.

        An edit takes a short segment and swaps its source model, skips it, repeats it, or puts a layer in that the path
        lacks there. Fewer come back only where the neighbourhood is nearly exhausted.
        """
        found: dict[Candidate, None] = {}
        for _ in range(8):
            drawn = [self.edit(candidate.path, rng) for _ in range(count)]
            legal = self.legal_orders([[layer for _, layer in path] for path in drawn])
            for path in map(self.candidate, compress(drawn, legal)):
                if path != candidate and len(found) < count:
                    found[path] = None
            if len(found) == count:
                break
        return list(found)

    def edit(self, path: tuple[SourceLayer, ...], rng: np.random.Generator) -> tuple[SourceLayer, ...]:
        """One or two random edits, as likely; what comes of it may be illegal, or the same."""
        edited = self._edit(path, rng)
        return self._edit(edited, rng) if edited and rng.random() < 0.5 else edited

    def _edit(self, path: tuple[SourceLayer, ...], rng: np.random.Generator) -> tuple[SourceLayer, ...]:
        """One random edit, legal or not."""
        start = int(rng.integers(len(path)))
        end = min(start + int(rng.geometric(0.5)), len(path))
        head, segment, tail = path[:start], path[start:end], path[end:]
        match str(rng.choice(["swap", "skip", "repeat", "insert"], p=[0.4, 0.3, 0.1, 0.2])):
            case "swap":
                model = str(rng.choice(self.models))
                return (*head, *((model, layer) for _, layer in segment), *tail)
            case "skip":
                return (*head, *tail)
            case "repeat":
                return (*head, *segment, *segment, *tail)
            case _:
                cut = int(rng.integers(len(path) + 1))
                low = path[cut - 1][1] + 1 if cut > 0 else 0
                high = path[cut][1] if cut < len(path) else self.layers
                model = path[min(cut, len(path) - 1)][0]
                return (*path[:cut], (model, int(rng.integers(low, high))), *path[cut:]) if low < high else path
