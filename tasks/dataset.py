"""Stage `dataset`: the offline data set, paths over the pool with the vector of their scores (method.md, section 4)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.agent.phases import offline_paths
from models.search.reward import Reward
from tasks.project.progress import Progress
from tasks.project.records import write_table
from tasks.project.workspace import Workspace
from tasks.trials.pool import full_scale, open_pool, path_space
from tasks.trials.settings import dataset_settings


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``offline.parquet``: a row a path, and what it cost in item evaluations."""
    params = workspace.params.dataset
    engine, anchors = open_pool(workspace, progress)
    space = path_space(engine, anchors)
    rng = np.random.default_rng([workspace.params.seed, 2])
    reward = Reward(full_scale(workspace, anchors), engine.layers)
    spare = engine.layers - reward.shortest
    chosen = offline_paths(space, dataset_settings(params), rng, spare, anchors.anchors)
    identities = [path for path, kind in chosen.items() if kind == "identity"]
    full = engine.items("search")
    items = min(params.items, full)
    with progress.bar("scoring paths", len(chosen), "paths") as bar:
        # Identity paths are plain models, which stage `sample` has scored on all items already.
        scored = engine.scored(identities, "search", bar=bar)
        scored += engine.scored(list(chosen)[len(identities) :], "search", stop=items, bar=bar)
    rows = [
        {
            "candidate": one.candidate.to_json(),
            "host": one.candidate.host,
            "kind": chosen[one.candidate],
            "split": "search",
            "items": full if chosen[one.candidate] == "identity" else items,
            "charged": 0 if chosen[one.candidate] == "identity" else engine.cost("search", 0, items),
            "depth": one.candidate.depth,
            "failed": one.failed,
            **one.means(),
        }
        for one in scored
    ]
    table = pd.DataFrame(rows, columns=[*rows[0]]).astype({"failed": "string"})
    write_table(workspace.run / "offline.parquet", table)
    progress.message(
        f"{len(rows)} paths over {len(space.models)} models, {int(table['charged'].sum())} item evaluations"
    )
