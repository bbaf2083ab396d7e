"""`hm3 bench repair`: its own ways to repair agree with the engine's, its numbers with plain sums, and it resumes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from models.errors import BadInput
from models.paths.prefix import path_likelihoods
from models.paths.repair import calibrate
from tasks import zoo
from tasks.bench.repair import studies
from tasks.bench.repair.arms import (
    by_cosine,
    by_squares,
    collect,
    cut_path,
    forget,
    growing,
    repaired,
    replace_me,
    runs,
    seams,
)
from tasks.bench.repair.distil import distilled
from tasks.bench.repair.families import FAMILIES, Kind, open_family
from tasks.bench.repair.foreign import changes, paths
from tasks.bench.repair.ground import MERGE, Ground
from tasks.bench.repair.halves import Half, foreseen, left_out, repairs_of, saved, without
from tasks.bench.repair.measure import Lab, greedy, spelled
from tasks.bench.repair.page import known, write_repair
from tasks.bench.repair.rows import Book
from tasks.bench.repair.run import STUDIES, measure
from tasks.bench.repair.summary import correlation, rise, verdicts
from tasks.bench.repair.sweep import in_turn, with_attention
from tasks.bench.setup import describe_setup
from tasks.objectives.calibration import calibration_of
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tests.flows.project import hm3
from tests.small_images import make_vit_project
from tests.small_tasks import COUNTS, answered, make_family_project, prompts, write_items, write_task

pytestmark = pytest.mark.lab

KIND = Kind("p", COUNTS, "token")
ALL = 10_000
"""More tokens than there are."""
ROWS = 12
"""Of a task for training."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory, make_family):
    """A random family of six layers with the few items of small_tasks, and rows for training."""
    root = tmp_path_factory.mktemp("repair") / "project"
    make_family_project(root, lambda folder, **options: make_family(folder, layers=6, **options))
    for seed, (name, model) in enumerate((("one", "a"), ("two", "b"))):
        files = {split: f"runs/p/tasks/{name}.{split}.jsonl" for split in ("train", *COUNTS)}
        write_items(root / files["train"], answered(root / "runs/p/zoo" / model, prompts(ROWS, 100 + seed)))
        write_task(root, name, training_split="train", dataset_kwargs={"data_files": files})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HM3_STATE", raising=False)
        return Ground("small", KIND, open_workspace("p", root))


@pytest.fixture
def lab(ground, tmp_path):
    told = []
    lab = Lab(ground, Book(tmp_path / "raw", describe_setup(tmp_path, 0)), told.append)
    lab.measure_uncut()
    yield lab
    forget(ground)


def loss(ground, *candidates):
    return np.array([one.loss for one in ground.score(candidates, ground.test)])


def off(ground, *candidates):
    """How far candidates are from the uncut merge on the texts that they were calibrated on."""
    paths = [cut_path(ground, ()), *candidates]
    base, *found = [one for one, _ in path_likelihoods(ground.pool, paths, ground.texts(ALL))]
    return [float((one - base).abs().mean()) for one in found]


def test_the_loss_is_what_a_token_of_the_answer_takes(ground):
    found = ground.score([cut_path(ground, ())], ground.test)[0]
    assert ground.test.tasks == ("one",) * 12 + ("two",) * 12
    (engine,) = ground.engine.scored([cut_path(ground, ())], "test")
    assert found.right.tolist() == [*engine.items["one"], *engine.items["two"]]
    part = ground.engine.objectives("test").composed["one"].parts[0]
    context, continuation = part.tokens[0][0][0]
    ids = torch.tensor([[*context, *continuation]])
    model = without(ground, [], [])
    with torch.inference_mode():
        scores = model(ids).logits[0].log_softmax(dim=-1)
    picked = scores[range(len(context) - 1, ids.shape[1] - 1), ids[0, len(context) :]]
    assert found.loss[0] == pytest.approx(-float(picked.mean()), rel=1e-5)


def test_refitting_in_turn_is_ours_where_nothing_was_repaired_before(ground):
    texts = ground.texts(ALL)
    ours = repaired(ground, cut_path(ground, (3,)), calibrate(ground.pool, texts, seams(ground, [(3,)]), 0.01))
    turn = in_turn(ground, cut_path(ground, (3,)), texts, 0.01)
    naive, one, other = loss(ground, cut_path(ground, (3,)), ours, turn)
    assert np.abs(one - other).max() < 1e-4 < np.abs(one - naive).max()


