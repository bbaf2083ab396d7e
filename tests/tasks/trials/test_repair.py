"""Repairs in a run: rows beside the anchors, layers behind which a repair gains, and what is charged for it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from scipy import stats

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.calibration import Calibration
from models.paths.folded import Fold
from models.paths.folds import read_fold, write_fold
from models.paths.path import path_model
from tasks import zoo
from tasks.front.checkpoint import write_member
from tasks.front.front import Front
from tasks.objectives.calibration import LEAST, calibration_of
from tasks.pareto import describe
from tasks.project.progress import Progress
from tasks.project.records import Anchors, Repaired
from tasks.project.workspace import open_workspace
from tasks.scoring.engine import Engine
from tasks.scoring.evaluation import evaluate
from tasks.scoring.repairs import FINAL
from tasks.trials.members import Listed
from tasks.trials.repair import (
    CLEAR,
    FILE,
    GAIN,
    RUNGS,
    begin_repairs,
    gaining,
    open_repairs,
    recipe_block,
    repair_members,
)
from tests import small_images
from tests.small_front import member, write_front
from tests.small_images import make_clip_project, make_vit_project
from tests.small_repairs import LAYERS, make_repair_project, mixed, repairing, without

MODEL = "a"


@pytest.fixture(scope="module")
def project(make_family, tmp_path_factory):
    return make_repair_project(tmp_path_factory.mktemp("project"), make_family)


@pytest.fixture
def workspace(project, tmp_path):
    """A copy that may be changed."""
    return open_workspace("p", shutil.copytree(project.root, tmp_path / "copy"))


@pytest.fixture(scope="module")
def items(project):
    """Calibration items."""
    return calibration_of(project, project.zoo / "base")


def gain(engine, items=None):
    """Layers and item evaluations, with whatever folds are there."""
    repairs = engine.repairs
    if items is not None:
        repairs.calibration = items
    with Progress().bar("", engine.layers - 1) as bar:
        found = gaining(engine, repairs, MODEL, bar)
    assert bar.completed == engine.layers - 1
    return found


def losses(engine, path, texts):
    """Nats a token of each answer, by the path as a model of transformers."""
    model, found = path_model(engine.pool, path), []
    for tokens, answer in zip(texts.tokens, texts.answers, strict=True):
        ids = torch.tensor([tokens])
        with torch.inference_mode():
            likelihoods = model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[0, -answer:, 0]
        found.append(-float(likelihoods.mean()))
    return np.array(found)


def significance(gains):
    return float(stats.ttest_1samp(gains, 0).statistic)


def test_layers_are_kept_where_a_layer_less_costs_less_once_repaired(workspace, items):
    engine = repairing(workspace, calibration=items)
    engine.repairs.calibrate(MODEL)
    held_out, wanted, evaluations = items.held_out(), [], 0
    few = RUNGS[0]
    assert few < len(held_out.tasks) < RUNGS[1]
    for layer in range(LAYERS - 1):
        cut = without(MODEL, layer + 1)
        gains = losses(engine, cut, held_out) - losses(engine, engine.repaired(cut), held_out)
        evaluations += 2 * few
        first = significance(gains[:few])
        if first > CLEAR:
            wanted.append(layer)
        elif first >= -GAIN:
            evaluations += 2 * (len(gains) - few)
            wanted += [layer] if significance(gains) > GAIN else []
    assert gain(engine) == (wanted, evaluations)
    assert wanted


def test_a_repair_that_spoils_is_dropped_and_others_are_kept(workspace, items):
    engine = repairing(workspace, calibration=items)
    engine.repairs.calibrate(MODEL)
    kept, _ = gain(engine)
    engine = repairing(workspace, calibration=items)
    (step,) = set(engine.repaired(cut := without(MODEL, kept[0] + 1)).path) - set(cut.path)
    path = engine.repairs._file(engine.repairs._measured[step[0]])
    fold = read_fold(path)
    write_fold(path, Fold(torch.randn(fold.weight.shape, generator=torch.Generator().manual_seed(0))))
    assert gain(engine)[0] == kept[1:]


def test_where_the_next_layer_does_nothing_a_repair_gains_nothing(workspace, items):
    path = workspace.zoo / MODEL / "model.safetensors"
    tensors = load_file(path)
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.3.{part}.weight"].zero_()
    save_file(tensors, path, {"format": "pt"})
    engine = repairing(workspace, calibration=items)
    engine.repairs.calibrate(MODEL)
    cut = without(MODEL, 3)
    assert engine.repaired(cut) != cut
    naive, mended = (losses(engine, one, items.held_out()) for one in (cut, engine.repaired(cut)))
    assert np.array_equal(naive, mended)
    assert 2 not in gain(engine)[0]


def test_fewer_items_than_are_tried_first_decide_alone(workspace, items):
    engine = repairing(workspace, calibration=items)
    engine.repairs.calibrate(MODEL)
    _, evaluations = gain(engine, items.part(0, 27))
    assert len(items.part(0, 27).held_out().tasks) == 5
    assert evaluations == 5 * 2 * (LAYERS - 1)
    assert gain(engine, items.part(0, 5))[1] == 2 * (LAYERS - 1)  # one item decides nothing
    assert gain(engine, items.part(0, 5))[0] == []


def test_beginning_writes_rows_and_a_record_and_charges_what_was_read(workspace, items):
    engine, models = Engine(workspace), ["a", "b"]
    with Progress(workspace.state / "progress.jsonl") as progress:
        record = begin_repairs(workspace, engine, models, progress)
    assert Calibration.read(workspace.run / FILE).digest == record.rows == items.digest
    again = repairing(replace(workspace, state=workspace.root / "other"), calibration=items)
    again.repairs.calibrate(MODEL)
    layers, evaluations = gain(again)
    fitted = len(items.tasks) - len(items.held_out().tasks)
    assert record == Repaired(items.digest, layers, 2 * fitted + evaluations)
    assert engine.repairs.layers == set(layers)
    events = [json.loads(line) for line in (workspace.state / "progress.jsonl").read_text().splitlines()]
    (said,) = [one["text"] for one in events if one["event"] == "message"]
    assert said.startswith(f"repair: {items.total:,} tokens of rows in no split (one ")
    assert f"; it gains behind {len(layers)} of {LAYERS - 1} layers" in said
    anchors = Anchors(["one", "two"], {}, {}, 0, models, repair=record)
    later = Engine(workspace)
    open_repairs(workspace, later, anchors, Progress())
    cuts = [without("a", layer) for layer in range(1, LAYERS)]
    assert [later.repaired(one) for one in cuts] == [engine.repaired(one) for one in cuts]
    Calibration.read(workspace.run / FILE).part(0, 100).write(workspace.run / FILE)
    with pytest.raises(BadInput, match=r"calibration\.safetensors: not the items of anchors\.json; run stage `sample`"):
        open_repairs(workspace, later, anchors, Progress())
    (workspace.run / FILE).unlink()
    with pytest.raises(BadInput, match=r"anchors/calibration\.safetensors: missing"):
        open_repairs(workspace, later, anchors, Progress())


def test_too_few_tokens_are_refused_with_a_remedy(workspace):
    for path in (workspace.root / "data").iterdir():
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:20]))
    with pytest.raises(
        BadInput, match=rf"^profiles/p\.yaml: calibration: \d+ tokens .* fewer than {LEAST:,}; "
    ) as caught:
        begin_repairs(workspace, Engine(workspace), ["a"], Progress())
    assert "`paths: {repair: false}`" in str(caught.value) and "\n" not in str(caught.value)
    assert not (workspace.run / FILE).exists()


@pytest.mark.parametrize("change", [{"paths": {"repair": False}}, {"layers": None}], ids=["switched off", "no depth"])
def test_nothing_is_written_where_nothing_is_to_be_repaired(workspace, change):
    path = workspace.root / "profiles" / "p.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    workspace = open_workspace("p", workspace.root)
    engine, before = Engine(workspace), set(workspace.root.rglob("*"))
    assert begin_repairs(workspace, engine, ["a"], Progress()) is None
    assert engine.repairs is None
    assert set(workspace.root.rglob("*")) == before
    open_repairs(workspace, engine, Anchors(["one", "two"], {}, {}, 0, ["a"]), Progress())
    assert repair_members(engine, [without("a", 2)]) == 0
    assert recipe_block(workspace, engine, without("a", 2)) is None


def test_members_are_charged_for_each_path_or_model_that_is_refitted(workspace, items):
    engine = repairing(workspace, [1, 2, 3], calibration=items)
    mine = engine.add(mixed(a=0.5, b=0.5)).host
    whole = [Candidate.identity("a", LAYERS), without("b", 1), without("b", 6)]
    assert repair_members(engine, whole) == 0
    assert not engine.repairs.folder.exists()
    engine = repairing(workspace, [1, 2, 3], calibration=items)
    engine.add(mixed(a=0.5, b=0.5))
    members = [
        *whole,
        without("a", 2),
        without("a", 3),
        without(mine, 4),
        Candidate("a", (("a", 0), ("b", 3), ("a", 6))),
    ]
    assert repair_members(engine, members) == (3 * 2 + 1) * engine.repairs.cost  # a cut model runs beside the uncut one
    assert engine.repairs.cost == len(items.fitted(FINAL.tokens).tasks)
    blocks = [recipe_block(workspace, engine, one) for one in members]
    assert [one and one.layers for one in blocks] == [
        *(None, None, None, (1, 2, 3, 4, 5), (2, 3, 4, 5), (3, 4, 5), (1,))
    ]
    assert {(one.rows, one.sha256, one.tokens) for one in blocks if one} == {
        (f"runs/p/{FILE}", items.fitted(FINAL.tokens).digest, FINAL.tokens)
    }


@pytest.mark.parametrize("make", [make_vit_project, make_clip_project], ids=["vit", "clip"])
def test_encoders_of_images_are_repaired_on_spare_images_and_rebuilt(make, tmp_path):
    workspace = make(tmp_path, 520)
    path = workspace.root / "profiles" / "p.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"paths": {"repair": True}}))
    workspace = open_workspace("p", workspace.root)
    zoo.run(workspace, Progress())
    engine = Engine(workspace)
    record = begin_repairs(workspace, engine, ["one", "two"], Progress())
    items = Calibration.read(workspace.run / FILE)
    assert items.total >= LEAST and record.rows == items.digest
    assert items.pixels is not None and set(items.tasks) == {"one", "two"}
    few = items.held_out().part(0, RUNGS[0]).tasks
    assert record.item_evaluations >= 2 * engine.repairs.cost + 2 * len(few) * (engine.layers - 1)
    cut = Candidate("one", (("one", 0), ("one", 1), ("two", 3)))
    engine.repairs.layers = frozenset([1])
    assert repair_members(engine, [cut]) == engine.repairs.cost
    (scored,) = engine.scored([cut], "test")
    recipe = describe(workspace, engine, Listed(cut, "path", "x"))["recipe"]
    scores = {split: scored.means() | {"layers": 0.75} for split in small_images.COUNTS}
    write_front(workspace, [member(cut, recipe, scores, {"one": 1.0}, mergekit="no")])
    shutil.rmtree(workspace.state)
    (read,) = Front.read(workspace.run).members
    write_member(workspace, read, workspace.root / "out", Progress())
    for target in ("out", f"runs/p/{recipe}"):
        assert evaluate(workspace, target, "test", workspace.root, Progress()).scores == scores["test"]
    assert Engine(workspace).scored([cut], "test")[0].items != scored.items
