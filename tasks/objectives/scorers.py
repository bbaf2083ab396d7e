"""The Python that a task brings, and whether it evaluates what the model wrote: sympy's parser, ``eval``, a compiler.

lm-eval marks tasks of programs ``unsafe_code: true``, but not those whose scorers evaluate answers on the way. Modules
are read here, never imported. That finds what an honest module does; one that hides it is code of a stranger's, as any
task file with ``!function`` is.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tasks.objectives.task_files import TaskFile

SCORING = ("process_results", "metric_list", "filter_list", "class")
"""Fields of a task whose functions are given what the model wrote."""

NUMBERS_ALONE = frozenset({"loglikelihood", "loglikelihood_rolling", "multiple_choice"})
"""Kinds of requests (``output_type``) that the model answers by no text."""

EVALUATORS = frozenset(
    {
        *("sympy", "math_verify", "latex2sympy2", "latex2sympy2_extended", "numexpr", "asteval", "subprocess", "runpy"),
        *("tasks.objectives.code_metrics", "tasks.sandbox"),
    }
)
"""Modules that evaluate expressions, run code or start programs."""

CONFINED = frozenset({"code_eval", "tasks.objectives.code_metrics", "tasks.sandbox"})
"""What runs programs in our sandbox, once ``code_metrics`` has put it behind."""

UNHELD = "evaluates what the model wrote in hm3's own process, where no sandbox holds it"
"""What a scorer does that needs a library for it: none is to be seen in a sandbox."""

CALLS = frozenset({"eval", "exec", "compile"})
STARTS = ("system", "popen", "exec", "spawn", "posix_spawn")
"""How the names of the functions of ``os`` begin that start programs."""


@dataclass(frozen=True)
class Function:
    """A function that a task's configuration names."""

    field: str
    """Where it is named, as ``metric_list.aggregation``."""
    module: Path
    """The file that it is in."""


@dataclass(frozen=True)
class Evaluation:
    """How a task evaluates what the model wrote."""

    text: str
    """Field, module and means, for people."""
    confined: bool
    """Whether our sandbox holds it. What is marked ``unsafe_code`` runs there, or is refused as code, too."""


def evaluation(file: TaskFile) -> Evaluation | None:
    """How a task evaluates what the model wrote, the worst first; ``None`` if it doesn't."""
    config = file.raw()
    if config.get("output_type") in NUMBERS_ALONE and "class" not in config:
        return None
    marked, ways = bool(config.get("unsafe_code")), []
    for one in functions({field: config[field] for field in SCORING if field in config}):
        if found := evaluators(one.module):
            text = f"{one.field}: {one.module.parent.name}/{one.module.name} ({', '.join(sorted(found))})"
            ways.append(Evaluation(text, marked or found <= CONFINED))
    named = [one.get("metric") for one in config.get("metric_list") or [] if isinstance(one, Mapping)]
    if "code_eval" in named:
        ways.append(Evaluation("metric_list.metric: code_eval", confined=True))
    return min(ways, key=lambda one: one.confined, default=None)


def functions(config: Mapping[str, Any]) -> Iterator[Function]:
    """All functions that a configuration names, or has where a group's file was read."""
    waiting: list[tuple[str, Any]] = [("", config)]
    seen: set[int] = set()  # a part that YAML names many times is looked at once
    while waiting:
        field, value = waiting.pop(0)
        if isinstance(value, Mapping | list | tuple):
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Mapping):
                waiting += [(f"{field}.{key}" if field else str(key), one) for key, one in value.items()]
            else:
                waiting += [(field, one) for one in value]
        elif (isinstance(value, str) or callable(value)) and (module := module_of(value)):
            yield Function(field, module)


def module_of(function: str | Callable[..., Any]) -> Path | None:
    """The file of a function, or of its name as lm-eval gives it: the folder of the task's file, module and name."""
    if not isinstance(function, str):
        while isinstance(function, partial):
            function = function.func
        try:
            return Path(inspect.getfile(function))
        except TypeError:  # written in C
            return None
    if not function.startswith("/"):
        return None
    folder, (module, _, _) = Path(function).parent, Path(function).name.rpartition(".")
    return located(module, [folder, *homes(module)]) if module else None


def homes(module: str) -> list[Path]:
    """Folders in which Python looks for a module; nothing is imported. An installed project need not be on its path."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    found = [Path(one).parent for one in (spec.submodule_search_locations or [spec.origin or ""] if spec else ())]
    return [*found, *map(Path, sys.path)]


def located(module: str, folders: list[Path]) -> Path | None:
    """The file of a module in the first of the folders that has it."""
    path = module.replace(".", "/")
    candidates = (folder / name for folder in folders for name in (f"{path}.py", f"{path}/__init__.py"))
    try:
        return next((one for one in candidates if one.is_file()), None)
    except (OSError, ValueError):  # a name that no file can have
        return None


def evaluators(module: Path) -> frozenset[str]:
    """What a module evaluates texts with, itself or by modules of tasks that it imports."""
    found: set[str] = set()
    seen, waiting = {module}, [module]
    while waiting:
        here = waiting.pop()
        try:
            tree = ast.parse(here.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):  # it can't be imported either
            continue
        for node in ast.walk(tree):
            found |= _called(node)
            for name in _imported(node):
                parts = name.split(".")
                found |= {prefix for end in range(len(parts)) if (prefix := ".".join(parts[: end + 1])) in EVALUATORS}
                folders = [here.parent, *(homes(name) if name.startswith("lm_eval.tasks.") else ())]
                if (other := located(name.lstrip("."), folders)) and other not in seen:
                    seen.add(other)
                    waiting.append(other)
    return frozenset(found)


def _called(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Constant) and node.value == "code_eval":
        return {"code_eval"}
    if not isinstance(node, ast.Call):
        return set()
    function = node.func
    if isinstance(function, ast.Name):
        return {function.id} & CALLS
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        if function.value.id == "os" and function.attr.startswith(STARTS):
            return {f"os.{function.attr}"}
        if function.attr == "eval" and node.args:  # a model's takes nothing
            return {f"{function.value.id}.eval"}
    return set()


def _imported(node: ast.AST) -> list[str]:
    """Modules that a statement may import; from a package either a module of it or a name in it."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        start = node.module or ""
        return [*([start] if start else []), *(f"{start}.{alias.name}" for alias in node.names)]
    return []


def code_of(file: TaskFile) -> list[str]:
    """Python that is neither lm-eval's nor ours, and is run when a task is read: files, and scripts of metrics."""
    import lm_eval

    known = [Path(lm_eval.__file__).resolve().parent, Path(__file__).resolve().parents[1]]
    config = {key: value for key, value in file.raw().items() if not key.startswith("dataset_")}  # paths of data
    modules = (one.module.resolve() for one in functions(config))
    files = {one.name for one in modules if not any(map(one.is_relative_to, known))}
    return sorted(files) + [f"the script of metric {name}" for name in _scripts(config)]


def _scripts(config: Mapping[str, Any]) -> list[str]:
    """Metrics that Hugging Face's ``evaluate`` loads, from its hub or a folder: lm-eval has none of the name."""
    from lm_eval.api import metrics  # noqa: F401 # which registers them
    from lm_eval.api.registry import metric_registry

    listed = [] if config.get("process_results") else config.get("metric_list") or []
    named = [(one.get("metric"), one.get("hf_evaluate") is True) for one in listed if isinstance(one, Mapping)]
    strings = [(name, other) for name, other in named if isinstance(name, str) and module_of(name) is None]
    return [name for name, other in strings if other or name not in metric_registry]
