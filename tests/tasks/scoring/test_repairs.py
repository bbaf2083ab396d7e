"""An engine repairs the seams of cuts and nothing else, from what it has calibrated once."""

import os
import shutil
import signal
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.repair import Seam, calibrate
from models.paths.sweep import Sweep
from models.sources.checkpoint import open_checkpoint
from tasks.objectives.calibration import calibration_of
from tasks.project.progress import Progress
from tasks.scoring.engine import Engine
from tasks.scoring.repairs import FINAL, QUICK, RUN, Repairs, Settings
from tests.small_models import write_path
from tests.small_repairs import LAYERS, make_repair_project, mixed, repairing, without

CUTS = [without("a", 2), without("a", 3), without("a", 2, 3), without("a", 2, 5), without("b", 6), without("a", 1)]
MIXED = Candidate("b", (("a", 0), ("a", 1), ("b", 3), ("b", 4), ("a", 6)))
"""Two seams before another model's layer, and a host that is another's."""


@pytest.fixture(scope="module")
def project(make_family, tmp_path_factory):
    return make_repair_project(tmp_path_factory.mktemp("project"), make_family)


@pytest.fixture(scope="module")
def items(project):
    """Calibration items."""
    return calibration_of(project, project.zoo / "base")


@pytest.fixture
def workspace(project, tmp_path):
    """With a state folder of its own."""
    return replace(project, state=tmp_path / "state")


@pytest.fixture
def engine(workspace, items):
    return repairing(workspace, calibration=items)


@pytest.fixture(scope="module")
def plain(project):
    """An engine that repairs nothing."""
    return Engine(project)


def files(engine):
    """What was calibrated: by name when it was written, and what it holds."""
    found = sorted(engine.repairs.folder.iterdir()) if engine.repairs.folder.is_dir() else []
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def contents(engine):
    return {name: held for name, (_, held) in files(engine).items()}


def down(pool, model, layer):
    return pool.block(model, layer).mlp.down_proj.weight


def refitted(engine, cut):
    """Names of the repaired models in a path, by the layer."""
    steps = zip(engine.repaired(cut).path, cut.path, strict=True)
    return {layer: now for (now, layer), (then, _) in steps if now != then}


def fold_of(engine, seam, settings=QUICK):
    """By the mathematics alone."""
    requests = engine.repairs.calibration.fitted(settings.tokens).requests(engine.pool)
    return calibrate(engine.pool, requests, [seam], settings.ridge)[seam].weight


def test_a_path_without_cuts_is_scored_under_its_key_and_calibrates_nothing(engine, plain):
    steps = [("a", 0), ("b", 1), ("a", 2), ("a", 2), ("b", 2), ("b", 1), ("a", 2), *without("b", 0, 1, 2).path]
    paths = [Candidate.identity(name, LAYERS) for name in ("base", "a", "b")]
    paths.append(Candidate("b", tuple(steps)))  # other models' layers, a repeat, a step back
    paths.append(without("a", 0, 1))  # before the first layer there is none to refit
    assert [engine.repaired(path) for path in paths] == paths
    assert engine.scored(paths, "search") == plain.scored(paths, "search")
    assert set(engine.journal.keys()) <= set(plain.journal.keys())
    assert files(engine) == {}


def test_a_cut_is_scored_under_a_key_of_its_own(engine, plain):
    ours, naive = engine.scored(CUTS, "search"), plain.scored(CUTS, "search")
    assert not set(engine.journal.keys()) & set(plain.journal.keys())
    assert len(engine.journal.keys()) == len(CUTS)
    for mended, one in zip(ours, naive, strict=True):
        assert mended.candidate == one.candidate
        assert mended.items != one.items


