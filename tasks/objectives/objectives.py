"""The objectives of a profile on one split: built once, and scored for every candidate in memory.

An objective consists of parts (``tasks.objectives.parts``): one or several lm-eval tasks, items interleaved by weight.
Parts of one kind are scored together, whichever objectives they belong to (``tasks/objectives/kinds.py``).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.pool import Pool, unwatched
from models.paths.prefix import Requests
from tasks.objectives.built_task import Wanted
from tasks.objectives.images.objective import image_objective
from tasks.objectives.items import interleaved
from tasks.objectives.kinds import kinds_of, task_part
from tasks.objectives.metrics import metric_of
from tasks.objectives.parts import Failure, Kind, OnScored, Span, TaskKind, TaskPart
from tasks.objectives.reported import Reported
from tasks.objectives.task_files import check_names, find, task_label
from tasks.objectives.tokens import open_tokenizer
from tasks.project.workspace import Workspace
from tasks.schema.profile import Objective, ObjectiveTask

SHOWN = 8
"""Tasks of an objective that are described one by one."""

Found = dict[int, list[float]] | Failure
"""What is known of a candidate: values of items by part, or why there are none."""

TaskResults = dict[str, dict[str, dict[str, float]]]
"""Objective → task → ``metric,filter`` → value."""


@dataclass(frozen=True)
class ItemScores:
    """One candidate's scores: for each task objective one value an item, in item order, higher is better."""

    items: dict[str, list[float]] = field(default_factory=dict)
    failed: str | None = None
    """Why it has none."""


@dataclass(frozen=True)
class Composed:
    """An objective: its parts, and which of them each item comes from."""

    parts: tuple[Any, ...]
    order: tuple[int, ...]

    def spans(self, start: int, stop: int) -> list[Span]:
        """Items of each part among the items ``[start, stop)`` of the objective."""
        before, after = Counter(self.order[:start]), Counter(self.order[:stop])
        return [(before[part], after[part]) for part in range(len(self.parts))]

    def merged(self, values: Sequence[Sequence[Any]], start: int = 0, stop: int | None = None) -> list[Any]:
        """What the parts have for their spans, in the objective's order of items."""
        left = [iter(one) for one in values]
        return [next(left[part]) for part in self.order[start:stop]]


class Objectives:
    """The task objectives of a profile on one split."""

    def __init__(self, workspace: Workspace, split: str, tokenizer_folder: Path) -> None:
        """Build and tokenise every request.

        Args:
            workspace: project and profile.
            split: ``search``, ``selection`` or ``test``.
            tokenizer_folder: folder whose tokenizer the models share; opened where an objective is a text.

        Raises:
            BadInput: a task is unknown, has too few items, or its metric is missing or can't be computed.
        """
        check_names(workspace)
        self.workspace = workspace
        self.split = split
        self._folder = tokenizer_folder
        self.composed = {one.name: self._composed(one) for one in workspace.profile.objectives}
        self.names = tuple(self.composed)
        parts = [part for one in self.composed.values() for part in one.parts]
        self.kinds = kinds_of(parts, self.tokenizer, workspace.profile.generation_batch)
        self.definition = self._definition()
        self.reported = Reported(workspace, split, self.tokenizer, {name: self.count(name) for name in self.names})

    def tokenizer(self) -> Any:
        """The models' tokenizer."""
        return open_tokenizer(self._folder)

    def count(self, objective: str) -> int:
        """Items of a task objective."""
        return len(self.composed[objective].order)

    def ids(self, objective: str) -> tuple[str, ...]:
        """Names of the items of a task objective, in order; with their task's, where it has several."""
        parts = self.composed[objective].parts
        named = [[f"{part.built.name}: {item}" for item in part.ids] for part in parts] if len(parts) > 1 else []
        return tuple(self.composed[objective].merged(named or [part.ids for part in parts]))

    def item_scores(
        self,
        pool: Pool,
        candidates: Sequence[Candidate],
        start: int,
        stop: int,
        on_scored: OnScored = unwatched,
    ) -> list[ItemScores]:
        """Scores of the items ``[start, stop)`` of every objective; one with fewer items gives what it has.

        ``on_scored`` is told how many more candidates are done, in parts of them where several kinds of scoring are.
        """
        found: list[Found] = [{} for _ in candidates]
        for kind, spans, told in self._work(start, stop, on_scored):
            scored = kind.part_values(pool, candidates, spans, told)
            found = [_joined(known, kind, one) for known, one in zip(found, scored, strict=True)]
        return [self._by_objective(one, start, stop) for one in found]

    def evaluate(
        self, pool: Pool, candidate: Candidate, on_scored: OnScored = unwatched
    ) -> tuple[ItemScores, TaskResults]:
        """Scores of all items, and of each lm-eval task every metric by its own aggregation, as its command prints."""
        found: Found = {}
        results: TaskResults = {}
        stop = max(map(self.count, self.names))
        for kind, spans, told in self._work(0, stop, on_scored):
            if not isinstance(kind, TaskKind):
                (scored,) = kind.part_values(pool, [candidate], spans, told)
            else:
                (answered,) = kind.answers(pool, [candidate], spans, told)
                scored = kind.worth(answered, spans)
                if not isinstance(answered, Failure):
                    for part, answers in zip(kind.parts, answered, strict=True):
                        results.setdefault(part.name, {})[part.built.name] = part.built.aggregated(answers)
            found = _joined(found, kind, scored)
        return self._by_objective(found, 0, stop), {name: results[name] for name in self.names if name in results}

    def requests(self, pool: Pool) -> list[Requests]:
        """What the models read of all items, by kind of scoring; right answers included where they are forced."""
        stop = max(map(self.count, self.names))
        return [kind.requests(pool, spans) for kind, spans, _ in self._work(0, stop, unwatched)]

    def _work(self, start: int, stop: int, on_scored: OnScored) -> Iterator[tuple[Kind, list[Span], OnScored]]:
        """Each kind of scoring, the items of its parts among ``[start, stop)``, and what it tells."""
        spans: dict[int, Span] = {}
        for one in self.composed.values():
            spans |= zip(map(id, one.parts), one.spans(start, stop), strict=True)
        by_kind = [[spans[id(part)] for part in kind.parts] for kind in self.kinds]
        sizes = [sum(high - low for low, high in own) for own in by_kind]
        for kind, own, size in zip(self.kinds, by_kind, sizes, strict=True):
            yield kind, own, _share(on_scored, size / sum(sizes) if sum(sizes) else 1 / len(sizes))

    def _composed(self, objective: Objective) -> Composed:
        if objective.images is not None:
            count = count_of(objective, self.split)
            return Composed((image_objective(self.workspace, objective, self.split, count),), (0,) * count)
        wanted, order = wanted_of(self.workspace, objective, self.split)
        parts = []
        for task, one in wanted:
            metric = partial(metric_of, scored=task)
            parts.append(task_part(self.workspace, objective.name, one, metric, self.tokenizer()))
        return Composed(tuple(parts), order)

    def _by_objective(self, found: Found, start: int, stop: int) -> ItemScores:
        if isinstance(found, Failure):
            return ItemScores(failed=found.reason)
        values = {name: [found[id(part)] for part in one.parts] for name, one in self.composed.items()}
        return ItemScores({name: one.merged(values[name], start, stop) for name, one in self.composed.items()})

    def _definition(self) -> str:
        """Digest of all that decides the scores beside the candidate: part of the key under which they are kept."""
        described: list[Any] = [importlib.metadata.version("lm-eval"), self.split]
        for name, one in self.composed.items():
            described.append([name, one.order, [part.definition for part in one.parts]])
        return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def count_of(objective: Objective, split: str) -> int:
    """Items of an objective in a split."""
    asked: int = getattr(objective.items, split)
    return asked


