"""The kinds of scoring, and which of them a part of an objective needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.pool import Pool
from models.paths.prefix import Requests
from tasks.objectives import generation, likelihood
from tasks.objectives.built_task import BuiltTask, Prompts, build
from tasks.objectives.images.objective import image_objective
from tasks.objectives.metrics import Metric
from tasks.objectives.parts import Failure, Kind, OnScored, Part, Span, TaskPart
from tasks.objectives.task_files import TaskFile
from tasks.objectives.tokens import chat_template
from tasks.project.workspace import Workspace
from tasks.schema.params import Measured, Objective

OTHER_KINDS: dict[str, Callable[[Workspace, Objective, str, int], Any]] = {"images": image_objective}
"""Objectives that are no lm-eval tasks: field of the profile's objective → what makes the one part of it.

It is called with project and profile, the objective, the split and the number of items, and gives a ``Part`` that
scores itself: ``values(pool, candidates, start, stop, on_scored)`` is for each candidate a list of values or a
``Failure``; if it also has ``requests(pool, start, stop)``, what the models read counts for block influence. A class of
parts that are scored together has ``kind(parts)`` instead, which gives their ``Kind``.
"""

Asked = TypeVar("Asked", bound=Measured)


class OneByOne:
    """The kind of a part that scores itself."""

    def __init__(self, part: Any) -> None:
        self.parts: Sequence[Any] = [part]

    def part_values(
        self, pool: Pool, candidates: Sequence[Candidate], spans: Sequence[Span], on_scored: OnScored
    ) -> list[list[list[float]] | Failure]:
        """For each candidate the values of the items in the span, higher is better."""
        scored = self.parts[0].values(pool, candidates, *spans[0], on_scored)
        return [one if isinstance(one, Failure) else [one] for one in scored]

    def requests(self, pool: Pool, spans: Sequence[Span]) -> Requests:
        """What the models read of the items in the span, if the part says it."""
        made: Requests = getattr(self.parts[0], "requests", _nothing_read)(pool, *spans[0])
        return made


def _nothing_read(pool: Pool, start: int, stop: int) -> Requests:
    return Requests(0, ())


def task_part(
    workspace: Workspace,
    objective: str,
    file: TaskFile,
    asked: Asked,
    split: str,
    count: int,
    label: str,
    tokenizer: Any,
    metric: Callable[[BuiltTask, Asked], Metric],
) -> TaskPart:
    """The part of an objective that is an lm-eval task.

    Args:
        workspace: project and profile.
        objective: its name.
        file: the task.
        asked: what the profile wants of it.
        split: ``search``, ``selection`` or ``test``.
        count: items.
        label: how errors name it.
        tokenizer: of the models.
        metric: makes the metric of the task.

    Raises:
        BadInput: it has too few items, or its metric is missing or can't be computed.
    """
    prompts = Prompts()
    if workspace.profile.chat_template:
        prompts = Prompts(chat_template(tokenizer, f"profiles/{workspace.name}.yaml"))
    built = build(workspace, file, asked, split, max(1, count), label, prompts)
    kinds = dict.fromkeys(one.request_type for item in built.requests for one in item)
    if len(kinds) > 1:
        raise BadInput(
            f"{label}: task {file.name}: asks for {' and '.join(kinds)} at once; take a task that asks for one"
        )
    module = module_of(built.task.OUTPUT_TYPE)
    return TaskPart(objective, built, metric(built, asked), count, module.tokens_of(tokenizer, built))


def kinds_of(parts: Sequence[Part], tokenizer: Callable[[], Any], batch: int) -> list[Kind]:
    """What scores the parts: those of one kind together, one that scores itself by itself.

    Args:
        parts: of all objectives.
        tokenizer: opens that of the models.
        batch: prompts that are answered at once.
    """
    kinds: list[Kind] = []
    tasks = [part for part in parts if isinstance(part, TaskPart)]
    likelihoods = [part for part in tasks if module_of(part.built.task.OUTPUT_TYPE) is likelihood]
    generations = [part for part in tasks if module_of(part.built.task.OUTPUT_TYPE) is generation]
    if likelihoods:
        kinds.append(likelihood.Likelihood(likelihoods, tokenizer()))
    if generations:
        kinds.append(generation.Generation(generations, tokenizer(), batch))
    others: list[Any] = [part for part in parts if not isinstance(part, TaskPart)]
    for together in dict.fromkeys(type(part) for part in others if hasattr(part, "kind")):
        kinds.append(together.kind([part for part in others if type(part) is together]))
    kinds += [OneByOne(part) for part in others if not hasattr(part, "kind")]
    return kinds


def module_of(output_type: str) -> Any:
    """The module that scores an output type of lm-eval."""
    return generation if output_type in generation.OUTPUTS else likelihood