def test_the_key_depends_on_rows_settings_and_the_model_that_is_calibrated(engine, items):
    mine = engine.add(mixed(a=0.6, b=0.4))
    cut = Candidate(mine.host, mine.path[:2] + mine.path[3:])

    def key(rows=items, anchors=("a",), **settings):
        repairs = Repairs(
            engine.pool, engine.source, rows, engine.repairs.folder, range(6), anchors, Progress(), **settings
        )
        return engine.pool.digest(repairs.repaired(cut))

    others = [
        engine.pool.digest(cut),
        key(rows=items.part(1, len(items.tasks))),
        key(anchors=("b",)),
        key(anchors=(mine.host,)),
        key(settings=Settings(1000, QUICK.ridge)),
        key(settings=Settings(QUICK.tokens, 2 * QUICK.ridge)),
    ]
    assert len({key(), *others}) == 1 + len(others)
    assert key() == key(anchors=("a",), settings=QUICK)


def test_what_the_journal_knows_is_not_calibrated_again(engine, workspace, items):
    found = engine.scored(CUTS, "search")
    shutil.rmtree(engine.repairs.folder)
    again = repairing(workspace, calibration=items)
    assert again.scored(CUTS, "search") == found
    assert files(again) == {}
    more = again.scored([*CUTS, without("a", 4)], "search")
    assert more[:-1] == found
    assert files(again)


def test_an_anchor_has_folds_of_its_own_and_others_those_of_the_nearest(engine):
    near_a, near_b, between = (engine.add(mixed(a=a, b=b)).host for a, b in ((0.9, 0.2), (0.2, 0.9), (0.6, 0.5)))
    engine.repairs.anchors = ("a", "b", between)
    taken = {"a": "a", "b": "b", between: between, near_a: "a", near_b: "b"}
    assert {model: engine.repairs.nearest(model) for model in taken} == taken
    cuts = [without(model, 2, 3) for model in taken]
    engine.scored(cuts, "search", 0, 1)
    for cut, (model, measured) in zip(cuts, taken.items(), strict=True):
        assert refitted(engine, cut).keys() == {1}
        wanted = down(engine.pool, model, 1) + fold_of(engine, Seam(measured, 1, measured, 4))
        assert torch.equal(down(engine.pool, refitted(engine, cut)[1], 1), wanted)


def test_members_are_solved_on_their_own_activations_within_their_own_model(engine):
    mine = engine.add(mixed(a=0.6, b=0.4)).host
    engine.scored([MIXED, without(mine, 2)], "search", 0, 1)
    seams_of_anchor = sum(min(RUN, LAYERS - 1 - layer) for layer in range(LAYERS - 1))
    assert len(files(engine)) == 2 * seams_of_anchor
    engine.repairs = engine.repairs.of_members()
    engine.scored([MIXED, without(mine, 2)], "search", 0, 1)
    assert len(files(engine)) == 2 * seams_of_anchor + 2 + (LAYERS - 2)
    for model, layer in (("a", 1), ("b", 4)):
        wanted = down(engine.pool, model, layer) + fold_of(engine, Seam(model, layer, model, layer + 2), FINAL)
        assert torch.equal(down(engine.pool, refitted(engine, MIXED)[layer], layer), wanted)
    cut, requests = without(mine, 2), engine.repairs.calibration.fitted(FINAL.tokens).requests(engine.pool)
    (folds,) = Sweep(requests, FINAL.ridge, tuple(range(1, cut.depth))).run(engine.pool, [cut], lambda _: None)
    assert refitted(engine, cut).keys() == {cut.path[position][1] for position in folds} == {1, 3, 4, 5, 6}
    for position, fold in folds.items():
        layer = cut.path[position][1]
        assert torch.equal(
            down(engine.pool, refitted(engine, cut)[layer], layer), down(engine.pool, mine, layer) + fold.weight
        )


def test_long_runs_are_left_alone_in_a_search_and_repaired_in_members(engine):
    within, long = without("a", *range(1, 1 + RUN)), without("a", *range(1, 2 + RUN))
    assert refitted(engine, within).keys() == {0}
    assert engine.repaired(long) == long
    engine.repairs = engine.repairs.of_members()
    assert refitted(engine, long).keys() == {0, *(layer for _, layer in long.path)}
    assert engine.scored([long], "search")[0].failed is None


