"""How deep the balanced model of a run can be cut: what its worst task loses, by the number of layers that are left."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.candidate import Candidate
from models.front import Array, utility
from tasks.bench.searches.family import Ground

LOSSES = (0.02, 0.05, 0.10)
"""Losses that people may accept."""


def cuts(ground: Ground, archive: pd.DataFrame) -> pd.DataFrame:
    """For each depth below the base's the model that loses least, chosen on `search`, and what it loses on `test`.

    The balanced model is the one of full depth and of the greatest utility under equal weights of the tasks. A loss is
    that of the worst task, relative to the balanced model's score there; models of any recipe count.

    Returns:
        A row a depth: ``left`` layers, ``loss_search`` and ``loss_test``; none without a balanced model.
    """
    engine, names = ground.engine, list(ground.tasks.names)
    whole = archive[(archive["items"] == engine.items("search")) & archive["failed"].isna()]
    found = [Candidate.from_json(text) for text in whole["candidate"]]
    scores, depths = whole[names].to_numpy(dtype=float), np.array([one.depth for one in found])
    uncut = np.flatnonzero(depths == engine.layers)
    if not len(uncut):
        return pd.DataFrame()
    equal = np.full(len(names), 1 / len(names))
    balanced = int(uncut[utility(ground.tasks.costs(scores[uncut]), equal).argmax()])
    lost = losses(scores, scores[balanced])
    by_depth = (np.flatnonzero(depths == depth) for depth in range(engine.layers))
    best = [int(same[lost[same].argmin()]) for same in by_depth if len(same)]
    whole_model, *tested = engine.scored([found[balanced], *(found[i] for i in best)], "test")
    if whole_model.failed:
        return pd.DataFrame()
    sound = [(i, one.mean()) for i, one in zip(best, tested, strict=True) if not one.failed]
    held = losses(np.array([mean for _, mean in sound]).reshape(len(sound), len(names)), whole_model.mean())
    left = [int(depths[i]) for i, _ in sound]
    return pd.DataFrame({"left": left, "loss_search": [float(lost[i]) for i, _ in sound], "loss_test": held})


def losses(scores: Array, balanced: Array) -> Array:
    """Loss (N,) of the worst task from scores (N, K), relative to those of the balanced model (K,)."""
    return np.asarray(((balanced - scores) / np.maximum(np.abs(balanced), 1e-9)).max(axis=1))


def deepest(rows: pd.DataFrame, loss: float) -> tuple[int, float] | None:
    """Fewest layers of which `search` promises no greater loss, and the loss on `test`; None if there are none."""
    fine = rows[rows["loss_search"] <= loss]
    if not len(fine):
        return None
    first = fine.sort_values("left").iloc[0]
    return int(first["left"]), float(first["loss_test"])
