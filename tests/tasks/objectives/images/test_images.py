"""Objectives of images: their items, their heads, and whole pipelines of toy families."""

import base64
import hashlib
import io
import json

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, CLIPModel, ViTForImageClassification

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.pool import Pool
from models.paths.prefix import path_likelihoods
from models.paths.vision import ImageItems, image_requests
from models.sources.checkpoint import open_checkpoint
from models.sources.heads import read_head
from models.sources.lora import open_model
from tasks import dataset, pareto, sample, search, train, zoo
from tasks.doctor.doctor import examine
from tasks.front.checkpoint import write_member
from tasks.front.front import Front
from tasks.objectives.calibration import calibration_of
from tasks.objectives.images.items import open_processor, read_images, unused_images, write_images
from tasks.objectives.objectives import Objectives
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tasks.registry.publish import publish
from tasks.scoring.engine import Engine
from tasks.scoring.evaluation import evaluate
from tasks.tracking.tracker import settle_environment
from tests.small_images import CLASSES, COUNTS, LAYERS, make_clip_project, make_vit_project, pictures

MAKERS = {"vit": make_vit_project, "clip": make_clip_project}


@pytest.fixture(scope="module", params=MAKERS)
def project(request, tmp_path_factory):
    """The project of a family whose stage `zoo` has run."""
    workspace = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    zoo.run(workspace, Progress())
    return workspace


def changed(workspace, folder, **images):
    """The project seen through a profile with other images."""
    data = yaml.safe_load((workspace.root / "profiles" / "p.yaml").read_text())
    for one in data["objectives"]:
        one["images"] |= images
    (workspace.root / "profiles" / f"{folder}.yaml").write_text(yaml.safe_dump(data))
    return open_workspace(folder, workspace.root)


def test_no_image_is_in_two_splits(project):
    found = {split: Objectives(project, split, project.root / "models" / "base") for split in COUNTS}
    for name in CLASSES:
        ids = [one for objectives in found.values() for one in objectives.ids(name)]
        assert len(ids) == len(set(ids)) == sum(COUNTS.values())


def test_splits_of_a_data_set_that_has_ours_are_taken_as_they_are(project, tmp_path):
    folder = project.root / "data" / "ours" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(COUNTS):
        write_images(folder / f"{split}-00000-of-00001.parquet", pictures(9, seed), [0, 1, 2] * 3, ["a", "b", "c"])
    images = project.profile.objectives[0].images.model_copy(update={"data": "data/ours"})
    found = read_images(project, images, "selection", 9, "p")
    assert found.labels == (0, 1, 2) * 3
    assert Image.frombytes("RGB", (12, 8), pictures(9, 1)[0].tobytes()).size == (12, 8)
    assert found.classes == ("a", "b", "c")


def test_scores_are_those_of_transformers_on_an_exported_checkpoint(project, tmp_path):
    engine = Engine(project)
    scored = engine.scored([Candidate.identity(name, LAYERS) for name in ("base", *CLASSES)], "test")
    processor = open_processor(project.root / "models" / "base")
    whole = not (project.root / "models" / "one" / "preprocessor_config.json").is_file()
    for name, one in zip(("base", *CLASSES), scored, strict=True):
        folder = project.root / "models" / name
        for task, classes in CLASSES.items():
            objective = next(each for each in project.profile.objectives if each.name == task)
            items = read_images(project, objective.images, "test", COUNTS["test"], "p")
            pixels = items.pixels(processor, "p")
            with torch.inference_mode():
                logits = (
                    clip_logits(project, folder, classes, pixels)
                    if whole
                    else vit_logits(project, folder, task, pixels)
                )
            expected = logits.log_softmax(-1).gather(1, torch.tensor(items.labels)[:, None])[:, 0]
            assert one.items[task] == pytest.approx(expected.tolist(), abs=1e-4)


def vit_logits(project, folder, task, pixels):
    encoder = ViTForImageClassification.from_pretrained(folder).eval()
    encoder.classifier = ViTForImageClassification.from_pretrained(project.root / "models" / task).classifier
    return encoder(pixels).logits


def clip_logits(project, folder, classes, pixels):
    from transformers import AutoTokenizer, CLIPVisionModel

    base = project.root / "models" / "base"
    model = CLIPModel.from_pretrained(base).eval()
    if folder != base:
        model.vision_model.load_state_dict(CLIPVisionModel.from_pretrained(folder).state_dict())
    texts = AutoTokenizer.from_pretrained(base)([f"w3 {one.replace('_', ' ')}" for one in classes], padding=True)
    inputs = {key: torch.tensor(texts[key]) for key in ("input_ids", "attention_mask")}
    return model(pixel_values=pixels, **inputs).logits_per_image


