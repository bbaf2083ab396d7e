"""The published algorithm is an arm of the comparison, and of nothing else."""

import ast
from pathlib import Path

import numpy as np
import pytest

from tasks.bench.searches.arms import ARMS
from tests.models.lab import RULES, new_trial, recipe_space

ROOT = Path(__file__).parents[4]
ITS_OWN = {"tasks.bench.baselines.paper", "tasks.bench.baselines.paper_policy", "models.agent.hm3"}


@pytest.mark.parametrize("name", ["paper", "paper-masked"])
def test_the_published_algorithm_spends_the_budget_of_a_trial(name):
    trial = new_trial(45)
    rows = ARMS[name].run(trial, recipe_space(), RULES, np.random.default_rng(0))
    assert trial.left < trial.whole
    assert rows[-1]["evaluations"] == trial.spent
    assert ARMS[name].group == "paper"


def test_nothing_in_the_product_imports_what_runs_in_comparisons_alone():
    for path in (one for package in ("models", "tasks", "flows") for one in (ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if "bench" in path.parts or module in ITS_OWN:
            continue
        nodes = list(ast.walk(ast.parse(path.read_text())))
        found = {name.name for one in nodes if isinstance(one, ast.Import) for name in one.names}
        for one in (node for node in nodes if isinstance(node, ast.ImportFrom)):
            found |= {str(one.module), *(f"{one.module}.{name.name}" for name in one.names)}
        assert not found & ITS_OWN, module
