"""What a run of a profile will cost: candidates, item evaluations, memory, bytes to be registered, expected time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from models.candidate import Candidate
from models.paths.pool import Pool
from models.sources.checkpoint import Model
from tasks.families.sizing import parameter_count
from tasks.objectives.items import SPLITS
from tasks.objectives.objectives import Objectives
from tasks.project.progress import Progress
from tasks.project.records import read_json
from tasks.project.workspace import Workspace
from tasks.trials.settings import actor_settings

RUNTIME_BYTES = 900 * 2**20
"""What Python, torch and transformers take by themselves."""

PROBE_ITEMS = 16
"""Items an objective on which scoring is timed."""

PROBE_SECONDS = 20.0
"""After which no further items are timed."""


@dataclass(frozen=True)
class Cost:
    """What one stage will do at most."""

    stage: str
    candidates: int
    item_evaluations: int
    seconds: float | None
    """As long as its last run here took, else as its item evaluations will take; none if neither is known."""


@dataclass(frozen=True)
class Plan:
    """What a whole run will cost at most."""

    costs: tuple[Cost, ...]
    memory: int | None
    """Bytes of working memory; none before the models are there."""
    registered: int | None
    """Bytes of weights that go to the registry; none before the models are there."""

    @property
    def seconds(self) -> float | None:
        """Expected time of the stages of which it is known; none if it is of none."""
        known = [cost.seconds for cost in self.costs if cost.seconds is not None]
        return sum(known) if known else None

    @property
    def timed(self) -> bool:
        """Whether the expected time covers every stage."""
        return all(cost.seconds is not None for cost in self.costs)


def costs_of(workspace: Workspace, seconds_an_item: float | None = None) -> dict[str, Cost]:
    """Candidates and item evaluations of each stage at most, in order; how long one takes, if that was measured."""
    params, objectives = workspace.params, workspace.profile.objectives
    search, selection, test = (sum(getattr(one.items, split) for one in objectives) for split in SPLITS)
    sample = params.sample.candidates
    paths = params.dataset.edits + params.dataset.random
    offline = paths * sum(min(params.dataset.items, one.items.search) for one in objectives)
    left = max(0, params.search.budget - sample * search - offline)
    taught = actor_evaluations(workspace, left)
    left -= taught
    first_rung = sum(min(params.search.rungs[0], one.items.search) for one in objectives)
    sources = len(workspace.profile.experts) + 1
    final = (params.pareto.rescored + sources) * selection + (front_size(workspace) + sources) * test
    numbers = {
        "zoo": (0, 0),
        "sample": (sample, sample * search),
        "dataset": (paths, offline),
        "train": (0, taught),
        "search": (left // first_rung, left),
        "pareto": (params.pareto.rescored + sources, final),
    }
    times: dict[str, float] = read_json(workspace.state / "times" / f"{workspace.name}.json")
    if seconds_an_item is not None:
        times = {stage: items * seconds_an_item for stage, (_, items) in numbers.items() if items} | times
    return {stage: Cost(stage, *pair, times.get(stage)) for stage, pair in numbers.items()}


def actor_evaluations(workspace: Workspace, left: int) -> int:
    """What training the actor is charged at most, of what is left of the budget."""
    settings, profile = actor_settings(workspace.params.train), workspace.profile
    counts = [one.items.search for one in profile.objectives]
    steps = settings.steps(workspace.params.search.budget, left, counts, profile.layers is not None)
    return steps * settings.cost(counts)


def front_size(workspace: Workspace) -> int:
    """Members, and the best of each objective beside them, at most."""
    profile = workspace.profile
    return workspace.params.pareto.members + len(profile.objectives) + (profile.layers is not None)


def plan_of(workspace: Workspace, sources: Mapping[str, Model], seconds_an_item: float | None) -> Plan:
    """What a run will cost at most; base and experts among the sources as far as they are there."""
    costs = tuple(costs_of(workspace, seconds_an_item).values())
    if "base" not in sources:
        return Plan(costs, None, None)
    profile, base = workspace.profile, sources["base"]
    width = torch.finfo(getattr(torch, profile.dtype)).bits // 8
    model = parameter_count(base) * width
    pool = min(profile.pool_bytes, model * (len(sources) + workspace.params.sample.anchors))
    merging = 2 * len(sources) * model // base.architecture.layers(base.config)
    uploads = {"members": front_size(workspace), "champion": 1, "none": 0}[profile.registry.weights]
    return Plan(costs, RUNTIME_BYTES + pool + merging, uploads * int(model * profile.paths.stretch))


@dataclass(frozen=True)
class Trial:
    """How fast the base was scored."""

    seconds: float
    """That an item evaluation takes."""
    items: int
    whole: bool
    """Whether as many items were timed as was meant."""


def probe(workspace: Workspace, base: Model, objectives: Objectives, progress: Progress) -> Trial:
    """Score some items with the base, twice as many each time, after one that warms everything up.

    Where other work takes part of the machine, the time that this process had counts instead of the clock's.
    """
    profile = workspace.profile
    pool = Pool(base.config, profile.device, getattr(torch, profile.dtype), profile.pool_bytes)
    pool.add("base", base)
    candidate = Candidate.identity("base", pool.layers)
    began, done, count, seconds, step = time.perf_counter(), 0, 0, 0.0, 1
    with progress.bar("trying the scoring", PROBE_ITEMS, "items an objective") as bar:
        objectives.item_scores(pool, [candidate], 0, 1)
        while done < PROBE_ITEMS and (done == 0 or time.perf_counter() - began < PROBE_SECONDS):
            stop = min(PROBE_ITEMS, done + step)
            before = time.perf_counter(), time.process_time()
            objectives.item_scores(pool, [candidate], done, stop)
            clock, own = time.perf_counter() - before[0], time.process_time() - before[1]
            seconds += clock if pool.device.type == "cuda" else min(clock, own)
            count += sum(max(0, min(stop, objectives.count(name)) - done) for name in objectives.names)
            bar.advance(stop - done)
            done, step = stop, 2 * step
    return Trial(seconds / count, count, done == PROBE_ITEMS)
