"""What git says of a project: its commit, whether files differ from it, and nothing where there is no git."""

import pytest

from models.errors import Failed
from tasks.project.git import demand, git, git_tags

ME = ("-c", "user.name=hm3", "-c", "user.email=hm3@localhost")


def test_tags_name_the_commit_and_whether_files_differ_from_it(tmp_path):
    assert git_tags(tmp_path) == {}
    demand(tmp_path, "init", "--quiet")
    assert git_tags(tmp_path) == {}  # no commit yet
    demand(tmp_path, *ME, "commit", "--quiet", "--allow-empty", "--message", "project")
    head = demand(tmp_path, "rev-parse", "HEAD").strip()
    assert git_tags(tmp_path) == {"mlflow.source.git.commit": head, "git.dirty": "false"}
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    assert git_tags(tmp_path)["git.dirty"] == "true"


def test_a_command_that_had_to_succeed_says_why_it_failed(tmp_path):
    with pytest.raises(Failed, match=r"^git rev-parse: fatal: not a git repository"):
        demand(tmp_path, "rev-parse", "HEAD")


def test_a_machine_without_git_has_no_tags(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git(tmp_path, "status").returncode == 127
    assert git_tags(tmp_path) == {}
