"""Settings of one run: checked by the schema, named by what differs."""

import pytest
import yaml

from flows.versions.experiments import differences, make_tree, with_settings
from models.errors import BadInput
from tasks.project.workspace import open_workspace, with_own
from tasks.schema.params import Params, SearchParams
from tasks.schema.profile import Objective, Profile
from tests.flows.project import dvc, git


@pytest.fixture
def root(tmp_path):
    (tmp_path / "params.yaml").write_text("profiles: [tiny]\nsearch: {budget: 50}\n")
    return tmp_path


def test_settings_change_what_they_name_and_nothing_else(root):
    before = with_settings(root, [])
    after = with_settings(root, ["search.budget=70", "search.rungs=[8, 16]", "seed=3"])
    assert differences(before, after) == {"seed": 3, "search.budget": 70, "search.rungs": [8, 16]}
    assert after.search.rungs == (8, 16)


def test_settings_override_what_a_profile_sets_for_itself(root):
    own = {"search": {"budget": 60, "batch": 9}, "seed": 4}
    assert with_settings(root, [], own).search.budget == 60
    after = with_settings(root, ["search.budget=50"], own)
    assert (after.search.budget, after.search.batch, after.seed) == (50, 9, 4)


def test_a_value_goes_to_the_file_in_which_the_run_will_read_it(tmp_path):
    """The experiment's working tree gives exactly the parameters that were asked for."""
    root = tmp_path / "p"
    (root / "profiles").mkdir(parents=True)
    (root / "params.yaml").write_text("# mine\nprofiles: [p]\nsearch: {budget: 50, batch: 8}\n")
    profile = {
        "made": "tiny",
        "experts": {"a": None},
        "objectives": [{"name": "a", "task": "a"}],
        "params": {"search": {"budget": 70}},
    }
    (root / "profiles" / "p.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))
    git(root, "init", "--quiet")
    git(root, "config", "user.name", "tester")
    git(root, "config", "user.email", "tester@example.org")
    dvc(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "project")
    workspace = open_workspace("p", root)
    assert (workspace.params.search.budget, workspace.params.search.batch) == (70, 8)
    wanted = with_settings(root, ["search.budget=90", "search.batch=4", "seed=3"], workspace.profile.params)
    (root / ".hm3").mkdir()
    make_tree(workspace, root / ".hm3" / "tree", differences(workspace.params, wanted), root / ".hm3" / "log")
    assert open_workspace("p", root / ".hm3" / "tree").params == wanted
    assert (root / ".hm3" / "tree" / "params.yaml").read_text().startswith("# mine")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"serch": {"budget": 3}}, r"profiles/p\.yaml: params\.serch: unknown key"),
        ({"search": {"budgt": 3}}, r"profiles/p\.yaml: params\.search\.budgt: unknown key"),
        ({"search": {"budget": -3}}, r"profiles/p\.yaml: params\.search\.budget: .* greater than or equal to 1"),
        ({"profiles": ["q"]}, r"profiles/p\.yaml: params\.profiles: unknown key"),
    ],
)
def test_what_a_profile_can_not_set_is_bad_input(own, message):
    profile = Profile(made="tiny", experts={"a": None}, objectives=[Objective(name="a", task="a")], params=own)
    with pytest.raises(BadInput, match=message):
        with_own(Params(), profile, "profiles/p.yaml")


def test_keys_that_the_file_leaves_out_can_be_set(root):
    assert with_settings(root, ["train.steps=7"]).train.steps == 7


def test_equal_parameters_do_not_differ():
    assert differences(Params(), Params(search=SearchParams())) == {}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.budgt=3", r"-S: search\.budgt: unknown key"),
        ("nothing.budget=3", r"-S: nothing: unknown key"),
        ("search.budget.more=3", r"-S search\.budget\.more=3: search\.budget\.more: unknown key"),
        ("search.budget=-3", r"-S: search\.budget: .* greater than or equal to 1"),
        ("search.budget=many", r"-S: search\.budget: .* integer"),
        ("search.budget", r"-S search\.budget: write it as key=value"),
        ("profiles=[other]", r"-S profiles=\[other\]: a run has one profile; name it with --profile"),
        ("=3", r"-S =3: write it as key=value"),
        ("search.rungs=[8", r"-S search\.rungs=\[8: '\[8' is no YAML value"),
    ],
)
def test_what_the_schema_refuses_is_bad_input(root, setting, message):
    with pytest.raises(BadInput, match=message):
        with_settings(root, [setting])
