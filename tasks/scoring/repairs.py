"""Repaired seams in an engine: which ones are, what was calibrated for them, and where it is kept.

A repaired path is a path like any other: the layer before a seam comes from a model of the pool that is the path's own
but for what repairs it (``models.paths.repair.RepairedSource``). So scoring, its keys, Ray's workers and prefixes that
paths share know nothing of repair. What is computed is kept in the state folder, a file a seam, under a digest of all
that decides it; a run that was cut off goes on with what is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models.candidate import Candidate
from models.paths.calibration import Calibration
from models.paths.folded import RepairedSource
from models.paths.folds import Calibrate, layers_together, read_fold, sum_bytes, write_fold
from models.paths.pool import Pool
from models.paths.repair import VERSION, Seam, seams_of
from models.paths.sweep import Sweep, can_sweep
from models.sources.checkpoint import Source
from tasks.project.progress import Progress

RUN = 4
"""Most layers in a row that are repaired for when they are left out; of a member of the front any number."""


@dataclass(frozen=True)
class Settings:
    """How folds are calibrated."""

    tokens: int
    """Of calibration items, at least."""
    ridge: float
    """ϱ."""


QUICK = Settings(tokens=8_000, ridge=0.01)
"""For anchors: their folds serve all candidates."""

FINAL = Settings(tokens=24_000, ridge=0.003)
"""For members of the front, each on its own activations."""


class Repairs:
    """Repairs the seams of candidates."""

    def __init__(
        self,
        pool: Pool,
        source: Callable[[str], Source],
        calibration: Calibration,
        folder: Path,
        layers: Iterable[int],
        anchors: Sequence[str],
        progress: Progress,
        settings: Settings = QUICK,
    ) -> None:
        """Nothing is calibrated yet.

        Args:
            pool: has the models.
            source: the model of a name in the pool.
            calibration: the items.
            folder: keeps what is computed.
            layers: those whose refit gains; seams behind others are left alone.
            anchors: models that are calibrated: any other takes the folds of the nearest of them. With none, each
                model is calibrated itself.
            progress: shows calibrations.
            settings: how.
        """
        self.pool = pool
        self.source = source
        self.calibration = calibration
        self.folder = folder
        self.layers = frozenset(layers)
        self.anchors = tuple(anchors)
        self.progress = progress
        self.settings = settings
        self._fitted = calibration.fitted(settings.tokens)
        self.rows = self._fitted.digest
        self._measured: dict[str, Seam] = {}
        """Name of a repaired model in the pool → the seam on which its fold is calibrated."""
        self._swept: dict[str, Candidate] = {}
        """Name of a repaired model in the pool → the path that is refitted as a whole."""
        self._models: dict[str, str] = {}
        self._nearest: dict[str, str] = {}

    def of_members(self) -> Repairs:
        """The same for members of the front: more tokens, each model's own activations, runs of any length."""
        return Repairs(
            self.pool, self.source, self.calibration, self.folder, self.layers, (), self.progress, settings=FINAL
        )

    def seams(self, candidate: Candidate) -> dict[int, Seam]:
        """The seams of a path that are repaired, by the position of the layer before each.

        That a layer of another model comes next, a repeat or a step back makes no seam that gains by it.
        """
        longest = RUN if self.anchors else self.pool.layers
        return {
            position: seam
            for position, seam in seams_of(candidate, self.pool.layers).items()
            if seam.layer in self.layers and 0 < seam.leaves_out <= longest
        }

    def refitted(self, candidate: Candidate) -> tuple[int, ...]:
        """Positions of the layers of a path that are refitted: of a member that leads forward through one model all
        from the first seam on, else those before seams."""
        positions = tuple(self.seams(candidate))
        if positions and self.in_turn(candidate):
            return tuple(range(min(positions), candidate.depth))
        return positions

    def in_turn(self, candidate: Candidate) -> bool:
        """Whether a path is refitted as a whole, each layer behind those before it."""
        return not self.anchors and can_sweep(self.pool.architecture, candidate)

    def repaired(self, candidate: Candidate) -> Candidate:
        """The same path with its seams repaired; it itself where none are."""
        path, positions = list(candidate.path), self.refitted(candidate)
        if positions and self.in_turn(candidate):
            for position in positions:
                path[position] = self._swept_name(candidate, position), path[position][1]
        else:
            for position, seam in self.seams(candidate).items():
                path[position] = self._name(seam), seam.layer
        return Candidate(candidate.host, tuple(path))

    def prepare(self, candidates: Iterable[Candidate]) -> None:
        """Calibrate what repaired candidates need and the state folder lacks.

        Raises:
            BadInput: activations are not finite, or items are too few.
        """
        names = dict.fromkeys(name for one in candidates for name, _ in one.path)
        for path in dict.fromkeys(self._swept[name] for name in names if name in self._swept):
            if not all(self._fold_of(path, position).is_file() for position in self.refitted(path)):
                self._sweep(path)
        lacking: dict[str, list[Seam]] = {}
        for seam in (self._measured[name] for name in names if name in self._measured):
            if not self._file(seam).is_file():
                lacking.setdefault(seam.model, []).append(seam)
        for model, seams in lacking.items():
            self.calibrate(model, [] if self.anchors else seams)

    def _sweep(self, path: Candidate) -> None:
        job = Sweep(self._fitted.requests(self.pool), self.settings.ridge, self.refitted(path))
        with self.progress.bar(f"refitting {path.id}", 1, "") as bar:
            (folds,) = self.pool.run(job, [path], bar.advance)
        for position, fold in folds.items():
            write_fold(self._fold_of(path, position), fold)

    def calibrate(self, model: str, seams: Sequence[Seam] = ()) -> None:
        """Compute some seams of a model, or whatever is lacking of all that a search may repair."""
        wanted = [seam for seam in seams or self._all(model) if not self._file(seam).is_file()]
        if not wanted:
            return
        job = Calibrate(self._fitted.requests(self.pool), tuple(sorted(wanted)), self.settings.ridge)
        with self.progress.bar(f"calibrating {model}", 1, "") as bar:
            (folds,) = self.pool.run(job, [Candidate.identity(model, self.pool.layers)], bar.advance)
        for seam, fold in folds.items():
            write_fold(self._file(seam), fold)

    @property
    def cost(self) -> int:
        """Item evaluations that the calibration of a model takes: all items, as often as they have to pass."""
        groups = layers_together(self._all(""), sum_bytes(self.pool), self.pool.max_bytes)
        return len(groups) * len(self._fitted.tasks)

    def cost_of(self, members: Sequence[Candidate]) -> int:
        """Item evaluations that repairing members takes: a path that is refitted as a whole passes beside the uncut
        model, so each item twice."""
        swept = {one for one in members if self.in_turn(one) and self.seams(one)}
        models = {seam.model for one in members if one not in swept for seam in self.seams(one).values()}
        return len(self._fitted.tasks) * (2 * len(swept) + len(models))

    def _all(self, model: str) -> list[Seam]:
        """All seams of a model that a search may repair."""
        return [
            Seam(model, layer, model, following)
            for layer in sorted(self.layers)
            for following in range(layer + 2, min(layer + 1 + RUN, self.pool.layers) + 1)
        ]

    def nearest(self, model: str) -> str:
        """The model that is calibrated in a model's place: by the distance of a few matrices that are refitted."""
        if not self.anchors or model in self.anchors:
            return model
        if model not in self._nearest:
            mine = self._matrices(model)
            distances = [float((mine - self._matrices(one)).square().sum()) for one in self.anchors]
            self._nearest[model] = self.anchors[distances.index(min(distances))]
        return self._nearest[model]

    def _matrices(self, model: str) -> Tensor:
        architecture, last = self.pool.architecture, self.pool.layers - 1
        names = (architecture.join(layer, architecture.down) for layer in sorted({0, last // 2, last}))
        return torch.cat([self.source(model).tensor(name).float().flatten() for name in names])

    def _name(self, seam: Seam) -> str:
        """The repaired model in the pool for a seam."""
        measured = replace(seam, model=self.nearest(seam.model)).within()
        name = self._add(seam.model, seam.layer, self._key(self._digest(measured.model), measured.layer, measured.next))
        self._measured[name] = measured
        return name

    def _swept_name(self, candidate: Candidate, position: int) -> str:
        """The repaired model in the pool for a layer of a path that is refitted as a whole."""
        name = self._add(*candidate.path[position], self._key(self._path_digest(candidate), position, -1))
        self._swept[name] = candidate
        return name

    def _add(self, model: str, layer: int, key: str) -> str:
        name = f"{model}~{key[:12]}"
        if name not in self.pool:
            block, fold = partial(self.pool.block, model, layer), partial(read_fold, self._place(key))
            self.pool.add(name, RepairedSource(self.source(model), layer, fold, key, block))
        return name

    def _key(self, models: str, place: int, following: int) -> str:
        """Hex sha256 of all that decides a fold: the models' digest, the layer and what follows, and the settings."""
        settings = [VERSION, self.rows, self.settings.ridge, str(self.pool.dtype), self.pool.device.type]
        return hashlib.sha256(json.dumps([*settings, models, place, following]).encode()).hexdigest()

    def _path_digest(self, candidate: Candidate) -> str:
        """Of the uncut model, the path and the first layer that is refitted."""
        layers = [layer for _, layer in candidate.path]
        return f"{self._digest(candidate.host)} {layers} {min(self.seams(candidate))}"

    def _digest(self, model: str) -> str:
        if model not in self._models:
            self._models[model] = self.pool.digest(Candidate.identity(model, self.pool.layers))
        return self._models[model]

    def _file(self, seam: Seam) -> Path:
        return self._place(self._key(self._digest(seam.model), seam.layer, seam.next))

    def _fold_of(self, candidate: Candidate, position: int) -> Path:
        return self._place(self._key(self._path_digest(candidate), position, -1))

    def _place(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
