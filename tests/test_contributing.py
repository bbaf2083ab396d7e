"""What CONTRIBUTING.md tells a newcomer to do works, word for word; its hooks and its workflow are what it says."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.errors import BadInput
from models.sources.architecture import architecture_of
from tests import warm
from tests.commands import ROOT, commands, programs
from tests.commands import check as check_command
from tests.small_tasks import prompts, write_items

PAGE = ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(r"^`([^`]+)`, (new|at the end|below `([^\n]+)`):\n\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACES = re.compile(r"^`[^`]+`, .*:$", re.MULTILINE)


@dataclass(frozen=True)
class Recipe:
    """A section of the page: what goes where, and what is typed then."""

    changes: tuple[tuple[str, str, str, str], ...]
    """File, where in it, the line below which it goes, text."""
    typed: tuple[str, ...]

    def apply(self, root: Path) -> None:
        for path, where, line, text in self.changes:
            file = root / path
            if where == "new":
                assert not file.exists(), f"{path} is there already"
                file.write_text(text)
            elif where == "at the end":
                file.write_text(f"{file.read_text()}\n\n{text}")
            else:
                before = file.read_text()
                assert before.count(f"\n{line}\n") == 1, f"{path}: no line, or several: {line}"
                file.write_text(before.replace(f"\n{line}\n", f"\n{line}\n{text}"))

    def lint(self, root: Path) -> None:
        changed = " ".join(path for path, *_ in self.changes)
        type_in(root, f"ruff check {changed} && ruff format --check {changed}")


def recipe(title):
    section = re.search(rf"^### {title}\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    changes = tuple((path, where, line, text) for path, where, line, _, text in BLOCK.findall(section))
    assert len(changes) == len(PLACES.findall(section)) >= 2
    console = re.findall(r"^```console\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    typed = [line.removeprefix("$ ") for block in console for line in block.splitlines() if line.startswith("$ ")]
    return Recipe(changes, tuple(typed))


def type_in(root, line, code=None):
    """A command line in a folder, with the packages of ``code``; what it prints."""
    path = os.pathsep.join([str(warm.programs()), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "HM3_STATE"))}
    env |= {"PATH": path, "PYTHONPATH": str(code or root), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    done = subprocess.run(["bash", "-c", line], cwd=root, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def copy(tmp_path):
    """The packages, their tests and what belongs to them, to be changed as one likes."""
    root = tmp_path / "copy"
    for folder in ("flows", "tasks", "models", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "docs/merge-methods.md", "docs/merge_methods.py"):
        (root / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    return root


BY_RECIPE = """
import torch

from models.merge.recipe import Recipe
from models.merge.source import MergedSource
from models.sources.checkpoint import open_checkpoint


def test_two_small_models_by_recipe(make_family, tmp_path):
    base, a, b = sources = [open_checkpoint(folder) for folder in make_family(tmp_path).values()]
    models = [{"model": "a"}, {"model": "b"}]
    recipe = {"merge_method": "median", "base_model": "base", "models": models, "parameters": {"lambda": 0.5}}
    merged = MergedSource(Recipe.model_validate(recipe), dict(zip(("base", "a", "b"), sources)).__getitem__)
    for name in base.names():  # the median of two is their mean
        ours, one, two = (source.tensor(name) - base.tensor(name) for source in (merged, a, b))
        torch.testing.assert_close(ours, (one + two) / 4)
