"""`hm3 bench`: a command a benchmark, each with its own options and help, none of which loads a heavy library."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.bench.command import app
from tasks.bench.engine.registry import MODULES

pytestmark = pytest.mark.lab

NAMES = (*MODULES, "front", "confirm", "headroom", "amortisation", "faults", "hostile", "repair")
HEAVY = ("prefect", "torch", "mlflow", "dvc", "pandas", "matplotlib", "transformers", "scipy")
ENGINE = {"repetitions", "small", "fresh", "as_json"}
SEARCHES = {"profile", "seeds", "families", "arm", "budget", "no_depth", "small", "fresh", "as_json"}
OPTIONS = {
    **dict.fromkeys(MODULES, ENGINE),
    **dict.fromkeys(("front", "confirm", "headroom"), SEARCHES),
    "amortisation": {"profile", "seeds", "families", "budget", "as_json"},
    "faults": {"minutes", "fault", "seed", "as_json"},
    "hostile": {"cases", "seed", "workers", "small", "as_json"},
    "repair": {"family", "study", "small", "fresh", "as_json"},
}


def asked(*words):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})


def test_every_benchmark_is_a_command_with_a_line():
    text = asked("--help").output
    assert re.findall(r"^│ (\w+) +\w", text, re.MULTILINE) == list(NAMES)
    assert asked("--list").output == text


def test_each_has_its_own_options_and_an_example():
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert set(command.callback.__annotations__) - {"return"} == OPTIONS[name], name
        assert f"Example: `hm3 bench {name}" in (command.help or command.callback.__doc__)


@pytest.mark.parametrize("words", [["--help"], ["front", "--help"], ["merge", "--help"], ["faults", "--help"]])
def test_help_loads_no_heavy_library(words):
    code = f"""
import sys
from flows.cli import app
try:
    app({["bench", *words]})
except SystemExit as ended:
    sys.stderr.write(f"{{ended.code}} {{[name for name in {HEAVY} if name in sys.modules]}}")
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stderr == "0 []"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["scale", "--seeds", "2"], "No such option: --seeds"),
        (["front", "--repetitions", "2"], "No such option: --repetitions"),
        (["amortisation", "--arm", "hm3"], "No such option: --arm"),
        (["faults", "--minutes", "-1"], "--minutes"),
    ],
)
def test_what_a_benchmark_does_not_take_ends_with_2(words, said):
    done = asked(*words)
    assert done.exit_code == 2
    assert said in done.output
