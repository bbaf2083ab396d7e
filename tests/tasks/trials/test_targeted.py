"""`hm3 choose --search`: on from the trained agent for one preference, beside the front and within its budget."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import BadInput
from tasks.front.checkpoint import write_member
from tasks.front.choice import Wish, choose_member
from tasks.front.front import Front
from tasks.front.table import member_data
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tasks.registry.aliases import named, target_of
from tasks.scoring.evaluation import evaluate
from tasks.trials.targeted import search_for, utility_of
from tests.small_search import make_finished_project
from tests.small_tasks import COUNTS

COUNT = 10
PREFER = "one=0.6,two=0.4"


@pytest.fixture(scope="module")
def finished(make_family, tmp_path_factory):
    """A project whose pipeline has run; tests only read it."""
    return make_finished_project(tmp_path_factory.mktemp("targeted") / "project", make_family)


@pytest.fixture(scope="module")
def searched(finished, tmp_path_factory):
    """A copy whose front has lost all but its worst member for the preference, and what a search has found there."""
    workspace = copied(finished, tmp_path_factory.mktemp("searched"))
    front = Front.read(workspace.run)
    weights = Wish.parse(front, PREFER).weights
    worst = min(front.members, key=lambda one: utility_of(front, one, weights))
    data = json.loads((workspace.run / "front.json").read_text())
    data["members"] = [one for one in data["members"] if one["id"] == worst.id]
    (workspace.run / "front.json").write_text(json.dumps(data))
    before = contents(workspace.run)
    result = found(workspace)
    assert contents(workspace.run) == before, "a search must change nothing that DVC versions"
    return workspace, result


def copied(workspace, folder):
    return open_workspace("p", shutil.copytree(workspace.root, folder / "project"))


def found(workspace, prefer=PREFER, count=COUNT, **wish):
    front = Front.read(workspace.run)
    return search_for(workspace, front, Wish.parse(front, prefer, **wish), count, Progress())


def contents(folder):
    return {one.relative_to(folder): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def segments(workspace):
    return sorted((workspace.state / "journal").rglob("*.jsonl"))


def test_what_serves_better_than_the_front_is_found(searched):
    workspace, result = searched
    front = Front.read(workspace.run)
    assert result.best_member == front.members[0].id != result.member.id
    assert result.utility > result.member_utility
    assert result.utility == utility_of(front, result.member, Wish.parse(front, PREFER).weights)
    assert set(result.member.scores) == {"search", "selection"}
    assert result.member.serves == {"one": 0.6, "two": 0.4, "layers": 0.0}


def test_n_bounds_what_is_charged(searched):
    workspace, result = searched
    whole = COUNTS["search"] * 2
    assert (COUNT - 2) * whole < result.item_evaluations <= COUNT * whole
    assert result.tried > COUNT  # most are given up after a few items
    few = found(workspace, count=2)
    assert 0 < few.item_evaluations <= 2 * whole


def test_the_same_search_scores_nothing_and_reads_no_test_items(searched, tmp_path):
    workspace, result = searched
    again = copied(workspace, tmp_path)
    for path in again.items.glob("*.test.jsonl"):
        path.unlink()
    before = segments(again)
    assert replace(found(again, "two=4,one=6").member, recipe="") == replace(result.member, recipe="")
    assert segments(again) == before


def test_a_search_that_was_cut_off_goes_on(searched, finished, tmp_path):
    workspace, result = searched
    cut = copied(workspace, tmp_path)
    shutil.rmtree(cut.state / "found")
    own = segments(cut)[len(segments(finished)) :]
    for path in own[len(own) // 2 :]:
        path.unlink()
    assert replace(found(cut).member, recipe="") == replace(result.member, recipe="")
    kept = [one.state / "found" / "p" / result.member.id for one in (cut, workspace)]
    assert contents(kept[0]) == contents(kept[1]) != {}


def test_what_was_found_is_exported_and_evaluated_by_its_id(searched, tmp_path):
    workspace, result = searched
    shown = member_data(Front.read(workspace.run), result.member)
    assert Path(shown["recipe"]).is_file()
    member = named(workspace, Front.read(workspace.run), result.member.id)
    assert member == result.member
    write_member(workspace, member, tmp_path / "out", Progress())
    for target in (str(tmp_path / "out"), result.member.id[:6]):
        assert scored(workspace, target) == pytest.approx(result.member.scores["selection"])


def scored(workspace, target):
    model, here = target_of(workspace, target, workspace.root)
    return evaluate(workspace, model, "selection", here, Progress()).scores


def test_what_was_found_among_other_models_is_refused(searched, tmp_path):
    workspace, result = searched
    other = copied(workspace, tmp_path)
    with (other.zoo / "family.json").open("a") as file:
        file.write("\n")
    with pytest.raises(BadInput, match=rf"{result.member.id}: was found among models .* `hm3 choose --search N`"):
        named(other, Front.read(other.run), result.member.id)


def test_a_member_stays_where_nothing_is_better_and_requirements_hold(finished, tmp_path):
    workspace = copied(finished, tmp_path)
    front = Front.read(workspace.run)
    result = found(workspace, max_layers=3, require=["one>=0.1"])
    assert result.member.layers <= 3
    assert result.member.scores["selection"]["one"] >= 0.1
    assert result.best_member == choose_member(front, PREFER, ["one>=0.1"], 3).id
    assert result.utility >= result.member_utility
    assert (result.member in front.members) == (result.member.id == result.best_member)
    with pytest.raises(BadInput, match="no member has one>=2 on selection; the best are"):
        found(workspace, count=1, require=["one>=2"])


def test_what_is_missing_is_named(finished, tmp_path):
    workspace = copied(finished, tmp_path)
    shutil.rmtree(workspace.run / "agent")
    with pytest.raises(BadInput, match="agent: not a whole agent"):
        found(workspace)
    (workspace.run / "archive.parquet").unlink()
    with pytest.raises(BadInput, match=r"runs/p/archive\.parquet: no such file; .*dvc pull"):
        found(workspace)
