"""A project is opened with everything that its files get wrong said at once."""

import pytest
import yaml

from models.errors import BadInput
from tasks.project.workspace import open_workspace
from tests.small_tasks import COUNTS

PARAMS = {"profiles": ["p"]}
PROFILE = {
    "base": "base",
    "experts": {"a": "a"},
    "objectives": [{"name": "one", "task": "small_one", "items": COUNTS}],
}


def write(root, params, profile):
    (root / "profiles").mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "profiles" / "p.yaml").write_text(yaml.safe_dump(profile))
    return root


def refused(root):
    with pytest.raises(BadInput) as caught:
        open_workspace("p", root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sound_project_is_opened(tmp_path):
    assert open_workspace(None, write(tmp_path, PARAMS, PROFILE)).name == "p"


def test_one_fault_is_said_plainly(tmp_path):
    root = write(tmp_path, PARAMS, PROFILE | {"bsae": "x"})
    assert refused(root) == "profiles/p.yaml: bsae: unknown key; remove it or mend its spelling"


def test_all_faults_of_a_profile_are_said_at_once(tmp_path):
    text = refused(write(tmp_path, PARAMS, PROFILE | {"bsae": "x", "threads": -1, "dtype": "float31"}))
    assert text.startswith("profiles/p.yaml: 3 problems: ")
    for field in ("bsae: unknown key", "threads: Input should be", "dtype: Input should be"):
        assert field in text


def test_all_faults_of_parameters_are_said_at_once_wherever_they_stand(tmp_path):
    search = {"budget": -1, "batch": 0}
    (tmp_path / "own").mkdir()
    for root, params, profile, block in (
        (tmp_path, PARAMS | {"search": search}, PROFILE, "params.yaml: 2 problems: search."),
        (
            tmp_path / "own",
            PARAMS,
            PROFILE | {"params": {"search": search}},
            "profiles/p.yaml: 2 problems: params.search.",
        ),
    ):
        text = refused(write(root, params, profile))
        assert text.startswith(block)
        assert text.count("search.") == 2


@pytest.mark.parametrize("name", ["\x1b[2J", "\x9b2J", "a\u202eb", "a\rb"])
def test_names_that_nobody_could_read_are_refused(tmp_path, name):
    for field in ({"experts": {name: "a"}}, {"experts": {"a": name}}, {"base": name}, {"description": name}):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        text = refused(write(folder, PARAMS, PROFILE | field))
        assert f"{next(iter(field))}: Value error, holds control characters" in text
