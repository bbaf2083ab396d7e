"""pass@k of generated programs, and lm-eval's tasks of code made to score through our sandbox, without the hub.

lm-eval marks such tasks ``unsafe_code: true``. Their own metric downloads Hugging Face's ``code_eval`` and runs the
programs unconfined, as this user. ``code_eval_from`` stands in for the download while a task is loaded, and ``confine``
puts our sandbox behind the functions by which the loaded task judges. A local task names ours::

    unsafe_code: true
    metric_list:
    - metric: !function tasks.code_metrics.pass_at_k
      aggregation: mean
      higher_is_better: true
      k: [1, 10]
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from math import comb
from statistics import fmean
from types import FunctionType, ModuleType
from typing import Any

from models.errors import BadInput
from tasks.sandbox.sandbox import Kind, Sandbox, Verdict
from tasks.schema.profile import Profile

ALLOW = "set `run_code: true` in the profile to allow that"
CONSENT = f"runs programs that the model wrote; {ALLOW}"


def estimate_pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased estimate of the chance that one of ``k`` programs passes, from more of them (Chen et al. 2021, eq. 1).

    It is 1 − C(n − c, k) / C(n, k): the share of draws of k among n in which one of the c passes. Whole numbers have no
    bound here and their quotient is rounded once, so that no digit is lost.

    Args:
        samples: programs that were drawn for the problem, n.
        passed: how many of them passed, c.
        k: at most ``samples``.

    Raises:
        ValueError: the numbers contradict each other.
    """
    if not (0 <= passed <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k}: {passed} of {samples} samples")
    draws = comb(samples, k)
    return (draws - comb(samples - passed, k)) / draws


@dataclass
class CodeEval:
    """Hugging Face's ``code_eval`` metric, run in a sandbox; without one, the user hasn't agreed to run programs."""

    sandbox: Sandbox | None

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        **_: object,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Run the programs in ``predictions`` of each problem with its tests, in ``references``, behind them.

        Values of k above the samples of a problem are left out, as ``code_eval`` does.

        Returns:
            The mean of ``pass@k`` over the problems, and what became of every program.

        Raises:
            BadInput: nobody agreed to it, or the machine allows no sandbox.
        """
        if self.sandbox is None:
            raise BadInput(f"this task {CONSENT}")
        programs = [f"{one}\n{test}" for test, tries in zip(references, predictions, strict=True) for one in tries]
        found = iter(self.sandbox.run(programs))
        verdicts = [[next(found) for _ in tries] for tries in predictions]
        counts = [(len(tries), sum(one.passed for one in tries)) for tries in verdicts]
        fewest = min((samples for samples, _ in counts), default=0)
        scores = {
            f"pass@{one}": fmean(estimate_pass_at_k(samples, passed, one) for samples, passed in counts)
            for one in k
            if one <= fewest
        }
        return scores, {
            problem: [(index, result(problem, index, verdict)) for index, verdict in enumerate(tries)]
            for problem, tries in enumerate(verdicts)
        }


def result(problem: int, index: int, verdict: Verdict) -> dict[str, Any]:
    """What became of one program, as ``code_eval`` says it."""
    text = "passed" if verdict.passed else f"failed: {verdict.reason}"
    return {"task_id": problem, "passed": verdict.passed, "result": text, "completion_id": index}


def pass_at_k(
    references: Sequence[str],
    predictions: Sequence[Sequence[str] | str],
    k: Sequence[int] | int = 1,
    sandbox: Sandbox | None = None,
) -> dict[str, float]:
    """``pass@k`` for each k, of one or more problems: the metric for tasks of one's own.

    The tests in ``references`` are run behind each program. The sandbox is bubblewrap if left out, as under lm-eval's
    own command, which asks for consent itself.
    """
    tries = [[one] if isinstance(one, str) else one for one in predictions]
    scorer = CodeEval(sandbox or shared_sandbox("bubblewrap"))
    return scorer.compute(references=references, predictions=tries, k=[k] if isinstance(k, int) else k)[0]


@cache
def shared_sandbox(kind: Kind) -> Sandbox:
    """One sandbox of each kind for the whole process; it ends with the process."""
    return Sandbox(kind)


def sandbox_of(profile: Profile) -> Sandbox | None:
    """Where a profile has generated programs run, or ``None`` if it doesn't allow any."""
    return shared_sandbox(profile.sandbox) if profile.run_code else None


