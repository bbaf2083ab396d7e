"""The command line: help, exit statuses, one-line errors, and the commands that only read a front."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.cli import app, main
from tests.flows.project import hm3
from tests.warm import programs

COMMANDS = {
    *("run", "stage", "publish", "init", "zoo", "doctor", "merge", "evaluate"),
    *("front", "choose", "export", "promote", "report", "up", "down"),
}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory, done):
    """A project whose pipeline is done; tests only read it."""
    return shutil.copytree(done.parents[1], tmp_path_factory.mktemp("cli") / "project")


@pytest.fixture
def here(monkeypatch, capsys):
    """The command line in this process, where the libraries are imported already."""

    def call(folder, *command, env=None):
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["hm3", *command])
            with pytest.raises(SystemExit) as ended:
                main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(command, ended.value.code or 0, said.out, said.err)

    return call


def good(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(done, pattern):
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"hm3: {pattern}\n", done.stderr), done.stderr
    assert done.stdout == ""


def test_the_commands_are_those_of_the_design():
    assert {command.callback.__name__ for command in app.registered_commands} == COMMANDS
    assert [group.name for group in app.registered_groups] == ["bench"]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_explains_itself_with_an_example(command):
    text = next(one.callback.__doc__ for one in app.registered_commands if one.callback.__name__ == command)
    assert f"Example: `hm3 {command}" in text
    assert not re.search(r"`hm3 (?!\w)", text)


def test_help_answers_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = good(hm3(ROOT, "--help", cold=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1  # of processor time
    assert all(command in text for command in COMMANDS)


HEAVY = ("prefect", "torch", "mlflow", "dvc", "pandas", "matplotlib", "transformers", "datasets", "boto3", "scipy")
COMMAND_LINE = """
import sys
from contextlib import suppress
from flows.cli import main
for command in sys.argv[1:]:
    sys.argv = command.split()
    with suppress(SystemExit):
        main()