def test_what_grows_ends_where_one_calibration_does(ground):
    texts, wanted = ground.texts(ALL), seams(ground, [(2, 4)])
    whole = calibrate(ground.pool, texts, wanted, 0.01)
    grown = growing(ground, (2, 4), (60, ALL), (0.01, 1.0))
    for seam in wanted:
        assert torch.allclose(grown[ALL, 0.01][seam].weight, whole[seam].weight, rtol=1e-3, atol=1e-5)
        assert grown[ALL, 1.0][seam].weight.norm() < whole[seam].weight.norm()


def test_seams_without_a_fold_are_left_alone(ground):
    assert repaired(ground, cut_path(ground, (2,)), {}) == cut_path(ground, (2,))
    assert {seam.next - seam.layer for seam in runs(6, 2)} == {2, 3}


def test_the_square_matrix_is_that_of_least_squares(ground):
    generator = torch.Generator().manual_seed(0)
    inner, beside, target = (torch.randn(50, 6, generator=generator) for _ in range(3))
    expected = np.linalg.lstsq(inner.numpy(), (target - beside).numpy(), rcond=None)[0]
    assert np.abs(by_squares(inner, beside, target).numpy() - expected).max() < 1e-5
    turned = by_cosine(inner, beside, target, epochs=200, rate=0.01)
    near, far = (
        float(torch.cosine_similarity(inner @ one + beside, target, dim=1).mean()) for one in (turned, torch.eye(6))
    )
    assert near > far
    seen = collect(ground, ground.texts(ALL), {1}, {2, 3})
    squares, cosine = (replace_me(ground, [(2,)], ground.texts(ALL), cosine=one)[0] for one in (False, True))
    weight = ground.source.tensor("model.layers.1.mlp.down_proj.weight")
    model, layer = squares.path[1]
    mlp = seen["inner 1"] @ weight.T
    turn = by_squares(mlp, seen["stream 2"] - mlp, seen["stream 3"])
    assert torch.allclose(ground.pool.block(model, layer).mlp.down_proj.weight, turn.T @ weight, atol=1e-5)
    assert cosine != squares


@pytest.mark.parametrize("refit", [in_turn, with_attention])
def test_refitting_every_later_layer_comes_closer_to_the_uncut_stream(ground, refit):
    texts = ground.texts(ALL)
    naive, swept = cut_path(ground, (2,)), refit(ground, cut_path(ground, (2,)), texts, 0.001, every=True)
    assert sum(model != MERGE for model, _ in swept.path) == 4
    left, better = off(ground, naive, swept)
    assert better < left


def test_a_half_left_out_is_one_that_is_not_computed(ground):
    halves = [Half("attention", 2), Half("mlp", 4)]
    ids = torch.randint(3, 41, (2, 7), generator=torch.Generator().manual_seed(0))
    path = left_out(ground, halves)
    zeroed = ground.pool.with_blocks(MERGE, [ground.pool.block(*step) for step in path.path])
    with torch.inference_mode():
        assert torch.allclose(zeroed(ids).logits, without(ground, [], halves)(ids).logits, atol=1e-5)
    both = left_out(ground, [Half("attention", 3), Half("mlp", 3)])
    whole, layer = loss(ground, both, cut_path(ground, (3,)))
    assert np.abs(whole - layer).max() < 1e-5
    repairs = repairs_of(ground, ALL, 0.001)
    assert set(repairs) == {Half("mlp", one) for one in range(6)} | {Half("attention", one) for one in range(1, 6)}
    left, ours = off(ground, path, left_out(ground, halves, repairs))
    assert ours < left


def test_a_half_that_follows_from_what_is_seen_before_it_is_foreseen_wholly():
    generator = torch.Generator().manual_seed(0)
    inner, matrix = torch.randn(80, 5, generator=generator), torch.randn(3, 5, generator=generator)
    found = foreseen(inner, inner @ matrix.T, torch.ones(80), 1e-9)
    assert torch.allclose(found.added, matrix, atol=1e-4)
    assert found.left < 1e-8 < foreseen(inner, torch.ones(80, 3), torch.ones(80), 1e-9).left


