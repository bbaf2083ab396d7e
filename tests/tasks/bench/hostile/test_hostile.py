"""Changed files of every kind that strangers hand over: refused in one line, or of use."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks.bench.hostile import kinds
from tasks.bench.hostile.kinds import KINDS, Unusable
from tasks.bench.hostile.made import make_project
from tasks.bench.hostile.page import BAD, GOOD, counted, page
from tasks.bench.hostile.run import Case, try_cases
from tasks.bench.setup import describe_setup


@pytest.mark.parametrize(
    ("count", "seed"), [(330, 20), pytest.param(100_000, 22, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_no_change_gives_a_traceback_an_unusable_success_or_a_hang(count, seed):
    done = list(try_cases(count, seed, workers=1 if count < 1000 else 2))
    assert sorted(one.number for one in done) == list(range(count))
    assert [one for one in done if one.outcome in BAD] == []
    assert {one.kind for one in done if one.outcome == "refused"} == {one.name for one in KINDS}
    assert sum(one.outcome == "sound" for one in done) > count / 30


def test_a_fault_of_hm3_is_seen(tmp_path):
    """A kind of each outcome, in place of those of the bench: what counts them is no judge that always says well."""
    make_project(tmp_path / "project")
    model = tmp_path / "project" / "models" / "a"
    kinds.check_model(model)
    (model / "config.json").write_text("{}")
    with pytest.raises(Unusable):
        kinds.check_model(model)
    (tmp_path / "project" / "models" / "b" / "more.json").symlink_to(tmp_path)
    with pytest.raises(Unusable, match=r"more\.json carries a file of the user's"):
        kinds.check_model(tmp_path / "project" / "models" / "b")


def test_the_page_counts_every_outcome(tmp_path):
    outcomes = (*GOOD, *BAD)
    done = [Case(1, n, "model", "a", "cut", one, 1.0, 9, f"said {one}") for n, one in enumerate(outcomes)]
    setup = describe_setup(tmp_path, 1)
    rows = counted(done, setup)
    assert rows["cases"].sum() == len(outcomes)
    text = page(rows)
    assert "| model | 7 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1.0 | 9 |" in text
    assert all(
        f"model, `a`, cut: {one} (1; the first is number {outcomes.index(one)} of seed 1)" in text for one in BAD
    )
    assert list(rows.loc[rows["outcome"].isin(GOOD), "said"].unique()) == [""]
    pd.testing.assert_frame_equal(counted(done[::-1], setup), rows)


def test_the_command_says_what_came_of_it(tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["bench", "hostile", "--cases", "3", "--small", "--json", "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["cases"] == 3