"""


def loaded(code, *arguments, cwd=ROOT):
    """Heavy libraries that a process has imported when it ends."""
    code += f"\nimport sys; sys.stderr.write(repr([name for name in {HEAVY} if name in sys.modules]))"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stderr.splitlines()[-1]


@pytest.mark.parametrize("module", ["flows.stage", "flows.commands.run"])
def test_a_module_that_starts_others_imports_no_heavy_library(module):
    assert loaded(f"import {module}") == "[]"


def test_no_help_imports_a_heavy_library():
    assert loaded(COMMAND_LINE, "hm3 --help", *(f"hm3 {command} --help" for command in sorted(COMMANDS))) == "[]"


def test_a_project_is_refused_before_a_heavy_library_is_imported(tmp_path):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").write_text("nothing: 1\n")
    commands = ("hm3 doctor", "hm3 run", "hm3 stage search", "hm3 evaluate balanced", "hm3 export balanced out")
    assert loaded(COMMAND_LINE, *commands, cwd=tmp_path) == "[]"


def test_usage_errors_exit_with_2(here, project):
    for command in (["nothing"], ["front", "--nothing"], ["stage"], ["choose", "--max-layers", "few"]):
        assert here(project, *command).returncode == 2


def test_outside_a_project_there_is_one_line(here, tmp_path):
    refused(here(tmp_path, "front"), r".*: no params.yaml with a profiles/ folder here or above; .*")


def test_an_unknown_stage_or_profile_is_bad_input(here, project):
    refused(here(project, "stage", "nothing"), r"stage 'nothing': unknown; there are zoo, .*, pareto")
    refused(here(project, "stage", "zoo", "--profile", "nothing"), r"profile 'nothing': unknown; there are tiny")
    refused(here(project, "front", "--split", "nothing"), r"--split nothing: unknown; there are .*")


def test_an_unknown_parameter_is_bad_input(project, tmp_path):
    broken = shutil.copytree(project, tmp_path / "broken")
    (broken / "params.yaml").write_text("profiles: [tiny]\nsearch: {budgt: 3}\n")
    for command in (["doctor"], ["stage", "search"], ["run"]):
        refused(hm3(broken, *command), r"params\.yaml: search\.budgt: unknown key; remove it or mend its spelling")
    assert not (broken / ".hm3").exists()


def test_settings_are_checked_before_anything_starts(here, project):
    refused(here(project, "run", "-S", "search.budgt=3"), r"-S: search\.budgt: unknown key; .*")
    assert not (project / ".hm3").exists()


def test_a_stage_that_finds_bad_input_exits_with_2(project, tmp_path):
    broken = shutil.copytree(project, tmp_path / "broken")
    weights = broken / "runs" / "tiny" / "zoo" / "math" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    failed = hm3(broken, "stage", "sample", env={"HM3_STATE": str(tmp_path / "state")})
    refused(failed, r".*zoo/math: model\.safetensors: truncated or no safetensors file .*; fetch or copy it again")


def test_a_relative_state_folder_is_meant_from_where_the_user_stands(project):
    code = (
        "from pathlib import Path; from flows.processes.settle import prepare; "
        "from tasks.project.workspace import open_workspace; "
        "one = open_workspace(); prepare(one); print(one.state); print(Path.cwd())"
    )
    env = {**os.environ, "HM3_STATE": "state"}
    below = project / "runs"
    command = [programs() / "python", "-c", code]
    done = subprocess.run(command, cwd=below, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(below / "state"), str(project)]


def test_a_stage_ends_when_the_run_that_started_it_is_gone(project, tmp_path):
    run = subprocess.Popen([sys.executable, "-c", ""])
    run.wait()
    done = hm3(project, "stage", "sample", env={"HM3_RUN_PID": str(run.pid), "HM3_STATE": str(tmp_path)})
    assert done.returncode == 143
    assert done.stderr == ""


def test_the_front_is_shown_from_any_folder_below(here, project):
    text = good(here(project / "runs" / "tiny", "front"))
    assert "aliases by front.json: there is no MLflow registry here yet" in text
    for word in ("scores on test", "scores on selection", "scores on search", "balanced", "best-math", "TIES"):
        assert word in text
    only = good(here(project, "front", "--split", "selection"))
    assert "scores on selection" in only
    assert "scores on test" not in only


def test_the_front_as_json(here, project):
    shown = json.loads(good(here(project, "front", "--json")))
    stored = json.loads((project / "runs" / "tiny" / "front.json").read_text())
    assert [one["scores"] for one in shown["members"]] == [one["scores"] for one in stored["members"]]
    assert shown["aliases_from"] == "front.json"
    aliases = [alias for one in shown["members"] for alias in one["aliases"]]
    assert sorted(aliases) == ["balanced", "balanced-3", "best-code", "best-layers", "best-math", "best-translation"]


def test_the_front_says_what_its_members_take_to_run(here, project):
    shown = json.loads(good(here(project, "front", "--json")))
    text = good(here(project, "front", "--split", "test"))
    costs = {one["layers"]: one["cost"] for one in shown["members"]}
    assert shown["costs_from"].startswith("what models take to run was measured on this machine: ")
    assert shown["costs_from"] in text
    for word in ("parameters", "ms/token ×1", "×32", "KV B/token"):
        assert word in text
    sizes = [costs[layers]["parameters"] for layers in sorted(costs)]
    assert sizes == sorted(set(sizes))
    assert all(one["ms_1"] > 0 and one["ms_32"] > 0 and one["unit"] == "token" for one in costs.values())
    assert {one["cost"]["layers"] for one in shown["references"]} == {4}


def test_a_front_without_its_models_is_shown_all_the_same(here, project, tmp_path):
    shutil.copytree(project, tmp_path / "pulled", ignore=shutil.ignore_patterns("zoo", ".hm3"))
    text = good(here(tmp_path / "pulled", "front"))
    assert "what members take to run is not known: runs/tiny/zoo/family.json: no such file" in text
    assert "ms/token" not in text
    shown = json.loads(good(here(tmp_path / "pulled", "front", "--json")))
    assert {str(one["cost"]) for one in (*shown["members"], *shown["references"])} == {"None"}


def test_the_member_for_a_preference(here, project):
    by_math, by_code = (
        json.loads(good(here(project, "choose", "--prefer", one, "--json"))) for one in ("math=1", "code=1")
    )
    assert by_math["id"] != by_code["id"]
    assert "best-math" in by_math["aliases"]
    assert by_math["scores"]["selection"]["math"] == 0.94
    text = good(here(project, "choose", "--prefer", "math=1", "--max-layers", "3"))
    assert by_math["id"] not in text


def test_a_preference_that_means_nothing_is_bad_input(here, project):
    refused(here(project, "choose", "--prefer", "math=-1"), r"preference: math: -1 is no weight; .*")
    refused(here(project, "choose", "--prefer", "foo=1"), r"preference: 'foo': unknown objective; .*")
    refused(here(project, "choose", "--require", "math>=0.99"), r"no member has math>=0\.99 on selection; .*")
    refused(here(project, "choose", "--search", "0"), r"--search 0: give the number of candidates, at least 1")
    refused(here(project, "choose", "--prefer", "foo=1", "--search", "4"), r"preference: 'foo': unknown .*")


def test_a_promotion_that_cannot_be_meant_is_bad_input(here, project, tmp_path):
    state = {"HM3_STATE": str(tmp_path)}
    refused(here(project, "promote", "--rollback", "--history"), r"promote: .* give one of them")
    refused(here(project, "promote", "balanced", "--rollback"), r"promote: --rollback takes no member .*")
    refused(here(project, "promote", "--history", "--alias", "champion"), r"promote: --history takes no member .*")
    refused(here(project, "promote", "--history", env=state), r"tiny: no MLflow registry here yet; .*")
    refused(here(project, "promote", "--rollback", env=state), r"tiny: no MLflow registry here yet; .*")
    assert not (tmp_path / "mlflow").exists()


def test_an_export_and_a_merge_of_its_recipe_hold_the_same_weights(here, project, tmp_path):
    good(here(project, "export", "balanced", str(tmp_path / "exported")))
    good(here(project, "merge", str(tmp_path / "exported" / "recipe.yaml"), str(tmp_path / "merged")))
    first, second = (tmp_path / name / "model.safetensors" for name in ("exported", "merged"))
    assert first.read_bytes() == second.read_bytes()
    refused(here(project, "export", "balanced", str(tmp_path / "exported")), r".*exported: is there already; .*")
    refused(here(project, "export", "nobody", str(tmp_path / "x")), r"member 'nobody': none of that name; .*")


def test_a_merge_needs_no_project(here, project, tmp_path):
    zoo = project / "runs" / "tiny" / "zoo"
    recipe = {"merge_method": "linear", "models": [{"model": str(zoo / "math"), "parameters": {"weight": 1}}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    good(here(tmp_path, "merge", "recipe.yaml", "merged"))
    assert (tmp_path / "merged" / "config.json").is_file()
    refused(here(tmp_path, "merge", "nowhere.yaml", "other"), r"nowhere\.yaml: missing; fetch or copy it again")


def test_nothing_to_end_is_no_failure(here, project, tmp_path):
    assert good(here(project, "down", env={"HM3_STATE": str(tmp_path)})) == "nothing runs\n"