def test_what_is_left_out_is_kept_in_no_cache(ground):
    _, whole = saved(without(ground, [], []), 2, 8, 2)
    _, layer = saved(without(ground, [3], []), 2, 8, 2)
    _, attention = saved(without(ground, [], [Half("attention", 0), Half("mlp", 5)]), 2, 8, 2)
    assert layer == attention == pytest.approx(whole * 5 / 6)


def test_distillation_comes_closer_to_the_uncut_merge(ground, monkeypatch):
    monkeypatch.setattr("tasks.bench.repair.distil.STEPS", 30)
    monkeypatch.setattr("tasks.bench.repair.distil.RATE", 3e-3)
    texts = ground.texts(ALL, batch=64)
    ours = repaired(ground, cut_path(ground, (3,)), calibrate(ground.pool, texts, seams(ground, [(3,)]), 1.0))
    before, after = off(ground, ours, distilled(ground, ours, texts))
    assert after < before


def test_paths_change_over_where_they_say(ground):
    named = dict(zip(changes(ground), paths(ground, changes(ground)), strict=True))
    assert named["merge 3 a"].path[3:5] == ((MERGE, 3), ("a", 4))
    assert [layer for _, layer in named["repeat 3"].path] == [0, 1, 2, 3, 3, 4, 5]
    assert [layer for _, layer in named["back 3"].path] == [0, 1, 2, 3, 2, 3, 4, 5]


def test_texts_are_of_all_tasks_alike_and_skip_what_others_had(ground):
    first, both = ground.texts(60), ground.texts(ALL)
    assert first.count < both.count == len(ground.calibration.tasks)
    rest = ground.texts(ALL, skip=30)
    assert rest.count + first.count == both.count
    assert ground.texts(ALL, ["one"]).count == ground.calibration.tasks.count("one") >= ROWS
    assert all(len(batch.target) == len(batch.rows) for batch in ground.texts(ALL, answers=False).batches)


def test_greedy_deletion_takes_the_layer_that_costs_the_worst_task_least(lab):
    cuts = greedy(lab, "naive", lab.naive, 2)
    singles = [lab.rise(lab.case("choice", "naive", str(layer), "search")).max() for layer in range(6)]
    assert cuts[0] == (int(np.argmin(singles)),)
    assert set(cuts[0]) < set(cuts[1])


def test_what_is_measured_is_not_measured_again(lab):
    lab.measure_cuts("depth", "naive", [(2,), (3, 4)], lab.naive)
    again = Lab(lab.ground, Book(lab.book.folder, lab.book.setup), pytest.fail)
    again.measure_cuts("depth", "naive", [(3, 4)], pytest.fail)
    case = lab.case("depth", "naive", spelled((3, 4)))
    assert np.abs(again.book.losses(case).loss - loss(lab.ground, cut_path(lab.ground, (3, 4)))[0]).max() < 1e-5
    row = again.book.rows.set_index("id").loc[case.id]
    assert (row["what"], row["out"], row["family"]) == ("3 4", 2, "small")


def test_a_rise_is_of_the_worst_task_and_its_interval_of_the_items():
    tasks = np.array(["a"] * 40 + ["b"] * 40)
    uncut = np.random.default_rng(0).uniform(1, 2, 80)
    cut = uncut * np.where(tasks == "a", 1.1, 1.3)
    found = rise(cut, uncut, tasks, np.ones(80))
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3, 0.3))
    assert found.by_task == pytest.approx({"a": 0.1, "b": 0.3})
    noisy = rise(cut + np.random.default_rng(1).normal(0, 0.1, 80), uncut, tasks, np.ones(80))
    assert noisy.low < noisy.value < noisy.high


