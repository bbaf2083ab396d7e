"""Scoring merge recipes in memory against the tools' way: mergekit to disk, then lm-eval on the folder."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
import yaml

from models.errors import BadInput
from models.merge.recipe import Recipe, dump_recipes
from tasks.bench.engine.families import OPEN_GATES, make_project
from tasks.bench.engine.registry import Bench, Measure, Todo, benchmark
from tasks.bench.engine.rows import Row
from tasks.bench.process import Usage, program, run_measured, timed
from tasks.project.offline import offline_environment
from tasks.project.workspace import Workspace
from tasks.scoring.engine import Engine
from tasks.trials.trial import recipe_space

WITH, WITHOUT = "with start-up", "without start-up"
SPLIT = "test"
"""The split that the task files name themselves, so that lm-eval's command reads them as they are."""

ITEMS = (32, 128)
"""Items a task: those on which a search scores a candidate first, and all that drive it."""

BATCH = 32
"""Requests that lm-eval scores at once: as fast as 64 and 128; its default of 1 is slower than it has to be."""

CHUNK = 16
"""Recipes that we score in a repetition."""

THEIRS = {WITH: 1, WITHOUT: 4}
"""How many of them the tools score."""

CASES = {f"{kind}, {items} items": (kind, items) for kind in THEIRS for items in ITEMS}

SMALL_PARAMS: dict[str, Any] = {
    "zoo": {
        "layers": 3,
        "base_steps": 200,
        "expert_steps": 100,
        **OPEN_GATES,
    }
}

Scores = list[dict[str, float]]
"""Score of each task objective, for each recipe."""


@benchmark(
    "candidate",
    "candidates scored a minute on `tiny`: in memory, against mergekit to disk and lm-eval on the folder",
    "≥ 100× with the tools' start-up, ≥ 5× without",
    "the score of every objective is the same for each recipe that both sides scored",
    cases=list(CASES),
    measures=[
        *(Measure(case, "wall a candidate", bound=100.0 if kind == WITH else 5.0) for case, (kind, _) in CASES.items()),
        Measure("*", "cpu a candidate"),
    ],
)
def candidate(bench: Bench, todo: Todo) -> Iterator[Sequence[Row]]:
    """Score new recipes with us and then with the tools; ours is one warm process in both cases, as in a search."""
    for name in ("mergekit-yaml", "lm_eval"):
        program(name)
    workspace = make_project(bench, None, SMALL_PARAMS if bench.small else {})
    engine = Engine(workspace)
    with contextlib.chdir(workspace.root):  # recipes and task files name folders relative to the project
        tools = Tools(bench, workspace, engine)
        warm_up = recipes(engine, 1, np.random.default_rng([bench.seed, 0]))
        of_engine(engine, warm_up, min(ITEMS))
        tools.warm(warm_up, min(ITEMS))
        for case, repetition in todo:
            kind, items = CASES[case][0], min(CASES[case][1], engine.items(SPLIT))
            rng = np.random.default_rng([bench.seed, 1 + list(CASES).index(case), repetition])
            chosen = recipes(engine, 2 if bench.small else CHUNK, rng)
            some = chosen[: 1 if bench.small else THEIRS[kind]]
            ours, one = timed(of_engine, engine, chosen, items)
            theirs, other = tools.cold(some, items) if kind == WITH else tools.warm(some, items)
            same = equal(ours[: len(some)], theirs)
            note = f"{len(chosen)} recipes against {len(some)}"
            yield [
                Row(case, repetition, f"{name} a candidate", "s", a / len(chosen), b / len(some), None, same, note)
                for name, a, b in (("wall", one.wall, other.wall), ("cpu", one.cpu, other.cpu))
            ]


def recipes(engine: Engine, count: int, rng: np.random.Generator) -> list[Recipe]:
    """TIES recipes with weights and densities of their own."""
    made = []
    for _ in range(count):
        own = {
            name: {"weight": round(float(rng.uniform(0.2, 1.2)), 4), "density": round(float(rng.uniform(0.2, 0.8)), 4)}
            for name in engine.family.experts
        }
        made.append(recipe_space(engine).make("ties", own))
    return made


def of_engine(engine: Engine, chosen: Sequence[Recipe], stop: int) -> Scores:
    """Scores as the stages get them."""
    added = [engine.add(recipe) for recipe in chosen]
    scored = engine.scored(added, SPLIT, stop=stop)
    for one in added:
        engine.pool.discard(one.host)
    return [one.means() for one in scored]


