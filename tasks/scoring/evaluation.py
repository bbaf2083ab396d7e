"""`hm3 evaluate`: a checkpoint or a recipe on the profile's objectives."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from models.candidate import Candidate
from models.errors import Failed
from models.learned.learn import learn
from models.merge.recipe import read_recipes
from models.merge.source import MergedSource, open_recipes
from models.merge.write import tokenizer_model
from models.paths.pool import Pool
from models.sources.checkpoint import Model, Source
from models.sources.heads import share_heads
from models.sources.lora import open_model
from tasks.objectives.objectives import Objectives, TaskResults
from tasks.project.family import load_family
from tasks.project.progress import Progress
from tasks.project.references import finder, is_model, model_finder
from tasks.project.workspace import Workspace

NAME = "target"


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model."""

    target: str
    split: str
    layers: int
    """Layers that a token passes."""
    scores: dict[str, float]
    """Objective → score, higher is better; ``layers`` is T/L and lower is better."""
    items: dict[str, int]
    """Task objective → number of items."""
    tasks: TaskResults
    """Objective → lm-eval task → ``metric,filter`` → what lm-eval's own aggregation gives over these items."""

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return asdict(self)

    def shown(self) -> RenderableType:
        """For a terminal."""
        scores, items, values = (Column(name, justify="right") for name in ("score", "items", "value"))
        table = Table("objective", scores, items, box=None, pad_edge=False)
        for name, value in self.scores.items():
            table.add_row(name, f"{value:.4f}", str(self.items.get(name, "")))
        title = Text(f"{self.target}: {self.layers} layers, scores on {self.split}", style="bold")
        if not self.tasks:
            return Group(title, table)
        theirs = Table("task", "metric", "filter", values, box=None, pad_edge=False)
        for tasks in self.tasks.values():
            for task, metrics in tasks.items():
                for key, value in metrics.items():
                    theirs.add_row(task, *key.rsplit(",", 1), f"{value:.4f}")
        return Group(title, table, Text("\nas lm-eval aggregates the same items", style="bold"), theirs)


def evaluate(workspace: Workspace, target: str, split: str, here: Path, progress: Progress) -> Evaluation:
    """Scores of a model on all items of a split, in memory: nothing is written.

    Args:
        target: a model as a profile names it, or a recipe file.
        here: folder from which ``target`` is a relative path.

    Raises:
        BadInput: there is no such model or file, or it can't be used.
        Failed: the model gives NaN.
    """
    family = load_family(workspace)
    source, tokenizer = open_target(workspace, target, here, progress)
    profile = workspace.profile
    base = open_model(family.base, finder(workspace))
    source = share_heads({"base": base, NAME: source})[NAME]
    pool = Pool(source.config, profile.device, getattr(torch, profile.dtype), profile.pool_bytes)
    pool.add(NAME, source)
    with progress.bar(f"building the requests of {split}"):
        objectives = Objectives(workspace, split, tokenizer)
    counts = {name: objectives.count(name) for name in objectives.names}
    with progress.bar(f"scoring on {split}", 1, "models") as bar:
        scored, tasks = objectives.evaluate(pool, Candidate.identity(NAME, pool.layers), bar.advance)
    if scored.failed is not None:
        raise Failed(f"{target}: {scored.failed}")
    scores = {name: float(np.mean(values)) for name, values in scored.items.items()}
    if profile.layers is not None:
        scores["layers"] = pool.layers / base.architecture.layers(base.config)
    return Evaluation(target, split, pool.layers, scores, counts, tasks)


def open_target(workspace: Workspace, target: str, here: Path, progress: Progress) -> tuple[Source, Path]:
    """The model that a target names, and the folder of its tokenizer.

    Raises:
        BadInput: it is no model, with or without an adapter, and no recipe.
    """
    find = model_finder(workspace.state, here, workspace.root)

    @cache
    def resolve(model: str) -> Model:
        return open_model(model, find)

    if (here / target).is_dir() or is_model(target):
        return resolve(target), resolve(target).tokenizer
    recipes = read_recipes(here / target)
    tokenizer = resolve(tokenizer_model(recipes)).tokenizer

    def repairing(source: MergedSource) -> None:
        with progress.bar("repairing seams", 100, "%") as bar:
            learn(source, tokenizer, find, lambda done, _: bar.advance(done - bar.completed))

    return open_recipes(recipes, resolve, learn=repairing if recipes[-1].repair else None), tokenizer
