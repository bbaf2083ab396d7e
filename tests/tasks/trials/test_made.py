"""`hm3 choose --prefer`: a model for exactly one preference, without a score; measured, it is like a member."""

import numpy as np
import pytest

from models.agent.agent import load_agent
from models.merge.recipe import parse_recipes
from models.preferences import over_tasks
from tasks.front.checkpoint import write_member
from tasks.front.choice import Wish
from tasks.front.found import kept
from tasks.front.front import Front
from tasks.front.table import made_table
from tasks.project.progress import Progress
from tasks.scoring.evaluation import evaluate
from tasks.trials.made import make_for
from tests.small_search import make_finished_project
from tests.tasks.trials.test_targeted import contents, copied, segments


@pytest.fixture(scope="module")
def workspace(make_family, tmp_path_factory):
    finished = make_finished_project(tmp_path_factory.mktemp("finished") / "project", make_family)
    return copied(finished, tmp_path_factory.mktemp("made"))


def made(workspace, prefer, measure=False, **wish):
    front = Front.read(workspace.run)
    return make_for(workspace, front, Wish.parse(front, prefer, **wish), measure, Progress())


def test_it_is_the_actor_s_merge_and_nothing_is_scored_or_changed(workspace):
    before, scores = contents(workspace.run), segments(workspace)
    found = made(workspace, "one=0.3,two=0.7")
    assert contents(workspace.run) == before
    assert segments(workspace) == scores
    actor = load_agent(workspace.run / "agent").actor
    assert found.layers == actor.matrix.shape[2]
    for name, row in zip(actor.experts, actor.weights(np.array([0.3, 0.7])), strict=True):
        assert found.weights[name] == pytest.approx(row)
    text = (workspace.root / found.recipe).read_text()
    (merge, *_) = parse_recipes(text, "recipe.yaml")
    assert merge.merge_method == "task_arithmetic"
    assert all(0 < deviation < 1 for _, deviation in found.foreseen.values())
    assert found.measured is None
    assert found.to_json()["scores"] is None
    assert kept(workspace, found.id) is None


def test_other_preferences_have_other_models_and_the_same_one_the_same(workspace):
    one, again, other = (made(workspace, text) for text in ("one=1,two=3", "one=0.25,two=0.75", "one=3,two=1"))
    assert one.id == again.id != other.id
    assert one.foreseen == again.foreseen


@pytest.mark.parametrize("wish", [{"prefer": "one=0.5,two=0.5", "max_layers": 2}, {"prefer": "layers=1"}])
def test_layers_go_where_they_count_or_are_bounded(workspace, wish):
    found = made(workspace, **wish)
    assert found.layers < 3
    assert "merge_method: passthrough" in (workspace.root / found.recipe).read_text()


def test_measured_it_is_kept_and_written_like_a_member(workspace, tmp_path):
    found = made(workspace, "one=0.6,two=0.4", measure=True)
    member = kept(workspace, found.id)
    assert member == found.measured
    assert set(member.scores) == {"search", "selection"}
    assert member.serves == {"one": 0.6, "two": 0.4, "layers": 0.0}
    assert "foreseen" in str(made_table(found).renderables[0].columns[1].header)
    write_member(workspace, member, tmp_path / "out", Progress())
    scored = evaluate(workspace, str(tmp_path / "out"), "selection", tmp_path, Progress())
    for name in ("one", "two"):
        assert scored.scores[name] == pytest.approx(member.scores["selection"][name])


def test_a_preference_for_depth_alone_weighs_tasks_alike():
    np.testing.assert_allclose(over_tasks(np.array([0, 0, 1.0]), 2), [0.5, 0.5])
    np.testing.assert_allclose(over_tasks(np.array([0.1, 0.3, 0.6]), 2), [0.25, 0.75])