def test_images_of_all_objectives_are_scored_in_one_pass(project):
    objectives = Engine(project).objectives("search")
    assert len(objectives.kinds) == 1
    assert [part.name for part in objectives.kinds[0].parts] == list(CLASSES)


def test_the_journal_forgets_scores_when_a_head_changes(tmp_path):
    workspace = make_vit_project(tmp_path)
    zoo.run(workspace, Progress())
    before = Engine(workspace).objectives("search").definition
    path = tmp_path / "models" / "one" / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.bias"] += 1
    save_file(tensors, path, {"format": "pt"})
    assert Engine(workspace).objectives("search").definition != before


def test_heads_of_texts_are_made_once(tmp_path):
    workspace = make_clip_project(tmp_path)
    unmade = Objectives(workspace, "test", tmp_path / "models" / "base")  # doctor scores before stage zoo has run
    zoo.run(workspace, Progress())
    heads = (workspace.items / "heads.safetensors").read_bytes()
    made = Objectives(workspace, "test", tmp_path / "models" / "base")
    assert made.definition == unmade.definition
    zoo.run(workspace, Progress())
    assert (workspace.items / "heads.safetensors").read_bytes() == heads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "data/none"}, "data/none: no such folder; name one, or hub:ORG/NAME@REVISION"),
        ({"image": "picture"}, "has no column 'picture'; there are image, label"),
        ({"classes": ["a"]}, "there are 1 classes; mend images.classes"),
        ({"head": "data/none.safetensors"}, "none.safetensors: not readable"),
    ],
)
def test_bad_images_are_refused_in_one_line(project, change, message):
    with pytest.raises(BadInput) as error:
        Objectives(changed(project, "q", **change), "test", project.root / "models" / "base")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_too_many_items_are_refused(project):
    images = project.profile.objectives[0].images
    with pytest.raises(BadInput, match=r"items\.test: 80, but data/one has \d+ there; ask for fewer"):
        read_images(project, images, "test", 80, "p")


