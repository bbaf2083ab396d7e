"""A path whose seams are repaired, from the recipe that says how: the same numbers as in the search, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from models.candidate import Candidate
from models.errors import BadInput
from models.merge.source import MergedSource
from models.paths.calibration import Calibration
from models.paths.folded import folded, parts_of
from models.paths.folds import Calibrate
from models.paths.pool import Pool
from models.paths.repair import seams_of
from models.paths.sweep import Sweep, can_sweep
from models.sources.checkpoint import Source


class Unprojected:
    """A vision tower with zeros for the projection that it lacks, on which what enters its layers doesn't depend.

    Implements :class:`models.sources.checkpoint.Source`.
    """

    def __init__(self, source: Source, pool: Pool) -> None:
        self.config = source.config
        self.source = source
        self._head = str(pool.architecture.head)
        self._shape = pool.skeleton.get_parameter(pool.architecture.live(self._head)).shape

    def names(self) -> list[str]:
        """See ``Source``."""
        return sorted([*self.source.names(), self._head])

    def tensor(self, name: str) -> Tensor:
        """See ``Source``."""
        return torch.zeros(self._shape) if name == self._head else self.source.tensor(name)

    def digest(self, group: str) -> str:
        """See ``Source``."""
        return self.source.digest(group)


def repair(source: MergedSource, find: Callable[[str], Path], on_step: Callable[[int, int], None]) -> None:
    """Have the refitted layers of a source ready.

    Args:
        source: its recipe has a block ``repair``.
        find: path of a file that the recipe names.
        on_step: is told in hundredths how far it is.

    Raises:
        BadInput: the calibration items are missing or others, or no layers are left out behind a refitted one.
    """
    settings, host = source.recipe.repair, source.recipe.base_model
    assert settings is not None and host is not None  # noqa: S101 (the recipe was checked)
    rows = find(settings.rows)
    items = Calibration.read(rows).fitted(settings.tokens)
    if items.digest != settings.sha256:
        raise BadInput(f"repair.rows: {settings.rows}: not the items that the recipe was made with; fetch those")
    pool = Pool(next(iter(source.inputs.values())).config, source.device, getattr(torch, settings.dtype))
    for name, model in source.inputs.items():
        lacks_head = pool.architecture.classes == "texts" and pool.architecture.head not in model.names()
        pool.add(name, Unprojected(model, pool) if lacks_head else model)
    slices = [one.sources[0] for one in source.recipe.slices]
    candidate = Candidate(host, tuple((one.model, layer) for one in slices for layer in one.layers))
    pool.check(candidate)
    seams = seams_of(candidate, pool.layers)
    done = 0.0

    def tell(more: float) -> None:
        nonlocal done
        done += more
        on_step(round(100 * done), 100)

    if settings.in_turn:
        first = min(settings.layers)
        whole = sorted(settings.layers) == list(range(first, candidate.depth))
        if not (whole and can_sweep(pool.architecture, candidate)):
            raise BadInput("repair.in_turn: takes a path forward through one model, and all layers from one on")
        (found,) = Sweep(items.requests(pool), settings.ridge, settings.layers).run(pool, [candidate], tell)
    else:
        if unknown := [layer for layer in settings.layers if layer not in seams or not seams[layer].leaves_out]:
            raise BadInput(f"repair.layers: {unknown[0]}: nothing is left out behind it")
        wanted = {position: seams[position].within() for position in settings.layers}
        job = Calibrate(items.requests(pool), tuple(sorted(set(wanted.values()))), settings.ridge)
        (folds,) = job.run(pool, [candidate], tell)
        found = {position: folds[seam] for position, seam in wanted.items()}
    architecture, there = source.architecture, set(source.names())
    for position, fold in found.items():
        for inner in parts_of(architecture):
            name = architecture.join(position, inner)
            if name in there:
                source.merged[name] = folded(architecture, inner, source.tensor(name), fold)
