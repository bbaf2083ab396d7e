"""Stage `pareto`: the front, chosen on `search` and `selection`, reported on `test`, which is read nowhere before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from models.candidate import Candidate
from models.front import Array, Scale, hypervolume, serve
from tasks.objectives.items import SPLITS
from tasks.project.progress import Progress
from tasks.project.records import Anchors, read_archive, write_table, write_text
from tasks.project.workspace import Workspace
from tasks.scoring.engine import Engine
from tasks.trials.chosen import chosen_by
from tasks.trials.members import Listed, choose_members, score_table, shortlist, standard_error
from tasks.trials.pool import add_recipes, full_scale, open_pool, recipe_of
from tasks.trials.repair import repair_members


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``front.json``, ``members/``, ``metrics.json`` and ``plots/``."""
    params = workspace.params.pareto
    engine, anchors = open_pool(workspace, progress)
    scale = full_scale(workspace, anchors)
    archive = read_archive(workspace.run, anchors.objectives)
    add_recipes(engine, archive)
    references = reference_models(engine, anchors)
    listed = [*references, *shortlist(archive, scale, engine, references, params.rescored)]
    chosen = choose_members(engine, scale, listed, params.members, progress)
    members = chosen.all
    spent = int(archive["at"].max())  # the actor's training and the anchors' repairs are in it
    spent += repair_members(engine, [one.candidate for one in members])
    shown = [*members, *(one for one in references if one not in members)]
    with progress.bar("reporting on test", len(shown), "candidates") as bar:
        engine.scored([one.candidate for one in shown], "test", bar=bar)
    scores = {split: score_table(engine, scale, shown, split) for split in SPLITS}
    reported = generate(engine, members, progress)
    served = serve(scale.costs(scores["selection"][: len(members)]), chosen_by(scale.names))
    named = [{split: _named(scale, table[row]) for split, table in scores.items()} for row in range(len(shown))]
    rows = [{"name": one.name, "kind": one.kind, "scores": own} for one, own in zip(shown, named, strict=True)]
    front: dict[str, Any] = {
        "profile": workspace.name,
        "objectives": list(scale.names),
        "ideal": _named(scale, scale.ideal),
        "nadir": _named(scale, scale.nadir),
        "hv": {split: hypervolume(scale.costs(table[: len(members)])) for split, table in scores.items()},
        "standard_errors": standard_errors(engine, members),
        "members": [
            describe(workspace, engine, one)
            | rows[row]
            | {"serves": _named(scale, np.round(served[row], 4)), "corner": one in chosen.corners}
            | {"reported": reported[row]}
            for row, one in enumerate(members)
        ],
        "references": [row for row, one in zip(rows, shown, strict=True) if one in references],
    }
    write_text(workspace.run / "front.json", json.dumps(front, indent=1) + "\n")
    summary = metrics(front, scale, spent)
    write_text(workspace.run / "metrics.json", json.dumps(summary, indent=1) + "\n")
    write_table(workspace.run / "plots" / "front.csv", plot_rows(front))
    count = f"{len(members)} members, {len(chosen.corners)} of them the best of an objective"
    progress.message(f"{count}; hypervolume on test {front['hv']['test']:.3f}")


def reference_models(engine: Engine, anchors: Anchors) -> list[Listed]:
    """Base, experts and plain merges: what the front is held against, and may itself contain."""
    return [
        Listed(Candidate.identity(one.name, engine.layers), one.kind, one.title)
        for one in anchors.scored
        if one.kind != "recipe"
    ]


def standard_errors(engine: Engine, members: Sequence[Listed]) -> dict[str, float]:
    """Of a score on the test split, by task objective: the median over the members."""
    scored = engine.scored([one.candidate for one in members], "test")
    names = engine.objectives("test").names
    return {name: float(np.median([standard_error(one.items[name]) for one in scored])) for name in names}


def generate(engine: Engine, members: Sequence[Listed], progress: Progress) -> list[dict[str, float]]:
    """The further metrics of the profile, by true generation on the test split."""
    results = []
    with progress.bar("generating answers", len(members), "members") as bar:
        for one in members:
            results.append(engine.objectives("test").reported.evaluate(engine.pool, engine.repaired(one.candidate)))
            bar.advance()
    return results


def describe(workspace: Workspace, engine: Engine, member: Listed) -> dict[str, Any]:
    """What a member is made of; its recipe is written to ``members/ID/recipe.yaml``."""
    candidate = member.candidate
    text, level = recipe_of(workspace, engine, candidate)
    file = f"members/{candidate.id}/recipe.yaml"
    write_text(workspace.run / file, text)
    return {
        "id": candidate.id,
        "layers": candidate.depth,
        "path": [list(step) for step in candidate.path],
        "host": candidate.host,
        "recipe": file,
        "mergekit": level,
    }


def metrics(front: dict[str, Any], scale: Scale, spent: int) -> dict[str, Any]:
    """What `dvc metrics` compares: hypervolume of the front and of what was there before it, and the best scores."""

    def costs(rows: Sequence[dict[str, Any]], split: str) -> Array:
        return scale.costs([[row["scores"][split][name] for name in scale.names] for row in rows])

    members, best = front["members"], {name: min if name == "layers" else max for name in scale.names}
    return {
        "hv": front["hv"],
        "hv_references": {split: hypervolume(costs(front["references"], split)) for split in SPLITS},
        "best_test": {name: pick(row["scores"]["test"][name] for row in members) for name, pick in best.items()},
        "members": len(members),
        "item_evaluations": spent,
    }


def plot_rows(front: dict[str, Any]) -> pd.DataFrame:
    """Members and references with their scores on `test`, and the mean of the task scores, for `dvc plots`."""
    tasks = [name for name in front["objectives"] if name != "layers"]
    return pd.DataFrame(
        [
            {"name": row["name"], "kind": kind, **scores, "mean": float(np.mean([scores[name] for name in tasks]))}
            for kind, rows in (("member", front["members"]), ("reference", front["references"]))
            for row in rows
            for scores in [row["scores"]["test"]]
        ]
    )


def _named(scale: Scale, values: Sequence[float] | Array) -> dict[str, float]:
    return {name: float(value) for name, value in zip(scale.names, values, strict=True)}
