"""Stage `search`: the online search over paths, from what the stages before have learned (method.md, section 4)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.agent.agent import load_agent
from models.agent.online import search
from models.agent.phases import new_judge
from models.candidate import Candidate
from models.errors import BadInput
from models.merge.recipe import dump_recipes
from models.preferences import preferences_for
from models.search.trial import Trial
from tasks.project.progress import Progress
from tasks.project.records import Anchors, read_offline, write_table
from tasks.project.workspace import Workspace
from tasks.trials.lab import EngineLab
from tasks.trials.pool import open_pool, path_space
from tasks.trials.settings import search_settings
from tasks.trials.trial import open_trial, recipe_space


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``archive.parquet``, every candidate that was ever scored, and ``search.csv``, a row a round."""
    params = workspace.params.search
    engine, anchors = open_pool(workspace, progress)
    agent = load_agent(workspace.run / "agent")
    offline = read_offline(workspace.run, anchors.objectives)
    lab = EngineLab(engine)
    trial = open_trial(workspace, lab, anchors, offline, params.budget, agent.config.spent)
    if trial.left <= 0:
        raise BadInput(
            f"params.yaml: search.budget: {params.budget}, of which sample, dataset and train have spent"
            f" {trial.spent}; raise it, or lower train.share, sample.candidates, dataset.edits or dataset.random"
        )
    rng = np.random.default_rng([workspace.params.seed, 5])
    wanted = preferences_for(agent.config.scale.names, params.preferences, rng)
    paths, space = path_space(engine, anchors), recipe_space(engine)
    judge = new_judge(trial, space)
    judge.surrogate = agent.surrogate
    with progress.bar("searching", trial.left, "item evaluations") as bar:
        trial.on_spent = bar.advance

        def on_round(row: dict[str, float]) -> None:
            bar.advance(0, f"HV {row['hv']:.3f}")

        rows = search(trial, judge, space, paths, wanted, search_settings(params), rng, on_round, agent.actor)
    failures = {
        Candidate.from_json(str(row["candidate"])): str(row["failed"])
        for row in offline[offline["failed"].notna()].to_dict("records")
    }
    failures |= {Candidate.identity(one.name, engine.layers): one.failed for one in anchors.scored if one.failed}
    write_table(workspace.run / "archive.parquet", archive_table(trial, anchors, failures | lab.failures))
    write_table(workspace.run / "search.csv", pd.DataFrame(rows))
    progress.message(f"{len(trial.archive)} candidates scored, {trial.spent} item evaluations in all")


def archive_table(trial: Trial, anchors: Anchors, failed: dict[Candidate, str]) -> pd.DataFrame:
    """A row a candidate, in the order in which they were first scored.

    ``recipes`` holds, as YAML, those of its recipes that neither ``anchors.json`` nor an earlier row does.
    """
    told = {one.name for one in anchors.scored}
    rows = []
    for entry in trial.archive.entries:
        new = [model for model in entry.candidate.models if model in trial.recipes and model not in told]
        told.update(new)
        scores = entry.scores or [np.nan] * len(anchors.objectives)
        rows.append(
            {
                "candidate": entry.candidate.to_json(),
                "id": entry.candidate.id,
                "kind": entry.kind,
                "round": entry.round,
                "items": entry.items,
                "charged": entry.charged,
                "at": entry.at,
                "failed": failed.get(entry.candidate),
                "recipes": dump_recipes([trial.recipes[name] for name in new]) if new else None,
                **dict(zip(anchors.objectives, scores, strict=True)),
                "layers": entry.candidate.depth / trial.lab.layers,
            }
        )
    return pd.DataFrame(rows).astype({"failed": "string", "recipes": "string"})