def test_every_study_has_its_table(lab, monkeypatch):
    for name, value in {"SIZES": (60, 120), "REPETITIONS": 1, "SAVED": (1,), "TOKENS": 100}.items():
        monkeypatch.setattr(studies, name, value)
    monkeypatch.setattr("tasks.bench.repair.distil.STEPS", 2)
    pages = lab.book.folder / "pages"
    pages.mkdir(parents=True)
    (pages / "a.md").write_text(" ".join(f"w{one % 30 + 3}" for one in range(300)))
    monkeypatch.setattr(studies, "PAGES", pages)
    for study in STUDIES.values():
        study(lab)
    results = lab.book.folder.parent
    page = write_repair(results)
    (measured,) = known(results)
    assert correlation(measured)[1] == 5
    assert [line[0] for line in verdicts(measured)] == ["1", "2", "4"]
    text = page.read_text()
    titles = ("Layers left out", "What it costs", "What it is calibrated on", "Further moves", "Foreign seams")
    for title in (*titles, "Attention or MLP alone", "What it saves"):
        assert f"### {title}" in text
    assert (results / "repair.png").is_file()
    count = len(lab.book.rows)
    again = Lab(lab.ground, Book(lab.book.folder, lab.book.setup), lab.tell)
    for study in STUDIES.values():
        study(again)
    assert len(again.book.rows) == count


def test_models_are_calibrated_on_the_texts_that_a_run_takes(ground):
    assert ground.calibration.digest == calibration_of(ground.workspace, ground.engine.tokenizer).digest
    seen = [tuple(context) + tuple(answer) for pairs in ground.pairs.values() for context, answer in pairs]
    assert sorted(seen) == sorted(ground.calibration.tokens)


def test_encoders_are_calibrated_on_the_images_that_a_run_takes(tmp_path, monkeypatch):
    monkeypatch.delenv("HM3_STATE", raising=False)
    workspace = make_vit_project(tmp_path / "project")
    zoo.run(workspace, Progress())
    ground = Ground("vit", Kind("p", {}, "image"), workspace)
    (found,) = ground.score([cut_path(ground, ())], ground.test)
    (engine,) = ground.engine.scored([cut_path(ground, ())], "test")
    assert (-found.loss).tolist() == pytest.approx([*engine.items["one"], *engine.items["two"]], abs=1e-6)
    assert ground.calibration.digest == calibration_of(workspace, workspace.root / "models" / "base").digest
    assert ground.texts(21).count == 5 < ground.texts(ALL).count == len(ground.calibration.tasks)
    lab = Lab(ground, Book(tmp_path / "raw", describe_setup(tmp_path, 0)), lambda _: None)
    for study in STUDIES.values():
        study(lab)
    assert set(lab.book.rows["study"]) == {"uncut", "choice", "depth", "cost", "moves", "foreign"}
    assert {"naive", "ours", "ours, solved again", "every later layer, solved again"} <= set(lab.book.rows["arm"])
    assert "### Layers left out" in write_repair(tmp_path).read_text()


def test_what_is_not_there_is_named(tmp_path, make_family):
    root = tmp_path / "project"
    user = make_family_project(root, make_family)
    with pytest.raises(BadInput, match=r"profiles/tiny\.yaml: no such file"):
        open_family(user, tmp_path / "bench", FAMILIES["tiny-20"], Progress())
    for bad in ({"families": ["x"]}, {"studies": ["x"]}):
        asked = {"families": [], "studies": [], "small": False, "progress": Progress()} | bad
        with pytest.raises(BadInput, match="x: unknown; there are"):
            measure(user, tmp_path, **asked)


def test_the_command_names_what_there_is(tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["bench", "repair", "--help"])
    assert done.exit_code == 0
    for name in (*FAMILIES, *STUDIES):
        assert name in done.output


@pytest.mark.slow  # trains a family
def test_the_command_measures_a_small_family_that_it_makes(tmp_path, monkeypatch):
    monkeypatch.delenv("HM3_STATE", raising=False)
    project = Path(__file__).parents[4]
    shutil.copy(project / "params.yaml", tmp_path)
    shutil.copytree(project / "profiles", tmp_path / "profiles")
    command = ("bench", "repair", "--small", "--study", "depth", "--study", "foreign", "--json")
    done = hm3(tmp_path, *command, timeout=600, cold=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    titles = [sheet["title"] for sheet in found["families"]["small"]]
    assert {"Layers left out", "Foreign seams"} <= set(titles)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hm3", "params.yaml", "profiles"]
