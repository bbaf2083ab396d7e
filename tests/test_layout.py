"""The house is laid out as the design draws it, and DVC knows what each stage is made of."""

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "models")
FORBIDDEN = {
    "models": {"prefect", "mlflow", "dvc", "boto3", "ray", "lm_eval", "tasks", "flows"},
    "tasks": {"prefect", "flows"},
    "flows": set(),
}
STAGES = ("zoo", "sample", "dataset", "train", "search", "pareto")


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


@cache
def imports(path):
    """Full names that a module imports, wherever in it the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return frozenset(names)


def module_file(name):
    for path in (ROOT / (name.replace(".", "/") + ".py"), ROOT / name.replace(".", "/") / "__init__.py"):
        if path.is_file():
            return path
    return None


def closure(path):
    """All modules of ours that a module imports, directly or not, itself among them."""
    seen, queue = set(), [path]
    while queue:
        here = queue.pop()
        if here in seen:
            continue
        seen.add(here)
        for name in imports(here):
            if name.split(".")[0] in PACKAGES:
                queue += [found for found in [module_file(name)] if found]
    return {one for one in seen if one.name != "__init__.py" or one.read_text().strip()}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_only_go_down(package):
    for path in files(package):
        up = {name for name in imports(path) if name.split(".")[0] in FORBIDDEN[package]}
        assert not up, f"{path.relative_to(ROOT)} imports {sorted(up)}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_modules_that_it_imports(stage):
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["do"]["deps"]
    code = {one for one in declared if one.split("/")[0] in PACKAGES}
    wanted = {str(one.relative_to(ROOT)) for one in closure(ROOT / "tasks" / f"{stage}.py")}
    uncovered = {one for one in wanted if not any(one == dep or one.startswith(dep + "/") for dep in code)}
    useless = {dep for dep in code if not any(one == dep or one.startswith(dep + "/") for one in wanted)}
    assert not uncovered, f"add to the deps of {stage}: {sorted(uncovered)}"
    assert not useless, f"take from the deps of {stage}: {sorted(useless)}"


def test_modules_stay_short():
    for path in (file for package in PACKAGES for file in files(package)):
        assert len(path.read_text().splitlines()) <= 350, path


def test_params_yaml_has_every_section_that_a_stage_depends_on():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    asked = {str(key).split(".")[0] for stage in stages.values() for key in stage.get("do", stage).get("params", ())}
    assert asked <= yaml.safe_load((ROOT / "params.yaml").read_text()).keys()
    assert {"sample", "train", "search"} <= asked