def test_an_objective_of_images_takes_no_settings_of_tasks(project):
    data = yaml.safe_load((project.root / "profiles" / "p.yaml").read_text())
    data["objectives"][0]["shots"] = 2
    (project.root / "profiles" / "r.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(BadInput, match="shots: is for lm-eval's tasks; images don't have it"):
        open_workspace("r", project.root)


def test_doctor_looks_at_images_and_heads(project):
    diagnosis = examine(project, {})
    bad = [f"{one.what}: {one.text}" for one in diagnosis.checks if one.status == "bad"]
    assert not bad
    texts = [one.text for one in diagnosis.checks]
    assert any("search: one 14, two 14 items" in one for one in texts)
    assert diagnosis.plan.seconds


@pytest.fixture(scope="module")
def finished(project):
    """The project after all its stages."""
    for stage in (sample, dataset, train, search, pareto):
        stage.run(project, Progress())
    return project


def test_a_pipeline_of_a_toy_family_finds_a_front(finished):
    front = json.loads((finished.run / "front.json").read_text())
    assert front["objectives"] == ["one", "two", "layers"]
    assert front["members"]
    engine = Engine(finished)
    for reference in front["references"]:
        if reference["name"] in CLASSES:
            (scored,) = engine.scored([Candidate.identity(reference["name"], LAYERS)], "test")
            assert scored.means() == pytest.approx({name: reference["scores"]["test"][name] for name in CLASSES})


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """A member of the front as a checkpoint; of its path no layer is left out."""
    member = Front.read(finished.run).members[0]
    out = tmp_path_factory.mktemp("exported") / "member"
    write_member(finished, member, out, Progress())
    return member, out


def test_an_exported_member_holds_every_head_and_scores_as_recorded(finished, exported):
    member, out = exported
    found = evaluate(finished, str(out), "test", finished.root, Progress())
    assert found.scores == pytest.approx(member.scores["test"], abs=1e-4)
    assert json.loads((out / "heads.json").read_text()) == {name: list(one) for name, one in CLASSES.items()}
    assert AutoImageProcessor.from_pretrained(out, backend="pil").size
    assert "| two | 5 | w9, w10, w11, w12, … |" in (out / "README.md").read_text()
    heads = load_file(out / "heads.safetensors")
    config = json.loads((out / "config.json").read_text())
    if config["architectures"] == ["ViTForImageClassification"]:  # its classifier is all heads, one behind the other
        model = ViTForImageClassification.from_pretrained(out)
        rows = [f"{name}/{one}" for name, classes in CLASSES.items() for one in classes]
        assert [model.config.id2label[row] for row in range(8)] == rows
        assert torch.equal(model.classifier.weight[3:].detach(), heads["two.weight"])
    else:
        assert heads["one.weight"].norm(dim=-1).tolist() == pytest.approx([1, 1, 1])


def test_a_registered_member_answers_images_with_a_class_for_each_task(finished, exported, tmp_path, monkeypatch):
    member, out = exported
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HM3_STATE", str(tmp_path / "state"))
    settle_environment()
    published = publish(finished)
    assert published.versions[member.id]
    import mlflow

    served = mlflow.pyfunc.load_model(f"models:/{published.name}/{published.versions[member.id]}")
    images = pictures(6, 17)
    files = []
    for one in images:
        file = io.BytesIO()
        one.save(file, format="PNG")
        files.append(base64.b64encode(file.getvalue()).decode())
    answers = served.predict({"image": files})
    assert list(answers.columns) == list(CLASSES)
    processor, heads = open_processor(out), load_file(out / "heads.safetensors")
    pixels = torch.cat([processor(one, return_tensors="pt").pixel_values for one in images])
    source = open_checkpoint(out)
    pool = Pool(source.config)
    pool.add("m", source)
    for task, classes in CLASSES.items():
        head = read_head(out / "heads.safetensors", task, len(classes), "p")
        guesses = torch.tensor([classes.index(one) for one in answers[task]])
        ((_, right),) = path_likelihoods(
            pool, [Candidate.identity("m", pool.layers)], image_requests(pool, [ImageItems(pixels, guesses, head)])
        )
        assert right.all()
    assert len(heads) >= 4
    numbers = served.predict({"image": [[[[0, 9, 9]] * 8] * 8]}, params={"task": "two", "scores": True})
    assert sum(numbers["two"][0].values()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(Exception, match="task 'three': unknown; there are one, two"):
        served.predict({"image": files}, params={"task": "three"})
    with pytest.raises(Exception, match="neither a file in base64 nor rows of numbers"):
        served.predict({"image": ["no image"]})


def test_images_for_calibration_are_items_of_no_split(project):
    base = project.root / "models" / "base"
    calibration = calibration_of(project, base, 600)
    assert set(calibration.per_task) == set(CLASSES) and calibration.image_tokens == 5
    assert calibration.pixels.dtype == torch.float16 and len(calibration.pixels) == len(calibration.tasks)
    processor = open_processor(base)
    for objective in project.profile.objectives:
        items = read_images(project, objective.images, "test", COUNTS["test"], "p")
        every = items.pixels(processor, "p").half()
        assert not any(bool((one == other).all()) for one in every for other in calibration.pixels)
    assert calibration.digest == calibration_of(project, base, 600).digest
    few = calibration.first(21)
    assert few.total == 25 and abs(few.per_task["one"] - few.per_task["two"]) == 5
    pool = Pool(open_model(str(base), lambda name: base).config)
    requests = calibration.requests(pool)
    assert torch.cat([batch.inputs for batch in requests.batches]).shape == calibration.pixels.shape
    seen = [batch.real(torch.zeros(len(batch.rows), calibration.image_tokens, 1)) for batch in requests.batches]
    assert sum(int(one.sum()) for one in seen) == calibration.total


def test_images_for_training_come_first(project):
    folder = project.root / "data" / "trained" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    items, others = pictures(90, 7), pictures(30, 8)
    for split, some in (("train", others + items), ("test", items)):
        write_images(folder / f"{split}-00000-of-00001.parquet", some, [0] * len(some), ["a", "b"])
    workspace = changed(project, "trained", data="data/trained")
    images = workspace.profile.objectives[0].images
    used = {one for split, count in COUNTS.items() for one in read_images(workspace, images, split, count, "p").ids}
    free = {digest_of(one) for one in others + items} - used
    assert unused_images(workspace, images, used, 20, "p").ids == tuple(sorted(free)[:20])
    assert set(unused_images(workspace, images, used, 999, "p").ids) == free and len(used) == sum(COUNTS.values())


def digest_of(picture):
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return hashlib.sha256(file.getvalue()).hexdigest()


def test_no_image_is_left_for_calibration(project):
    folder = project.root / "data" / "none" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(COUNTS.items()):
        name = f"{split}-00000-of-00001.parquet"
        write_images(folder / name, pictures(count, seed), [0] * count, ["w5", "w6_w7", "w8"])
    workspace = changed(project, "none", data="data/none", classes=list(CLASSES["one"]))
    with pytest.raises(BadInput, match=r"objectives\.one: no image is left for calibration"):
        calibration_of(workspace, project.root / "models" / "base")
