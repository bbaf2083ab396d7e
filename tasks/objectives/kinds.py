"""The kinds of scoring, and which of them a part of an objective needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from models.errors import BadInput
from models.files import reading
from tasks.objectives import generation, likelihood
from tasks.objectives.built_task import BuiltTask, Wanted, build
from tasks.objectives.images.objective import ImageKind, ImageObjective
from tasks.objectives.metrics import Metric
from tasks.objectives.parts import Kind, TaskKind, TaskPart
from tasks.objectives.tokens import chat_template
from tasks.project.workspace import Workspace


def task_part(
    workspace: Workspace, objective: str, wanted: Wanted, metric: Callable[[BuiltTask], Metric], tokenizer: Any
) -> TaskPart:
    """The part of an objective that is an lm-eval task.

    Raises:
        BadInput: it has too few items, or its metric is missing or can't be computed.
    """
    chat = chat_template(tokenizer, f"profiles/{workspace.name}.yaml") if workspace.profile.chat_template else None
    built = build(workspace, wanted, chat)
    types = dict.fromkeys(one.request_type for item in built.requests for one in item)
    if len(types) > 1:
        raise BadInput(
            f"{wanted.label}: task {built.name}: asks for {' and '.join(types)} at once; take a task that asks for one"
        )
    tokens_of = generation.tokens_of if is_generated(built) else likelihood.tokens_of
    with reading(f"{wanted.label}: task {built.name}", "mend the rows that it reads", "makes no requests"):
        tokens = tokens_of(tokenizer, built)
    return TaskPart(objective, built, metric(built), wanted.count, tokens)


def kinds_of(parts: Sequence[TaskPart | ImageObjective], tokenizer: Callable[[], Any], batch: int) -> list[Kind]:
    """What scores the parts of all objectives, those of one kind together; ``batch``: prompts answered at once."""
    kinds: list[Kind] = [*task_kinds([part for part in parts if isinstance(part, TaskPart)], tokenizer, batch)]
    images = [part for part in parts if isinstance(part, ImageObjective)]
    return [*kinds, ImageKind(images)] if images else kinds


def task_kinds(parts: Sequence[TaskPart], tokenizer: Callable[[], Any], batch: int) -> list[TaskKind]:
    """The same for lm-eval tasks alone."""
    likelihoods = [part for part in parts if not is_generated(part.built)]
    generations = [part for part in parts if is_generated(part.built)]
    kinds: list[TaskKind] = [likelihood.Likelihood(likelihoods, tokenizer())] if likelihoods else []
    return [*kinds, generation.Generation(generations, tokenizer(), batch)] if generations else kinds


def is_generated(built: BuiltTask) -> bool:
    """Whether a task's answers are texts that the model writes."""
    return bool(built.task.OUTPUT_TYPE == generation.OUTPUT)