def test_seams_behind_layers_whose_repair_does_not_gain_are_left_alone(workspace, items):
    engine = repairing(workspace, [1, 5], calibration=items)
    cuts = without("a", 2, 5), without("a", 1, 4), without("a", 6)
    assert [set(refitted(engine, cut)) for cut in cuts] == [{1}, set(), {5}]
    engine.repairs = engine.repairs.of_members()
    assert [set(refitted(engine, cut)) for cut in cuts] == [{1, 3, 4, 6}, set(), {5}]


def test_a_repaired_cut_is_the_checkpoint_with_the_folded_matrix(engine, workspace, tmp_path):
    cut = without("a", 2, 3)
    sources = {name: open_checkpoint(workspace.zoo / name) for name in ("a", "b")}
    folder = write_path(sources, cut, tmp_path / "written", tokenizer_from=workspace.zoo / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] += fold_of(engine, Seam("a", 1, "a", 4))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (found,) = engine.scored([cut], "search")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for name in ("one", "two"):
        docs = engine.objectives("search").composed[name].parts[0].built.docs
        for doc, score in zip(docs, found.items[name], strict=True):
            asked, answer = (tokenizer(doc[key], return_tensors="pt").input_ids for key in ("prompt", "answer"))
            with torch.inference_mode():
                logits = model(torch.cat([asked, answer], dim=1)).logits[:, asked.shape[1] - 1 : -1]
            assert score == pytest.approx(float(logits.log_softmax(-1).gather(2, answer[..., None]).sum()), abs=1e-4)


def test_cuts_that_are_scored_together_have_the_scores_of_each_alone(engine, workspace, items, tmp_path):
    asked = [*CUTS, MIXED, without("a", 2, 3, 5), Candidate.identity("a", LAYERS)]
    together = engine.scored(asked, "search")
    alone = repairing(replace(workspace, state=tmp_path / "alone"), calibration=items)
    assert [alone.scored([one], "search")[0] for one in reversed(asked)] == together[::-1]
    assert contents(alone) == contents(engine)


@dataclass
class Deadly(Progress):
    """Dies as soon as a bar of some description has got on."""

    word: str = ""

    @contextmanager
    def bar(self, description, total=None, unit=""):
        with super().bar(description, total, unit) as bar:
            if description == self.word:
                bar.advance = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            yield bar


def test_a_killed_calibration_goes_on_with_what_is_there(workspace, items, tmp_path):
    asked = [without("a", 2), without("b", 2)]
    child = os.fork()
    if not child:
        try:
            repairing(workspace, calibration=items, progress=Deadly(word="calibrating b")).scored(asked, "search")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    engine = repairing(workspace, calibration=items)
    kept = files(engine)
    whole = repairing(replace(workspace, state=tmp_path / "whole"), calibration=items)
    wanted = whole.scored(asked, "search")
    assert 0 < len(kept) == len(files(whole)) / 2  # those of "a"
    for name in list(kept)[::3]:  # as if it had been killed while it wrote them
        (engine.repairs.folder / name).unlink()
        del kept[name]
    assert engine.scored(asked, "search") == wanted
    for model in "ab":
        engine.repairs.calibrate(model)
    found = files(engine)
    assert {name: found[name] for name in kept} == kept
    assert contents(engine) == contents(whole)


def test_a_damaged_fold_is_named(workspace, items, engine):
    engine.scored(CUTS[:1], "search", 0, 1)
    for path in engine.repairs.folder.iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    again = repairing(workspace, calibration=items)
    with pytest.raises(BadInput, match=r"repairs/p/[0-9a-f]{64}\.safetensors: .*; remove it$"):
        again.scored(CUTS[:1], "search")


def test_activations_that_are_no_numbers_are_refused_with_model_and_layer(engine):
    broken = engine.add(mixed(a=1e39)).host
    engine.repairs.anchors = (broken,)
    with pytest.raises(BadInput, match=rf"^{broken}: layer 0: its activations are not finite on the calibration"):
        engine.scored([without(broken, 2)], "search")
    assert len(engine.journal) == 0
    assert files(engine) == {}
