"""The graph, the status and the outcome that DVC gives."""

import subprocess

import pytest

from flows.versions import reproduce
from flows.versions.reproduce import Plan, Stage, describe, outcome
from models.errors import BadInput, Failed, Unavailable
from tasks.project.workspace import Workspace
from tasks.schema.params import Params
from tests.flows.project import OUTS, dvc, make_project


def seen(root, profile="tiny"):
    """The project as a run sees it, with its state beside it."""
    return Workspace(root, profile, Params(), None, root / ".hm3")


def plan(root, profile="tiny"):
    return reproduce.plan(reproduce.ask(seen(root, profile)), profile)


def start(root):
    return reproduce.start_stage(seen(root), "a@tiny", root / "log", force=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory, done):
    return make_project(tmp_path_factory.mktemp("plan") / "project", done)


def test_the_plan_holds_dvc_stage_list_in_an_order_that_can_run(project):
    found = plan(project)
    listed = {line.split()[0] for line in dvc(project, "stage", "list").splitlines()}
    assert {stage.name for stage in found.stages} == listed == {f"{name}@tiny" for name in OUTS}
    seen = set()
    for stage in found.stages:
        assert seen.issuperset(stage.parents)
        seen.add(stage.name)


def test_what_has_no_outs_yet_is_stale_and_says_so(project):
    found = plan(project)
    assert found.stale == {stage.name for stage in found.stages}
    assert found.stages[0].changes == ("no runs/tiny/zoo yet", "no runs/tiny/tasks yet")


def test_a_profile_without_stages_is_bad_input(project):
    with pytest.raises(BadInput, match=r"params.yaml: profiles: 'other' is not listed"):
        plan(project, "other")


def test_a_folder_without_dvc_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match=r"dvc.yaml: .*not inside of a DVC repository"):
        plan(tmp_path)


def test_a_broken_dvc_yaml_is_bad_input(tmp_path, done):
    project = make_project(tmp_path / "project", done)
    (project / "dvc.yaml").write_text("stages: {zoo: {cmd: [")
    with pytest.raises(BadInput, match=r"dvc\.yaml"):
        plan(project)


@pytest.fixture
def reproduced(tmp_path):
    """A project with a stage that was run, as DVC was started by us."""
    stage = "{cmd: cp in.txt a.txt, deps: [in.txt], outs: [a.txt]}"
    (tmp_path / "dvc.yaml").write_text(f"stages: {{a: {{foreach: [tiny], do: {stage}}}}}")
    (tmp_path / "in.txt").write_text("1")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    dvc(tmp_path, "init", "--quiet")
    for _ in range(2):  # the first has nothing to keep, the second changes nothing
        assert start(tmp_path).process.wait() == 0
    return tmp_path


WHOLE = (Stage("a@tiny", (), ()),)


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_lock_file_that_a_killed_dvc_cut_off_is_what_it_was(reproduced, share):
    lock = reproduced / "dvc.lock"
    before = lock.read_text()
    lock.write_text(before[: int(share * len(before))])
    assert plan(reproduced) == Plan(WHOLE)
    assert lock.read_text() == before


def test_a_first_lock_file_that_was_cut_off_goes_and_the_stage_comes_from_the_cache(reproduced):
    (reproduced / ".dvc" / "tmp" / "hm3-dvc.lock").unlink()
    (reproduced / "dvc.lock").write_text("")
    assert plan(reproduced).stale == {"a@tiny"}
    start(reproduced).process.wait()
    assert outcome("a@tiny", 0, reproduced / "log") == "restored"
    assert plan(reproduced) == Plan(WHOLE)


@pytest.mark.parametrize("text", ["", '{"write": {"/a.txt": {"pi'])
def test_locks_that_a_killed_dvc_cut_off_hold_nobody_up(reproduced, text):
    (reproduced / ".dvc" / "tmp" / "rwlock").write_text(text)
    assert plan(reproduced) == Plan(WHOLE)
    assert dvc(reproduced, "repro", "--force")


