"""Stage `sample`: search the parameter level, and choose the anchors.

Base, experts and plain merges are scored first, then recipes that fill the space of merge methods and their parameters,
then those that what was seen makes promising. Ideal and nadir are fixed here, over base and experts (method.md,
sections 1 and 4). Anchors are calibrated, so that paths whose layers are left out can be repaired.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.agent.phases import anchors, sample
from models.candidate import Candidate
from models.front import Scale
from models.merge.recipe import dump_recipes, recipe_name
from models.preferences import preferences
from models.search.archive import Archive, Entry
from models.search.reward import Reward
from models.search.trial import Trial
from tasks.project.progress import Progress
from tasks.project.records import Anchors, ScoredModel
from tasks.project.workspace import Workspace
from tasks.scoring.engine import Engine, Scored
from tasks.trials.lab import EngineLab
from tasks.trials.repair import begin_repairs
from tasks.trials.settings import sample_settings
from tasks.trials.trial import recipe_space

FEW_ERRORS = 6.0
"""Standard errors between worst and best source below which the choice among many candidates is mostly luck."""


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``anchors.json`` and ``anchors/``, and the items on which repairs are calibrated."""
    params, seed = workspace.params.sample, workspace.params.seed
    engine = Engine(workspace)
    space = recipe_space(engine)
    plain = space.plain_merges()
    with progress.bar("scoring recipes", len(engine.family.experts) + 1 + len(plain) + params.candidates, "") as bar:
        # Base and experts, which nobody is charged for; over them lie ideal and nadir.
        sources = [Candidate.identity(name, engine.layers) for name in ("base", *engine.family.experts)]
        free = engine.scored(sources, "search", bar=bar)
        scores = np.array([one.mean() for one in free])
        scale = Scale(engine.objectives("search").names, tuple(scores.max(axis=0)), tuple(scores.min(axis=0)))
        lab = EngineLab(engine, bar)
        trial = Trial(lab, Reward(scale, engine.layers), Archive(source_entries(engine, free), lab.counts), 0)
        trial.budget = (len(plain) + params.candidates) * trial.whole
        wanted = preferences(len(scale.names), params.preferences, np.random.default_rng([seed, 1]))
        sample(trial, space, wanted, sample_settings(params), np.random.default_rng([seed, 6]))
    titles = {recipe_name(recipe): title for title, recipe in plain.items()}
    chosen = anchors(trial, wanted, params.anchors)
    repair = begin_repairs(workspace, engine, chosen or list(engine.family.experts), progress)
    result = Anchors(
        objectives=list(scale.names),
        ideal=dict(zip(scale.names, scale.ideal, strict=True)),
        nadir=dict(zip(scale.names, scale.nadir, strict=True)),
        spent=trial.spent + (repair.item_evaluations if repair else 0),
        anchors=chosen,
        scored=[_record(trial, lab, entry, scale.names, titles) for entry in trial.archive.entries],
        repair=repair,
    )
    result.write(workspace.run)
    progress.message(f"{len(trial.recipes)} recipes scored; anchors: {', '.join(result.anchors)}")
    for line in faint(engine, free, scale):
        progress.message(line)


def faint(engine: Engine, sources: Sequence[Scored], scale: Scale) -> list[str]:
    """Which objectives have too few items, for what lies between worst and best source, to tell candidates apart.

    Members are chosen by means over the items of `search` and `selection` together.
    """
    lines = []
    for name, best, worst in zip(scale.names, scale.ideal, scale.nadir, strict=True):
        count = sum(engine.objectives(split).count(name) for split in ("search", "selection"))
        error = float(np.median([np.std(one.items[name]) for one in sources])) / np.sqrt(count)
        if best - worst < FEW_ERRORS * error:
            lines.append(
                f"{name}: worst and best source differ by {(best - worst) / error:.1f} standard errors of a mean over"
                f" {count:,} items, so that which member is better will be luck; give it more items, or another metric"
            )
    return lines


def source_entries(engine: Engine, sources: Sequence[Scored]) -> list[Entry]:
    """Base and experts as the first entries of an archive."""
    kinds = ["base" if one.candidate.host == "base" else "expert" for one in sources]
    return [
        Entry(one.candidate, kind, 0, engine.items("search"), tuple(map(float, one.mean())))
        for one, kind in zip(sources, kinds, strict=True)
    ]


def _record(trial: Trial, lab: EngineLab, entry: Entry, names: Sequence[str], titles: dict[str, str]) -> ScoredModel:
    name = entry.candidate.host
    recipe = trial.recipes.get(name)
    return ScoredModel(
        name,
        entry.kind,
        titles.get(name, name),
        dump_recipes([recipe.model_copy(update={"name": name})]) if recipe else None,
        dict(zip(names, entry.scores, strict=True)) if entry.scores else {},
        lab.failures.get(entry.candidate),
        entry.at,
    )
