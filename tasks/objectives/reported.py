"""Further metrics of the members of a front, each as lm-eval computes it over all items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.pool import Pool, unwatched
from tasks.objectives.built_task import Wanted
from tasks.objectives.kinds import task_kinds, task_part
from tasks.objectives.metrics import Metric, reported_metric
from tasks.objectives.parts import Failure, TaskPart
from tasks.objectives.task_files import find, task_label
from tasks.project.workspace import Workspace
from tasks.schema.profile import Objective, ReportedMetric


class Reported:
    """The profile's ``reported`` metrics on one split; their tasks are built when first asked for."""

    def __init__(self, workspace: Workspace, split: str, tokenizer: Callable[[], Any], counts: Mapping[str, int]):
        """Nothing is built yet; ``counts``: items of each objective."""
        self.workspace = workspace
        self.split = split
        self.tokenizer = tokenizer
        self.counts = counts
        self._parts: dict[tuple[str, int], TaskPart] = {}

    def metrics(self) -> list[tuple[str, TaskPart, Metric]]:
        """Each metric's name, ``OBJECTIVE_METRIC``, and its task.

        Raises:
            BadInput: a task can't be built, or its metric is missing or can't be computed.
        """
        found = []
        for objective in self.workspace.profile.objectives:
            for reported in objective.reported:
                part = self._part(objective, reported)
                name = f"{objective.name}_{reported.metric.partition(',')[0]}"
                found.append((name, part, reported_metric(part.built, reported)))
        return found

    def evaluate(self, pool: Pool, candidate: Candidate) -> dict[str, float]:
        """Values of the metrics as lm-eval gives them. A candidate that fails has none.

        Raises:
            BadInput: a metric is missing in its task's result.
        """
        results: dict[str, float] = {}
        answered: dict[int, Any] = {}
        for name, part, metric in self.metrics():
            if id(part) not in answered:
                (kind,) = task_kinds([part], self.tokenizer, self.workspace.profile.generation_batch)
                (answered[id(part)],) = kind.answers(pool, [candidate], [(0, part.count)], unwatched)
            answers = answered[id(part)]
            if not isinstance(answers, Failure):
                results[name] = part.built.aggregated(answers[0])[",".join(metric.key)]
        return results

    def _part(self, objective: Objective, reported: ReportedMetric) -> TaskPart:
        """The task of a metric; metrics of one task share it."""
        label, count = task_label(self.workspace, objective.name), self.counts[objective.name]
        key = reported.model_dump_json(exclude={"metric", "filter"}), count
        if key not in self._parts:
            files = find(self.workspace, reported.task, label)
            if len(files) > 1:
                raise BadInput(f"{label}: reported: task {reported.task!r}: is a group; name one of its tasks")
            wanted = Wanted(files[0], reported, self.split, count, label)
            metric = partial(reported_metric, measured=reported)
            self._parts[key] = task_part(self.workspace, objective.name, wanted, metric, self.tokenizer())
        return self._parts[key]