def test_a_lock_file_with_the_marks_of_a_merge_is_left_to_its_user(reproduced):
    lock = reproduced / "dvc.lock"
    marked = f"<<<<<<< ours\n{lock.read_text()}=======\n>>>>>>> theirs\n"
    lock.write_text(marked)
    with pytest.raises(BadInput, match=r"dvc\.yaml"):
        plan(reproduced)
    assert lock.read_text() == marked


def test_everything_below_a_change_is_stale_and_nothing_else():
    stages = (
        Stage("zoo@a", (), ()),
        Stage("sample@a", ("zoo@a",), ("params.yaml: seed modified",)),
        Stage("other@a", ("zoo@a",), ()),
        Stage("search@a", ("sample@a", "other@a"), ()),
    )
    assert Plan(stages).stale == {"sample@a", "search@a"}


def test_status_in_words():
    changed = {"changed deps": {"params.yaml": {"search.budget": "modified"}, "tasks/search.py": "modified"}}
    assert describe([changed]) == ["params.yaml: search.budget modified", "tasks/search.py modified"]
    assert describe([changed, {"changed outs": {"a.json": "deleted"}}]) == ["no a.json yet"]
    assert describe(["changed command"]) == ["changed command"]


def log(tmp_path, text):
    path = tmp_path / "stage.log"
    path.write_text(text)
    return path


def test_what_dvc_did_is_read_from_its_output(tmp_path):
    assert outcome("zoo@a", 0, log(tmp_path, "Running stage 'zoo@a':\n")) == "ran"
    assert outcome("zoo@a", 0, log(tmp_path, "Stage 'zoo@a' didn't change, skipping\n")) == "unchanged"
    cached = "Stage 'zoo@a' is cached - skipping run, checking out outputs\n"
    assert outcome("zoo@a", 0, log(tmp_path, cached)) == "restored"


FAILED = "ERROR: failed to reproduce 'zoo@a': failed to run: hm3 stage zoo, exited with "


def test_bad_input_keeps_the_stages_own_line(tmp_path):
    with pytest.raises(BadInput, match=r"^params\.yaml: seed: mend it$"):
        outcome("zoo@a", 255, log(tmp_path, f"noise\nhm3: params.yaml: seed: mend it\n{FAILED}2\n"))


def test_a_stage_that_a_disk_or_a_network_stopped_can_be_tried_again(tmp_path):
    with pytest.raises(Unavailable, match=r"^zoo@a: the disk is busy; see "):
        outcome("zoo@a", 255, log(tmp_path, f"hm3: the disk is busy\n{FAILED}75\n"))


def test_a_crash_gives_its_last_line_and_the_log(tmp_path):
    path = log(tmp_path, f"Traceback (most recent call last):\nRuntimeError: out of luck\n{FAILED}1\n")
    with pytest.raises(Failed, match=rf"^zoo@a: RuntimeError: out of luck; see {path}$"):
        outcome("zoo@a", 255, path)


def test_a_refusal_of_dvc_itself_is_said(tmp_path):
    with pytest.raises(Failed, match=r"zoo@a: Unable to acquire lock"):
        outcome("zoo@a", 255, log(tmp_path, "ERROR: Unable to acquire lock\n"))


def test_a_block_that_is_missing_in_params_is_bad_input(project):
    path = project / "params.yaml"
    text = path.read_text()
    path.write_text("\n".join(line for line in text.splitlines() if "zoo" not in line and "base_steps" not in line))
    ran = subprocess.run(["dvc", "repro", "--single-item", "zoo@tiny"], cwd=project, capture_output=True, text=True)
    path.write_text(text)
    log = project / "repro.log"
    log.write_text(ran.stdout + ran.stderr)
    with pytest.raises(BadInput, match=r"params.yaml: zoo.base_steps: missing; add it"):
        outcome("zoo@tiny", ran.returncode, log)
