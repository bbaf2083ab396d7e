"""The house is laid out as the design draws it, and DVC knows what each stage is made of."""

import ast
from functools import cache
from graphlib import TopologicalSorter
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
HOUSE = {
    "models": "text → errors → files → candidate | front | preferences → sources → merge | paths → learned | search"
    " → agent",
    "tasks": "schema → project → sandbox | storage → objectives → families | front | scoring → trials → report"
    " → tracking → zoo | sample | dataset | train | search | pareto → registry | doctor → bench",
    "flows": "processes → screen | servers → versions → stage → form → follow → pipeline → targeted → search → promote"
    " → commands → bench → cli",
}
"""What each package holds, from the ground up: a room imports those before its arrow, and none beside it."""
FACES = {"tasks.code_metrics"}
"""Modules that only lend their name to what lies elsewhere."""
MOST_ROOMS, MOST_FLOORS = 26, 9


def files(package):
    return sorted(path for path in (ROOT / package).rglob("*.py") if "templates" not in path.parts)


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
    return {one for one in seen if holds_code(one)}


def holds_code(path):
    """Whether a module is more than the docstring of its package."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


def room(path):
    """The room of a module: a package inside the great one, or a module at its door."""
    return path.relative_to(ROOT).with_suffix("").parts[1]


def floors(package):
    """The floor of each room of a package, as its line in ``HOUSE`` says."""
    return {one: floor for floor, step in enumerate(HOUSE[package].split(" → ")) for one in step.split(" | ")}


@cache
def doors(package):
    """For each room of a package the rooms of the same package that it imports, with one module that does."""
    found = {}
    for path in files(package):
        if ".".join(path.relative_to(ROOT).with_suffix("").parts) in FACES:
            continue
        if (here := room(path)) == "__init__":
            continue
        own = found.setdefault(here, {})
        for name in imports(path):
            target = module_file(name)
            if name.split(".")[0] == package and target is not None and holds_code(target) and room(target) != here:
                own[room(target)] = f"{path.relative_to(ROOT)} imports {name}"
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_only_go_down(package):
    for path in files(package):
        up = {name for name in imports(path) if name.split(".")[0] in FORBIDDEN[package]}
        assert not up, f"{path.relative_to(ROOT)} imports {sorted(up)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_imports_only_rooms_below_it(package):
    places = floors(package)
    assert set(doors(package)) == set(places), "every room has its place in HOUSE"
    wrong = [
        why for one, others in doors(package).items() for other, why in others.items() if places[other] >= places[one]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_house_has_few_rooms_on_few_floors_and_no_circle(package):
    rooms = {one: set(others) for one, others in doors(package).items()}
    height = {}
    for one in TopologicalSorter(rooms).static_order():  # raises for a circle
        height[one] = 1 + max((height[other] for other in rooms[one]), default=0)
    assert len(rooms) <= MOST_ROOMS and max(height.values()) <= MOST_FLOORS, (len(rooms), height)
    print(f"{package}: {len(rooms)} rooms, {max(height.values())} floors, {sum(map(len, rooms.values()))} arrows")


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_in_two_lines_what_lives_there(package):
    for path in (ROOT / package).rglob("__init__.py"):
        said = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert said and len(said.splitlines()) <= 3, path


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
