"""The stages on a project whose seams are repaired: what is written, what is charged, and what a later run needs."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from models.agent.agent import load_agent
from models.merge.recipe import mergekit_level, read_recipes
from models.paths.calibration import Calibration
from tasks import dataset, pareto, sample, search, train
from tasks.front.choice import Wish
from tasks.front.front import Front
from tasks.project.progress import Progress
from tasks.project.records import Anchors, read_archive
from tasks.project.workspace import open_workspace
from tasks.registry.aliases import target_of
from tasks.scoring.evaluation import evaluate
from tasks.trials.repair import FILE
from tasks.trials.targeted import search_for
from tests import small_search
from tests.small_repairs import LAYERS, make_repair_project
from tests.small_tasks import COUNTS

PARAMS = small_search.PARAMS | {"pareto": {"members": 8, "rescored": 16}}
PARAMS |= {"search": PARAMS["search"] | {"budget": 2600}, "train": PARAMS["train"] | {"share": 0.1}}


@pytest.fixture(scope="module")
def finished(make_family, tmp_path_factory):
    """A project whose pipeline has run."""
    workspace = make_repair_project(tmp_path_factory.mktemp("stages"), make_family, params=PARAMS)
    for stage in (sample, dataset, train, search, pareto):
        stage.run(workspace, Progress())
    return workspace


def front_of(workspace):
    return json.loads((workspace.run / "front.json").read_text())


def refitted(workspace, member):
    """Positions of a member's path that are refitted: where layers are left out and that is repaired; of a path forward
    through one model all from there on."""
    steps = [*member["path"], [member["host"], LAYERS]]
    layers = Anchors.read(workspace.run).repair.layers
    pairs = enumerate(itertools.pairwise(steps))
    found = tuple(at for at, ((_, layer), (_, after)) in pairs if layer in layers and after > layer + 1)
    return tuple(range(found[0], len(member["path"]))) if found and alone(member) else found


def alone(member):
    """Whether a member's path leads forward through one model."""
    layers = [layer for _, layer in member["path"]]
    return {model for model, _ in member["path"]} == {member["host"]} and layers == sorted(set(layers))


def test_members_with_repaired_seams_say_so_and_have_the_scores_of_their_recipes(finished):
    mended = 0
    for one in front_of(finished)["members"]:
        recipes, positions = read_recipes(finished.run / one["recipe"]), refitted(finished, one)
        repair = recipes[-1].repair
        assert (repair.layers if repair else ()) == positions
        assert one["mergekit"] == ("no" if positions else mergekit_level(recipes))
        if positions:
            mended += 1
            found = evaluate(finished, str(finished.run / one["recipe"]), "test", finished.root, Progress())
            assert found.scores == one["scores"]["test"]
    assert mended


def test_all_that_was_read_for_repairs_is_charged(finished):
    anchors, items = Anchors.read(finished.run), Calibration.read(finished.run / FILE)
    archive = read_archive(finished.run, anchors.objectives)
    charged = [one for one in anchors.scored if one.recipe is not None]
    assert anchors.spent == len(charged) * 2 * COUNTS["search"] + anchors.repair.item_evaluations
    trained, before = read_archive(finished.run, anchors.objectives, "train"), anchors.repair.item_evaluations
    taught = load_agent(finished.run / "agent").config.spent - trained["charged"].sum() - before
    assert taught > 0
    assert archive["at"].max() == archive["charged"].sum() + before + taught
    members = front_of(finished)["members"]
    cut = [one for one in members if refitted(finished, one)]
    models = {one["path"][at][0] for one in cut if not alone(one) for at in refitted(finished, one)}
    read = (2 * sum(map(alone, cut)) + len(models)) * len(items.fitted(24_000).tasks)
    metrics = json.loads((finished.run / "metrics.json").read_text())
    assert metrics["item_evaluations"] == archive["at"].max() + read


def test_a_journal_without_folds_gives_the_same_front_and_scores_nothing(finished, tmp_path):
    again = copied(finished, tmp_path)
    shutil.rmtree(again.state / "repairs")
    segments = sorted((again.state / "journal").rglob("*.jsonl"))
    for stage in (sample, search, pareto):
        stage.run(again, Progress())
    assert sorted((again.state / "journal").rglob("*.jsonl")) == segments
    for name in ("anchors.json", FILE, "front.json", "metrics.json", "search.csv"):
        assert (again.run / name).read_bytes() == (finished.run / name).read_bytes(), name


def copied(workspace, folder):
    return open_workspace("p", shutil.copytree(workspace.root, folder / "project"))


def test_a_search_for_one_preference_finds_repaired_cuts(finished, tmp_path):
    workspace = copied(finished, tmp_path)
    data = front_of(workspace)
    data["members"] = [one for one in data["members"] if one["layers"] == LAYERS][:1]
    (workspace.run / "front.json").write_text(json.dumps(data))
    front = Front.read(workspace.run)
    wishes = [
        Wish.parse(front, prefer, max_layers=most)
        for most in (LAYERS - 2, LAYERS - 1)
        for prefer in ("one=0.5,two=0.2,layers=0.3", "one=0.2,two=0.8", "one=0.8,two=0.2")
    ]
    found = ((wish, search_for(workspace, front, wish, 12, Progress()).member) for wish in wishes)
    # not every cut has a seam behind which repairing gains
    wish, result = next(pair for pair in found if refitted(finished, {"path": pair[1].path, "host": pair[1].host}))
    recipes = read_recipes(Path(result.recipe))
    assert refitted(finished, {"path": result.path, "host": result.host}) == recipes[-1].repair.layers
    assert result.mergekit == "no"
    target, here = target_of(workspace, result.id, workspace.root)
    assert evaluate(workspace, target, "selection", here, Progress()).scores == result.scores["selection"]
    segments = sorted((workspace.state / "journal").rglob("*.jsonl"))
    shutil.rmtree(workspace.state / "repairs")
    assert search_for(workspace, front, wish, 12, Progress()).member == result
    assert sorted((workspace.state / "journal").rglob("*.jsonl")) == segments
