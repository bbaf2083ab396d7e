"""What one item is worth: a metric of lm-eval as one number an item, higher is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from models.errors import BadInput, one_line
from tasks.objectives.built_task import BuiltTask, Key
from tasks.schema.profile import Measured, Scored

Computed = TypeVar("Computed")


@dataclass(frozen=True)
class Metric:
    """A metric and filter of a task, by item.

    Over items lm-eval's aggregation is

    - a mean: an item's value is what is averaged;
    - a perplexity: an item's value is the logarithm of its own perplexity;
    - anything else (chrF, BLEU, TER, bits per byte, the Brier score, or the task's own function): an item's value is
      that aggregation over the item alone. Where the function has an attribute ``by_item``, that gives the values of
      many items in one call.

    The score of an objective is the mean of its items' values.
    """

    key: Key
    aggregation: Callable[[Sequence[Any]], Any]
    factor: float
    """Scale, negative where lower values are better."""

    @property
    def described(self) -> str:
        """In a few words."""
        scale = "" if abs(self.factor) == 1 else f", times {abs(self.factor):g}"
        return f"{','.join(self.key)} ({'higher' if self.factor > 0 else 'lower'} is better{scale})"

    def values(self, found: Sequence[Any]) -> list[float]:
        """Values of items, higher is better, from what lm-eval's ``process_results`` gives for the metric."""
        from lm_eval.api.metrics import mean, nanmean, perplexity, weighted_perplexity

        if self.aggregation is mean or self.aggregation is nanmean:
            numbers = [float(one) for one in found]
        elif self.aggregation is perplexity:
            numbers = [-float(one) for one in found]
        elif self.aggregation is weighted_perplexity:
            numbers = [-float(likelihood) / weight for likelihood, weight in found]
        elif by_item := getattr(self.aggregation, "by_item", None):
            numbers = [float(one) for one in by_item(found)]
        else:
            numbers = [float(self.aggregation([one])) for one in found]
        return [self.factor * number for number in numbers]


def metric_of(built: BuiltTask, scored: Scored) -> Metric:
    """The metric that the search wants, tried out on the task's first item with an answer that is made up.

    Raises:
        BadInput: it is missing, says nothing of one item, can't be computed, or has no direction.
    """
    from lm_eval.api.metrics import bypass_agg, f1_score, matthews_corrcoef, mean, median

    trial = tried(built)
    key = built.key(scored, trial)
    metric = f"{built.label}: metric {key[0]!r}"
    aggregation = built.task.aggregation().get(key[0], mean)
    if aggregation in (bypass_agg, f1_score, matthews_corrcoef, median):
        raise BadInput(f"{metric}: is no mean over items, and says nothing of one; take one that does, or report it")
    found = Metric(key, aggregation, sign_of(built, key[0], scored.direction) * scored.scale)
    value = computed(metric, lambda: found.values([trial[key]])[0])
    if not math.isfinite(value):
        raise BadInput(f"{metric}: gives {value} for one item; take another, or report it")
    return found


def reported_metric(built: BuiltTask, measured: Measured) -> Metric:
    """A metric that is computed over all items alone, tried out likewise.

    Raises:
        BadInput: it is missing or can't be computed.
    """
    from lm_eval.api.metrics import mean

    trial = tried(built)
    key = built.key(measured, trial)
    aggregation = built.task.aggregation().get(key[0], mean)
    computed(f"{built.label}: metric {key[0]!r}", lambda: float(aggregation([trial[key]])))
    return Metric(key, aggregation, 1.0)


def tried(built: BuiltTask) -> dict[Key, Any]:
    """What lm-eval makes of a made-up answer to the task's first item.

    Raises:
        BadInput: it fails.
    """
    answers = [[made_up(built, request)] * repeats(request) for request in built.requests[0]]
    return computed(f"{built.label}: task {built.name}", lambda: built.metrics([answers])[0])


def computed(what: str, compute: Callable[[], Computed]) -> Computed:
    """What functions of a task give.

    Raises:
        BadInput: they fail.
    """
    try:
        return compute()
    except Exception as error:  # noqa: BLE001 (a task brings functions of its own)
        reason = one_line(f"{type(error).__name__}: {error}", 200)
        raise BadInput(f"{what}: can't be computed ({reason}); take another, or mend the task") from None


def sign_of(built: BuiltTask, metric: str, direction: str | None) -> float:
    """-1 where lower values are better.

    Raises:
        BadInput: neither the task nor the profile says it.
    """
    higher = built.task.higher_is_better().get(metric) if direction is None else direction == "higher"
    if higher is None:
        raise BadInput(
            f"{built.label}: metric {metric!r}: the task does not say whether higher is better; "
            "add `direction: higher` or `direction: lower`"
        )
    return 1.0 if higher else -1.0


def made_up(built: BuiltTask, request: Any) -> Any:
    """An answer of the kind that a request asks for: the right one, where it is a text."""
    if request.request_type == "loglikelihood":
        return -1.0, False
    if request.request_type == "loglikelihood_rolling":
        return -1.0
    target = built.task.doc_to_target(request.doc)
    if isinstance(target, int) and built.task.config.doc_to_choice is not None:
        target = built.task.doc_to_choice(request.doc)[target]
    return str(target[0] if isinstance(target, list) and target else target)


def repeats(request: Any) -> int:
    """How often a request is asked: more than once where answers are sampled."""
    return int(request.repeats or 1)
