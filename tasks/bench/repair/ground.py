"""An open family: its uncut merge, the items that score candidates and the texts that calibrate repairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from models.candidate import Candidate
from models.front import Array
from models.merge.recipe import parse_recipes
from models.merge.source import MergedSource
from models.paths.calibration import Calibration
from models.paths.pool import Pool
from models.paths.prefix import CPU_TOKENS, Pair, Requests, path_likelihoods
from models.sources.checkpoint import Source
from tasks.bench.repair.families import Kind
from tasks.objectives.calibration import calibration_of
from tasks.objectives.objectives import Objectives
from tasks.objectives.parts import TaskPart
from tasks.project.workspace import Workspace
from tasks.scoring.engine import Engine

MERGE = "merge"
"""Name of the uncut merge: task arithmetic, every expert at one half."""
WEIGHT = 0.5

MOST = 64_000
"""Tokens of calibration items that are ever asked for."""


class Held:
    """A model all of whose tensors are in memory. Implements :class:`models.sources.checkpoint.Source`."""

    def __init__(self, source: Source, changed: Mapping[str, Tensor] | None = None, key: str = "") -> None:
        """Read it; ``changed``: tensors that are others than the model's own, and ``key`` names them."""
        self.config, self._source, self._key = source.config, source, key
        self._changed = dict(changed or {name: source.tensor(name) for name in source.names()})

    def names(self) -> list[str]:
        """See ``Source``."""
        return self._source.names()

    def tensor(self, name: str) -> Tensor:
        """See ``Source``."""
        return self._changed[name] if name in self._changed else self._source.tensor(name)

    def digest(self, group: str) -> str:
        """See ``Source``."""
        return f"{self._source.digest(group)} {self._key}".strip()


@dataclass(frozen=True)
class Items:
    """Items of a split that candidates are scored on."""

    requests: Requests
    tasks: tuple[str, ...]
    """Of each item, N of them."""
    sizes: Array
    """By which an item's negative log-likelihood is divided, ``(N,)``."""


@dataclass(frozen=True)
class Losses:
    """What a candidate loses on each item, ``(N,)``, and whether greedy decoding gives the whole answer."""

    loss: Array
    right: Array


@dataclass
class Ground:
    """A family with its merge in a pool."""

    name: str
    kind: Kind
    workspace: Workspace
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        """Open the models."""
        self.engine = Engine(self.workspace, self.workspace.root / "journal")
        names = {"base": self.engine.family.base, **self.engine.family.experts}
        text = {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": [{"model": one, "parameters": {"weight": WEIGHT}} for one in self.engine.family.experts],
            "dtype": "float32",
        }
        recipe = parse_recipes(yaml.safe_dump(text), MERGE)[-1]
        self.source = Held(MergedSource(recipe, lambda name: self.engine.source(names[name])))
        self.pool.add(MERGE, self.source)

    @property
    def pool(self) -> Pool:
        """Has the merge, base and experts."""
        return self.engine.pool

    @property
    def layers(self) -> int:
        """Of the merge, L."""
        return self.pool.layers

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the task objectives."""
        return tuple(one.name for one in self.workspace.profile.objectives)

    @cached_property
    def test(self) -> Items:
        """Items that results are reported on."""
        return self.items(self.engine.objectives("test"))

    @cached_property
    def search(self) -> Items:
        """Items that cuts are chosen by."""
        return self.items(self.engine.objectives("search"))

    def items(self, objectives: Objectives) -> Items:
        """All items of a split, in the order of the objectives."""
        (requests,) = objectives.requests(self.pool)
        parts = [(name, part) for name, one in objectives.composed.items() for part in one.parts]
        tasks = tuple(name for name, part in parts for _ in range(len(part.ids)))
        return Items(requests, tasks, np.concatenate([self.sizes(part) for _, part in parts]))

    def sizes(self, part: Any) -> Array:
        """By what the losses of a part's items are divided: bits a byte, or nats a token or an image."""
        if not isinstance(part, TaskPart):
            return np.ones(len(part.ids))
        if self.kind.unit == "token":
            return np.array([len(item[0][0][1]) for item in part.tokens], dtype=float)
        texts = [str(item[0].arguments[1]) for item in part.built.requests]
        return np.array([math.log(2) * len(text.encode()) for text in texts])

    def score(self, candidates: Sequence[Candidate], items: Items) -> list[Losses]:
        """What candidates lose on each item."""
        found = path_likelihoods(self.pool, candidates, items.requests)
        return [Losses(-likelihood.numpy() / items.sizes, right.numpy().astype(float)) for likelihood, right in found]

    @cached_property
    def calibration(self) -> Calibration:
        """The items that models are calibrated on, of all tasks alike: those that a run takes, and more of them."""
        return calibration_of(self.workspace, self.engine.tokenizer, MOST)

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """Of each task the texts among them, as tokens: prompt and answer."""
        found: dict[str, list[Pair]] = {task: [] for task in self.tasks}
        items = self.calibration
        for task, text, answer in zip(items.tasks, items.tokens or (), items.answers, strict=True):
            found[task].append((text[:-answer], text[-answer:]))
        return found

    def texts(
        self,
        tokens: int,
        tasks: Sequence[str] = (),
        *,
        skip: int = 0,
        answers: bool = True,
        batch: int = CPU_TOKENS,
    ) -> Requests:
        """Requests of so many tokens at least, from each task alike: texts, or images.

        Args:
            tokens: of all requests together.
            tasks: by default all of them; images are of all.
            skip: tokens of each that are left for others; of texts alone, like what follows.
            answers: whether they have their answers, or prompts alone.
            batch: tokens of a batch.
        """
        if self.kind.unit == "image":
            return self.calibration.first(tokens).requests(self.pool)
        pairs: list[Pair] = []
        for task in tasks or self.tasks:
            pairs += _until(self.pairs[task], tokens / len(tasks or self.tasks), skip, answers)
        return Requests.from_pairs(pairs, self.pool.max_length, batch)

    def plain(self, tokens: int, folder: Path) -> Requests:
        """Requests of so many tokens from the project's own pages, in pieces as long as items are."""
        tokenizer = self.engine.objectives("selection").tokenizer()
        ids = [one for path in sorted(folder.glob("*.md")) for one in tokenizer(path.read_text())["input_ids"]]
        pieces = [ids[first : first + 96] for first in range(0, min(tokens, len(ids)), 96)]
        return Requests.from_pairs([(piece[:1], piece[1:]) for piece in pieces if len(piece) > 1], self.pool.max_length)


def _until(pairs: Sequence[Pair], tokens: float, skip: int, answers: bool) -> Iterator[Pair]:
    """Pairs of so many tokens, behind those that are skipped; a prompt's last token stands for its answer."""
    total = -skip
    for context, continuation in pairs:
        if total >= tokens:
            return
        if total >= 0:
            yield (context, continuation) if answers else (context[:-1] or context, context[-1:])
        total += len(context) + (len(continuation) - 1 if answers else 0)
