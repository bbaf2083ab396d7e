"""Stage `search`: the online search over paths, from the trained networks (method.md, section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from models.agent.archive import Archive, Entry
from models.agent.networks import Agent, load_agent
from models.agent.online import SearchSettings, search
from models.candidate import Candidate
from models.errors import BadInput
from models.preferences import Array, parse_preference, preferences
from tasks.engine import Engine
from tasks.pool import open_pool
from tasks.progress import Progress
from tasks.records import Anchors, write_table
from tasks.schema import SearchParams
from tasks.workspace import Workspace


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``archive.parquet``, every candidate that was ever scored, and ``search.csv``, a row a round."""
    params = workspace.params.search
    engine, anchors = open_pool(workspace)
    agent = load_agent(workspace.run / "agent")
    offline = pd.read_parquet(workspace.run / "offline.parquet")
    objectives = engine.objectives("search")
    archive = Archive(known(engine, anchors, offline), [objectives.count(name) for name in objectives.names])
    before = anchors.spent + int(offline["charged"].sum())
    if before >= params.budget:
        raise BadInput(
            f"params.yaml: search.budget: {params.budget}, of which sample and dataset have spent {before}; "
            "raise it, or lower sample.candidates, dataset.edits or dataset.random"
        )
    rng = np.random.default_rng([workspace.params.seed, 5])
    wanted = wanted_preferences(params, agent.config.scale.names, rng)
    failures = {
        Candidate.from_json(str(row["candidate"])): str(row["failed"])
        for row in offline[offline["failed"].notna()].to_dict("records")
    }
    with progress.bar("searching", params.budget - before, "item evaluations") as bar:

        def evaluate(candidates: Sequence[Candidate], start: int, stop: int) -> list[Sequence[float] | None]:
            scored = engine.score(candidates, "search", start, stop)
            bar.advance(engine.cost("search", start, stop) * len(candidates))
            failures.update({one.candidate: one.failed for one in scored if one.failed})
            return [None if one.failed else tuple(one.mean()) for one in scored]

        rows = search(
            agent,
            archive,
            wanted,
            evaluate,
            settings(params, before),
            rng,
            lambda row: bar.advance(0, f"HV {row['hv']:.3f}"),
        )
    table = pd.DataFrame(rows)
    table["evaluations"] += before
    write_table(workspace.run / "archive.parquet", archive_table(archive, agent, anchors, failures))
    write_table(workspace.run / "search.csv", table)
    progress.message(f"{len(archive)} candidates scored, {int(table['evaluations'].iloc[-1])} item evaluations in all")


def wanted_preferences(params: SearchParams, names: Sequence[str], rng: np.random.Generator) -> Array:
    """Preferences (M, K) that the search serves: those that cover the simplex, or the one that is asked for.

    Raises:
        BadInput: the one that is asked for is malformed or names an unknown objective.
    """
    if not params.preference:
        return preferences(len(names), params.preferences, rng)
    try:
        return parse_preference(params.preference, names)[None]
    except BadInput as error:
        raise BadInput(f"params.yaml: search.{error}") from None


def settings(params: SearchParams, before: int) -> SearchSettings:
    """Hyperparameters of the search, with the budget that stages `sample` and `dataset` have left."""
    return SearchSettings(
        budget=params.budget - before,
        batch=params.batch,
        rungs=params.rungs,
        keep=params.keep,
        rollouts=params.rollouts,
        ppo_epochs=params.ppo_epochs,
        beam=params.beam,
        epsilon=params.epsilon,
    )


def known(engine: Engine, anchors: Anchors, offline: pd.DataFrame) -> Iterator[Entry]:
    """What the stages before have scored; a plain model of the pool is there once, under its first kind."""
    full = engine.items("search")
    for one in anchors.scored:
        scores = None if one.failed else tuple(one.scores[name] for name in anchors.objectives)
        candidate = Candidate.identity(one.name, engine.layers)
        charged = engine.cost("search") if one.recipe is not None else 0
        yield Entry(candidate, one.kind, 0, full, scores, charged)
    for row in offline.to_dict("records"):
        scores = None if isinstance(row["failed"], str) else tuple(float(row[name]) for name in anchors.objectives)
        candidate = Candidate.from_json(str(row["candidate"]))
        yield Entry(candidate, str(row["kind"]), 0, int(row["items"]), scores, int(row["charged"]))


def archive_table(archive: Archive, agent: Agent, anchors: Anchors, failures: dict[Candidate, str]) -> pd.DataFrame:
    """A row a candidate, in the order in which they were first scored."""
    failed = failures | {
        Candidate.identity(one.name, agent.config.layers): one.failed for one in anchors.scored if one.failed
    }
    rows = [
        {
            "candidate": entry.candidate.to_json(),
            "id": entry.candidate.id,
            "kind": entry.kind,
            "round": entry.round,
            "items": entry.items,
            "charged": entry.charged,
            "failed": failed.get(entry.candidate),
            **dict(zip(anchors.objectives, entry.scores or [np.nan] * len(anchors.objectives), strict=True)),
            "layers": entry.candidate.depth / agent.config.layers,
        }
        for entry in archive.entries
    ]
    return pd.DataFrame(rows).astype({"failed": "string"})
