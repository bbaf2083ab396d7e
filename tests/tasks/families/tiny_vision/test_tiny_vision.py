"""The family `tiny-vision`: its pictures, a micro family as it is made, and the profiles of image families."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, ViTForImageClassification

from models.candidate import Candidate
from models.errors import BadInput
from tasks import zoo
from tasks.families.tiny_vision.make import divide, tensors
from tasks.families.tiny_vision.pictures import SIZE, TASKS
from tasks.families.tiny_vision.train import Job, accuracies, pixels, rows_of, train
from tasks.objectives.calibration import calibration_of
from tasks.objectives.images.items import open_processor, read_images
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tasks.schema.profile import Items
from tasks.scoring.engine import Engine
from tests.warm import warmed

ROOT = Path(__file__).parents[4]
ITEMS = {"search": 6, "selection": 24, "test": 8}
MICRO = {"layers": 2, "width": 32, "feed_forward": 48, "heads": 2, "base_steps": 6, "expert_steps": 10}
MICRO |= {"min_own": 0, "max_foreign": 1, "min_range": 0, "min_distance": 0.001, "max_distance": 9}


def make_workspace(root, **params):
    """A project with the shipped profile and a micro family's parameters."""
    shutil.copytree(ROOT / "profiles", root / "profiles")
    path = root / "profiles" / "tiny-vision.yaml"
    data = yaml.safe_load(path.read_text())
    for objective in data["objectives"]:
        objective["items"] = ITEMS
    data["params"]["zoo"] = {**MICRO, **params}
    path.write_text(yaml.safe_dump(data))
    (root / "params.yaml").write_text(yaml.safe_dump({"profiles": ["tiny-vision"], "seed": 3}))
    return open_workspace("tiny-vision", root)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("zoo"))
    with warmed():
        zoo.run(workspace, Progress())
    return workspace


@pytest.fixture(scope="module")
def pictures():
    return {task: read() for task, read in TASKS.items()}


def test_pictures_are_small_and_many_enough(pictures):
    for task, own in pictures.items():
        assert own.images.shape == (len(own.labels), SIZE, SIZE)
        assert own.images.dtype == np.uint8
        assert len(own.labels) >= 1500
        assert set(own.labels.tolist()) == set(range(len(own.classes))), task
    assert len(pictures["digits"].labels) == 1797
    assert pictures["letters"].classes[0] == "A"


def test_pictures_that_show_much_the_same_stay_together():
    wanted = dict.fromkeys(TASKS, Items(search=128, selection=128, test=256))
    for own in divide(wanted, seed=0).values():
        parts = [set(own.pictures.groups[indices]) for indices in (own.training, *own.items.values())]
        assert sum(map(len, parts)) == len(set().union(*parts))
        assert [len(one) for one in own.items.values()] == [128, 128, 256]
        assert len(own.training) > 1000


def test_splits_have_the_classes_in_proportion():
    wanted = dict.fromkeys(TASKS, Items(search=224, selection=224, test=448))
    for task, own in divide(wanted, seed=1).items():
        whole = np.bincount(own.pictures.labels) / len(own.pictures.labels)
        for split, indices in own.items.items():
            shares = np.bincount(own.pictures.labels[indices], minlength=len(whole)) / len(indices)
            group = len(own.pictures.groups) / len(np.unique(own.pictures.groups))
            assert np.abs(shares - whole).max() <= 2 * group / len(indices) + 1e-9, (task, split)


def test_too_many_items_are_refused():
    with pytest.raises(BadInput, match="items of digits: the made family has too few pictures; ask for fewer"):
        divide(dict.fromkeys(TASKS, Items(search=500, selection=500, test=500)), seed=0)


def test_the_family_loads_with_transformers_alone_and_shares_one_classifier(made):
    base = load_file(made.zoo / "base" / "model.safetensors")
    for name in ("base", *TASKS):
        model = ViTForImageClassification.from_pretrained(made.zoo / name)
        assert AutoImageProcessor.from_pretrained(made.zoo / name, backend="pil").size["height"] == SIZE
        assert model.config.num_labels == 10 + 26 + 8
        assert model.config.id2label[0] == "digits/0"
        assert torch.equal(model.classifier.weight.detach(), base["classifier.weight"])
        assert name == "base" or not torch.equal(model.vit.layernorm.weight.detach(), base["vit.layernorm.weight"])


def test_the_gates_saw_what_the_engine_scores(made):
    engine = Engine(made)
    gates = json.loads((made.zoo / "family.json").read_text())["gates"]
    for scored in engine.scored([Candidate.identity(name, 2) for name in ("base", *TASKS)], "selection"):
        assert scored.means() == pytest.approx(gates["scores"][scored.candidate.host])


def test_training_pictures_are_there_for_calibration(made):
    calibration = calibration_of(made, made.zoo / "base", 1700)
    assert calibration.image_tokens == 17 and set(calibration.per_task) == set(TASKS)
    assert 1700 <= calibration.total < 1700 + 17 and calibration.pixels.shape[2:] == (SIZE, SIZE)


def test_training_sees_images_as_the_processor_gives_them(made):
    images = next(one.images for one in made.profile.objectives if one.name == "photos")
    found = read_images(made, images, "search", 6, "p")
    processed = found.pixels(open_processor(made.zoo / "base"), "p")
    grey = torch.round((processed[:, 0] + 1) * 127.5).to(torch.uint8)
    assert (pixels(grey) - processed).abs().max() <= 1e-6


def test_training_gives_the_same_bytes_for_the_same_job(made, tmp_path, capsys):
    divided = divide(dict.fromkeys(TASKS, Items(**ITEMS)), seed=3)
    save_file(tensors(divided), tmp_path / "data.safetensors")
    classes = {task: list(own.pictures.classes) for task, own in divided.items()}
    params = made.params.zoo.model_dump()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a process of its own
    for number in range(2):
        out = str(tmp_path / str(number))
        train(Job(out, None, None, 3, MICRO["base_steps"], params, str(tmp_path / "data.safetensors"), classes))
    torch.set_num_threads(threads)
    weights = [(tmp_path / str(number) / "model.safetensors").read_bytes() for number in range(2)]
    assert weights[0] == weights[1] == (made.zoo / "base" / "model.safetensors").read_bytes()


def test_accuracy_is_counted_among_the_task_s_own_classes(made):
    model = ViTForImageClassification.from_pretrained(made.zoo / "base").eval()
    data = {"digits.held_out.images": torch.zeros(4, SIZE, SIZE), "digits.held_out.labels": torch.tensor([0, 1, 2, 3])}
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.arange(44) == 20)  # a letter is the likeliest of all, digit 0 of the digits
    rows = rows_of({"digits": list("0123456789")})
    assert accuracies(model, data, rows) == {"digits": 0.25}


@pytest.mark.parametrize("name", ["clip-vit-b32", "clip-vit-l14", "tiny-vision"])
def test_shipped_profiles_name_an_expert_for_each_objective(name):
    profile = open_workspace(name, ROOT).profile
    assert [one.name for one in profile.objectives] == list(profile.experts)
    assert all("{}" in template for one in profile.objectives for template in one.images.templates)