def equal(ours: Scores, theirs: Scores) -> bool:
    """Whether all means are the same number, but for the order in which items were added."""
    return all(
        one.keys() == other.keys() and all(math.isclose(one[name], other[name], abs_tol=1e-9) for name in one)
        for one, other in zip(ours, theirs, strict=True)
    )


class Tools:
    """mergekit and lm-eval, as processes or called in this one."""

    def __init__(self, bench: Bench, workspace: Workspace, engine: Engine) -> None:
        """Find the tools.

        Raises:
            BadInput: one isn't installed.
        """
        try:
            self.config, self.merge, self.options = (
                importlib.import_module(f"mergekit.{name}") for name in ("config", "merge", "options")
            )
        except ImportError:
            raise BadInput("mergekit: is not installed, and this benchmark runs it; install hm3[dev]") from None
        from lm_eval.tasks import TaskManager

        self.folder, self.workspace = bench.folder, workspace
        parts = {name: one.parts[0] for name, one in engine.objectives(SPLIT).composed.items()}
        self.tasks = {name: part.built.name for name, part in parts.items()}
        self.keys = {name: (part.metric.key, part.metric.factor) for name, part in parts.items()}
        self.manager = TaskManager(include_path=str(workspace.task_folder), include_defaults=False)
        logging.getLogger("lm_eval").setLevel(logging.ERROR)

    def cold(self, chosen: Sequence[Recipe], items: int) -> tuple[Scores, Usage]:
        """Two processes a recipe."""
        environment = {
            **offline_environment(self.workspace.state),
            "OMP_WAIT_POLICY": "passive",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE),  # the one that is filled already
        }
        found, wall, cpu = [], 0.0, 0.0
        for recipe in chosen:
            yaml_file, merged, out = (self.folder / name for name in ("recipe.yaml", "merged", "scores"))
            yaml_file.write_text(dump_recipes([recipe]), encoding="utf-8")
            evaluation = {
                "--model": "hf",
                "--model_args": f"pretrained={merged},dtype=float32",
                "--tasks": ",".join(self.tasks.values()),
                "--include_path": str(self.workspace.task_folder),
                "--device": "cpu",
                "--batch_size": str(BATCH),
                "--limit": str(items),
                "--output_path": str(out),
            }
            commands = (
                [program("mergekit-yaml"), str(yaml_file), str(merged), "--quiet", "--no-write-model-card"],
                [program("lm_eval"), "run", *(word for pair in evaluation.items() for word in pair)],
            )
            for command in commands:
                usage = run_measured(command, self.workspace.root, environment)
                wall, cpu = wall + usage.wall, cpu + usage.cpu
            (result,) = out.rglob("results_*.json")
            found.append(self._scores(json.loads(result.read_text(encoding="utf-8"))["results"]))
            for folder in (merged, out):
                shutil.rmtree(folder)
        return found, Usage(wall, cpu)

    def warm(self, chosen: Sequence[Recipe], items: int) -> tuple[Scores, Usage]:
        """Both called in this process, as mergekit's own evolutionary search calls lm-eval: with one task manager."""
        return timed(lambda: [self._scores(self._evaluate(recipe, items)) for recipe in chosen])

    def _evaluate(self, recipe: Recipe, items: int) -> Mapping[str, Mapping[str, Any]]:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        merged = self.folder / "merged"
        self.merge.run_merge(
            self.config.MergeConfiguration.model_validate(yaml.safe_load(dump_recipes([recipe]))),
            str(merged),
            self.options.MergeOptions(quiet=True, write_model_card=False),
        )
        with contextlib.redirect_stderr(io.StringIO()):  # lm-eval's own bars
            model = HFLM(str(merged), dtype="float32", device="cpu", batch_size=BATCH)
            answer = simple_evaluate(
                model,
                tasks=list(self.tasks.values()),
                task_manager=self.manager,
                limit=items,
                bootstrap_iters=0,
                log_samples=False,
            )
        shutil.rmtree(merged)
        found: Mapping[str, Mapping[str, Any]] = answer["results"]
        return found

    def _scores(self, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        """Score of each objective from lm-eval's results by task."""
        return {name: sign * float(results[self.tasks[name]][",".join(key)]) for name, (key, sign) in self.keys.items()}