def wanted_of(
    workspace: Workspace, objective: Objective, split: str
) -> tuple[list[tuple[ObjectiveTask, Wanted]], tuple[int, ...]]:
    """What is wanted of each lm-eval task of an objective, and which of them each of its items comes from.

    Raises:
        BadInput: a task is unknown, or there are fewer items than tasks.
    """
    label, count = task_label(workspace, objective.name), count_of(objective, split)
    files = [(task, file) for task in objective.parts for file in find(workspace, task.task, label)]
    sizes = Counter(id(task) for task, _ in files)  # the tasks of a group share its weight
    order = tuple(islice(interleaved([task.weight / sizes[id(task)] for task, _ in files]), count))
    counts = Counter(order)
    if len(counts) < len(files):
        raise BadInput(f"{label}: items.{split}: {count}, shared by {len(files)} tasks; ask for more")
    places = [f"{label}: {file.name}" if len(files) > 1 else label for _, file in files]
    wanted = [
        (task, Wanted(file, task, split, counts[number], places[number])) for number, (task, file) in enumerate(files)
    ]
    return wanted, order


def described(name: str, splits: Mapping[str, Objectives]) -> Iterator[str]:
    """What an objective is made of, in a line a task: metric, and the items that are asked for and there, by split."""
    parts = {split: one.composed[name].parts for split, one in splits.items()}
    first = next(iter(parts.values()))
    for number, part in enumerate(first[:SHOWN]):
        items = []
        for split, own in parts.items():
            there = own[number].built.available if isinstance(part, TaskPart) else own[number].count
            items.append(f"{split} {own[number].count} of {there}")
        what = f"{name}: {part.built.name}, {part.metric.described}" if isinstance(part, TaskPart) else name
        yield f"{what}; items: {', '.join(items)}"
    if len(first) > SHOWN:
        yield f"{name}: and {len(first) - SHOWN} tasks more"


def _joined(known: Found, kind: Kind, scored: Sequence[list[float]] | Failure) -> Found:
    """What is known of a candidate, with what one more kind of scoring found."""
    if isinstance(known, Failure):
        return known
    if isinstance(scored, Failure):
        return scored
    return {**known, **dict(zip(map(id, kind.parts), scored, strict=True))}


def _share(on_scored: OnScored, share: float) -> OnScored:
    """One kind's part in what is told."""
    return lambda done: on_scored(share * done)