"""


def test_a_merge_method_is_added_as_the_page_says(copy):
    steps = recipe("Add a merge method")
    steps.apply(copy)
    steps.lint(copy)
    further = "tests/models/merge/test_by_recipe.py"
    (copy / further).write_text(BY_RECIPE)
    write_page, run_tests = steps.typed
    type_in(copy, write_page)
    assert re.search(r"\b4 passed", type_in(copy, f"{run_tests} {further}"))
    section = re.search(r"\n## median\n(.*?)\n## ", (copy / "docs" / "merge-methods.md").read_text(), re.DOTALL)[1]
    assert "| `lambda` | number | shared | `1` |  | 0.3 … 2 |" in section and "base and 2 or more experts" in section


def test_a_family_is_added_as_the_page_says(copy):
    with pytest.raises(BadInput, match="StableLmForCausalLM is unknown"):
        architecture_of({"architectures": ["StableLmForCausalLM"]})
    steps = recipe("Add a model family")
    steps.apply(copy)
    steps.lint(copy)
    (line,) = steps.typed
    said = type_in(copy, line)
    assert re.search(r"\b7 passed", said), said  # six that are named for it, and the one that looks for gaps


def test_an_objective_metric_is_added_as_the_page_says(make_family, tmp_path):
    steps = recipe("Add an objective metric")
    root, counts = tmp_path / "project", {"search": 128, "selection": 128, "test": 256}
    family = make_family(root / "runs" / "tiny" / "zoo", experts=1, noise=0.2)
    experts = family["a"].rename(family["a"].with_name("math"))
    listed = {"base": "runs/tiny/zoo/base", "experts": {"math": "runs/tiny/zoo/math"}}
    (root / "runs" / "tiny" / "zoo" / "family.json").write_text(json.dumps(listed))
    items = {}
    for seed, (split, count) in enumerate(counts.items()):
        texts = [text.rpartition(" ") for text in prompts(count, seed)]
        items[split] = [{"id": str(n), "prompt": one, "answer": f" {last}"} for n, (one, _, last) in enumerate(texts)]
        write_items(root / "runs" / "tiny" / "tasks" / f"tiny_math.{split}.jsonl", items[split])
    (root / "profiles" / "tiny").mkdir(parents=True)
    shutil.copy(ROOT / "profiles" / "tiny" / "tiny_math.yaml", root / "profiles" / "tiny")
    profile = {"made": "tiny", "experts": {"math": None}, "threads": 1, "paths": {"repair": False}}
    profile["objectives"] = [{"name": "math", "task": "tiny_math", "items": counts}]
    (root / "profiles" / "tiny.yaml").write_text(yaml.safe_dump(profile))
    (root / "params.yaml").write_text("profiles: [tiny]\n")
    steps.apply(root)
    doctor, evaluate = (line.replace("hm3 ", "python -m flows.cli ", 1) for line in steps.typed)
    assert "bits_per_character,none (lower is better)" in type_in(root, doctor, ROOT)
    scores = json.loads(type_in(root, f"{evaluate} --json", ROOT))["scores"]
    assert scores["math_bits"] == pytest.approx(-bits(experts, items["test"]), rel=1e-5)


def bits(folder, items):
    """Mean bits for a character of the answers, computed by transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    values = []
    for item in items:
        ids = tokenizer(item["prompt"] + item["answer"], return_tensors="pt").input_ids
        with torch.inference_mode():
            found = model(ids).logits[0, -2].double().log_softmax(-1)[ids[0, -1]]
        values.append(-float(found) / math.log(2) / len(item["answer"]))
    return sum(values) / len(values)


def test_commands_and_links_of_the_page_exist():
    for line in commands("CONTRIBUTING.md"):
        for words in programs(line):
            if words[0] not in ("pytest", "pre-commit"):
                check_command(words)
    for target in re.findall(r"\]\(([^)#]+)", PAGE.read_text()):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:flows|models|tasks|tests|profiles|docs)/[\w/.-]+\.\w+)`", PAGE.read_text()):
        made_here = any(path == change[0] for title in TITLES for change in recipe(title).changes)
        assert (ROOT / path).exists() or made_here, path
    engine = (ROOT / "tasks" / "scoring" / "engine.py").read_text()
    assert "\nSCORING_VERSION = " in engine


TITLES = ("Add a merge method", "Add a model family", "Add an objective metric")


def test_the_hooks_run_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    commands_of_lint = [line.strip().removesuffix(" .") for line in lint.splitlines()]
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in hooks] == commands_of_lint
    assert [hook.get("pass_filenames", True) for hook in hooks] == [True, True, False]


def test_hooks_and_workflow_follow_their_schemas():
    workflow = ROOT / ".github" / "workflows" / "checks.yml"
    bin_folder = Path(sys.executable).parent
    hooks = [bin_folder / "pre-commit", "validate-config", ROOT / ".pre-commit-config.yaml"]
    schema = [bin_folder / "check-jsonschema", "--builtin-schema", "vendor.github-workflows"]
    for command in (hooks, [*schema, workflow]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    text = workflow.read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK) and yaml.safe_load(text)["jobs"]["checks"]["steps"][-1] == {
        "run": ".ci/run"
    }


def test_a_workflow_that_is_wrong_is_noticed(tmp_path):
    text = (ROOT / ".github" / "workflows" / "checks.yml").read_text()
    wrong = tmp_path / "checks.yml"
    wrong.write_text(text.replace("runs-on:", "run-on:"))
    command = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", wrong]
    assert subprocess.run(command, capture_output=True).returncode == 1