class Evaluate(ModuleType):
    """Hugging Face's package ``evaluate``, with our ``code_eval``; imported only for something else, as it is slow."""

    def __init__(self, sandbox: Sandbox | None, real: ModuleType | None) -> None:
        super().__init__("evaluate")
        self._sandbox, self._real = sandbox, real

    def load(self, path: str, *options: Any, **named: Any) -> Any:
        """A metric by its name."""
        return CodeEval(self._sandbox) if path == "code_eval" else self._package().load(path, *options, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of any module
            raise AttributeError(name)
        return getattr(self._package(), name)

    def _package(self) -> Any:
        if self._real is None:
            sys.modules.pop("evaluate", None)
            self._real = importlib.import_module("evaluate")
        return self._real


@contextmanager
def code_eval_from(sandbox: Sandbox | None) -> Iterator[None]:
    """While tasks are loaded: ``evaluate.load("code_eval")`` gives the metric over this sandbox and fetches nothing.

    The modules of such tasks ask for it, and try it, as soon as they are imported.
    """
    real = sys.modules.get("evaluate")
    sys.modules["evaluate"] = Evaluate(sandbox, real)
    try:
        yield
    finally:
        if isinstance(sys.modules.get("evaluate"), Evaluate):
            del sys.modules["evaluate"]
        if real is not None:
            sys.modules["evaluate"] = real


def confine(task: Any, sandbox: Sandbox | None) -> None:
    """Have a loaded lm-eval task judge the programs that it is given in this sandbox.

    Where it judges by functions of a module of its own, all tasks of that module judge in the sandbox given last.

    One that isn't marked ``unsafe_code`` is left as it is.

    Raises:
        BadInput: the user hasn't agreed, or the task runs programs in a way that can't be confined.
    """
    if not task.config.unsafe_code:
        return
    if sandbox is None:
        raise BadInput(f"task {task.config.task}: {CONSENT}")
    judges = {name: plain_function(metric) for name, metric in task._metric_fn_list.items()}
    if callable(task.config.process_results):
        judges = {"process_results": task.config.process_results}
    # what is no function of a task's own is a metric of lm-eval or of Hugging Face, which compares texts
    own = {name: function for name, function in judges.items() if function is not None}
    if not own or not all(put_behind(function, sandbox) for function in own.values()):
        raise BadInput(
            f"task {task.config.task}: runs programs by itself, where no sandbox holds them; "
            "make a local task of it with `metric: !function tasks.code_metrics.pass_at_k`"
        )
    for name in (name for name, function in own.items() if function is pass_at_k):
        task._metric_fn_list[name] = partial(pass_at_k, sandbox=sandbox)


def plain_function(metric: Any) -> FunctionType | None:
    """The function behind an entry of a task's metrics, which may be bound or partial, unless lm-eval brings it."""
    while not isinstance(metric, FunctionType):
        metric = metric.func if isinstance(metric, partial) else getattr(metric, "__self__", None)
        if metric is None:
            return None
    return None if metric.__module__ == "lm_eval.api.metrics" else metric


def put_behind(function: FunctionType, sandbox: Sandbox) -> bool:
    """Replace what runs programs in the module of a function; whether anything of the kind was found there.

    It is ``code_eval``, by whatever name, or a function ``check_correctness(program, timeout)`` that says whether it
    passed.
    """
    if function is pass_at_k:
        return True
    names = function.__globals__
    metrics = [name for name, value in names.items() if is_code_eval(value)]
    for name in metrics:
        names[name] = CodeEval(sandbox)
    own = "check_correctness" in function.__code__.co_names
    if own:
        names["check_correctness"] = lambda program, timeout=None: sandbox.run([program])[0].passed
    return bool(metrics) or own


def is_code_eval(value: Any) -> bool:
    """Whether it is ``code_eval``, Hugging Face's or ours."""
    return isinstance(value, CodeEval) or getattr(value, "name", None) == "code_eval"
