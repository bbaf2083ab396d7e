"""Images pass through the trie as tokens do, and score as transformers' own models score them."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, ViTForImageClassification

from models.candidate import Candidate
from models.errors import BadInput
from models.merge.path_recipe import path_recipe
from models.merge.recipe import Recipe
from models.merge.source import MergedSource
from models.merge.write import merge_to_disk
from models.paths.pool import Pool
from models.paths.prefix import path_likelihoods
from models.paths.vision import ImageItems, image_requests
from models.sources.checkpoint import open_checkpoint
from models.sources.heads import Head, heads_bytes, own_head, read_head, share_heads

LAYERS = 4
IMAGE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
IMAGE |= {"image_size": 8, "patch_size": 4}
PATHS = [
    Candidate("b", (("a", 0), ("b", 3), ("b", 1), ("b", 1), ("a", 3))),
    Candidate("b", (("a", 0), ("b", 3), ("a", 2))),
    Candidate.identity("a", LAYERS),
    Candidate("a", (("a", 0), ("a", 1), ("b", 2))),
]


def shaken(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 + (parameter.dim() == 1) * 0.5)
    return model.eval()


def write_vit(folder, seed, labels):
    config = transformers.ViTConfig(**IMAGE, id2label=dict(enumerate(labels)))
    shaken(ViTForImageClassification(config), seed).save_pretrained(folder)
    return folder


def write_clip(folder, seed, kind=CLIPModel):
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": 30, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config=IMAGE | {"projection_dim": 16}, projection_dim=16)
    shaken(kind(config if kind is CLIPModel else config.vision_config), seed).save_pretrained(folder)
    return folder


def pool_of(folders, **options):
    sources = share_heads({name: open_checkpoint(folder) for name, folder in folders.items()})
    pool = Pool(next(iter(sources.values())).config, **options)
    for name, source in sources.items():
        pool.add(name, source)
    return pool


def random_items(count, head, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, len(head.weight), (count,), generator=generator)
    return ImageItems(torch.randn(count, 3, 8, 8, generator=generator), labels, head)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """Two classifiers with heads of their own: three classes, and five."""
    root = tmp_path_factory.mktemp("vit")
    folders = {"a": write_vit(root / "a", 0, ["x", "y", "z"]), "b": write_vit(root / "b", 1, list("stuvw"))}
    heads = [
        own_head(open_checkpoint(folders["a"]), "one", ("x", "y", "z"), "a"),
        own_head(open_checkpoint(folders["b"]), "two", tuple("stuvw"), "b"),
    ]
    return folders, [random_items(37, heads[0], 5), random_items(30, heads[1], 6)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A whole CLIP model as base, and a vision tower of its own without projection as expert."""
    root = tmp_path_factory.mktemp("clip")
    folders = {"a": write_clip(root / "a", 0), "b": write_clip(root / "b", 1, CLIPVisionModel)}
    generator = torch.Generator().manual_seed(3)
    heads = [Head(torch.randn(classes, 16, generator=generator), None, 9.0) for classes in (4, 6)]
    return folders, [random_items(33, head, seed) for seed, head in enumerate(heads)]


@pytest.fixture(params=["vit", "clip"])
def family(request):
    return request.getfixturevalue(request.param)


def test_sharing_prefixes_changes_no_score(family):
    folders, tasks = family
    pool = pool_of(folders)
    requests = image_requests(pool, tasks)
    alone = [path_likelihoods(pool, [one], requests)[0] for one in PATHS]
    for held in (2**30, 1):  # all states kept, or none but the last
        together = path_likelihoods(pool, PATHS, requests, hidden_bytes=held)
        for (ours, right), (theirs, also) in zip(together, alone, strict=True):
            assert torch.equal(ours, theirs)
            assert torch.equal(right, also)


def test_a_shared_layer_runs_once_a_batch(vit, monkeypatch):
    folders, tasks = vit
    pool = pool_of(folders)
    requests = image_requests(pool, tasks)
    seen = []
    monkeypatch.setattr(pool, "block", lambda *step, block=pool.block: seen.append(step) or block(*step))
    path_likelihoods(pool, PATHS, requests)
    edges = {(*one.path[: depth + 1], one.host) for one in PATHS for depth in range(one.depth)}
    assert len(seen) == len(edges) * len(requests.batches)


def test_batches_hold_images_of_several_tasks_each_with_its_head(vit):
    folders, tasks = vit
    requests = image_requests(pool_of(folders), tasks)
    assert requests.count == 67
    assert max(len(batch.heads) for batch in image_requests(pool_of(folders), [*tasks, *tasks]).batches) > 1


def test_a_path_scores_as_the_classifier_that_is_exported_from_it(vit, tmp_path):
    folders, tasks = vit
    pool = pool_of(folders)
    found = path_likelihoods(pool, PATHS, image_requests(pool, tasks))
    for number, (candidate, (likelihoods, right)) in enumerate(zip(PATHS, found, strict=True)):
        recipes = path_recipe(candidate, {}, lambda name: str(folders[name]), LAYERS)
        merge_to_disk(recipes, tmp_path / str(number), lambda name: tmp_path / name)
        model = ViTForImageClassification.from_pretrained(tmp_path / str(number)).eval()
        start = 0
        for task in tasks:
            model.classifier = torch.nn.Linear(*task.head.weight.T.shape)
            model.classifier.load_state_dict({"weight": task.head.weight, "bias": task.head.bias})
            with torch.inference_mode():
                logits = model(task.pixels).logits
            expected = logits.log_softmax(-1).gather(1, task.labels[:, None])[:, 0]
            stop = start + len(task.labels)
            assert (likelihoods[start:stop] - expected).abs().max() <= 1e-4
            assert torch.equal(right[start:stop], logits.argmax(-1) == task.labels)
            start = stop


def test_zero_shot_scores_are_those_of_transformers_clip(clip):
    folders, tasks = clip
    pool = pool_of(folders)
    whole = CLIPModel.from_pretrained(folders["a"]).eval()
    tower = CLIPVisionModel.from_pretrained(folders["b"])
    ids = torch.tensor([[1, 5, 6, 2], [1, 7, 8, 2], [1, 9, 4, 2]])
    for name in "ab":
        if name == "b":  # the expert's tower in the base's model
            whole.vision_model.load_state_dict(tower.state_dict())
        with torch.inference_mode():
            out = whole(input_ids=ids, pixel_values=tasks[0].pixels, attention_mask=torch.ones_like(ids))
        head = Head(out.text_embeds.clone(), None, float(whole.logit_scale.detach().exp()))
        labels = out.logits_per_image.argmax(-1)
        requests = image_requests(pool, [ImageItems(tasks[0].pixels, labels, head)])
        ((likelihoods, right),) = path_likelihoods(pool, [Candidate.identity(name, LAYERS)], requests)
        expected = out.logits_per_image.log_softmax(-1).max(-1).values
        assert (likelihoods - expected).abs().max() <= 1e-4
        assert right.all()


def test_scores_don_t_depend_on_the_number_of_threads(vit):
    folders, tasks = vit
    pool = pool_of(folders)
    requests, threads, found = image_requests(pool, tasks), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(path_likelihoods(pool, PATHS[:2], requests))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(*found, strict=True))


def test_an_image_that_gives_no_number_is_never_right(vit):
    folders, tasks = vit
    pool = pool_of(folders)
    tasks = [ImageItems(tasks[0].pixels.clone(), tasks[0].labels, tasks[0].head)]
    tasks[0].pixels[3] = torch.nan
    ((likelihoods, right),) = path_likelihoods(pool, PATHS[:1], image_requests(pool, tasks))
    assert likelihoods.isnan().tolist() == [number == 3 for number in range(37)]
    assert not right[3]


def test_bfloat16_scores_are_close(vit):
    folders, tasks = vit
    exact, coarse = pool_of(folders), pool_of(folders, dtype=torch.bfloat16)
    ((ours, _),) = path_likelihoods(exact, PATHS[2:3], image_requests(exact, tasks))
    ((theirs, _),) = path_likelihoods(coarse, PATHS[2:3], image_requests(coarse, tasks))
    assert (ours - theirs).abs().mean() <= 0.3


def test_models_with_other_heads_are_merged_with_the_base_s(vit):
    folders, _ = vit
    recipe = Recipe(merge_method="linear", models=[{"model": one, "parameters": {"weight": 0.5}} for one in "ab"])
    sources = {name: open_checkpoint(folder) for name, folder in folders.items()}
    shared = share_heads(sources)
    merged = MergedSource(recipe, shared.__getitem__)
    assert torch.allclose(merged.tensor("classifier.weight"), sources["a"].tensor("classifier.weight"))
    name = "vit.encoder.layer.1.intermediate.dense.weight"
    assert torch.allclose(merged.tensor(name), (sources["a"].tensor(name) + sources["b"].tensor(name)) / 2)
    assert shared["a"] is sources["a"]
    assert shared["b"].config["id2label"] == sources["a"].config["id2label"]
    assert shared["b"].digest("ends") != sources["b"].digest("ends")
    assert shared["b"].digest("layer.0") == sources["b"].digest("layer.0")


def test_rows_of_a_head_are_found_by_their_names(tmp_path):
    labels = ["two/x", "one/y", "one/x", "z"]
    source = open_checkpoint(write_vit(tmp_path / "m", 2, labels))
    weight = source.tensor("classifier.weight")
    assert torch.equal(own_head(source, "one", ("x", "y"), "m").weight, weight[[2, 1]])
    assert torch.equal(own_head(source, "three", ("z",), "m").weight, weight[[3]])
    assert torch.equal(own_head(source, "four", ("p", "q", "r", "s"), "m").weight, weight)  # as many: in their order
    with pytest.raises(BadInput, match="has no class 'q' of three; it has 4 classes"):
        own_head(source, "three", ("z", "q"), "m")


def test_a_file_of_heads_is_read_as_it_was_written(tmp_path):
    heads = {"one": Head(torch.randn(3, 4), torch.randn(3)), "two": Head(torch.randn(2, 4), None, 14.3)}
    (tmp_path / "heads.safetensors").write_bytes(heads_bytes(heads))
    for task, head in heads.items():
        found = read_head(tmp_path / "heads.safetensors", task, len(head.weight), "p")
        assert torch.equal(found.weight, head.weight)
        assert found.scale == head.scale
        assert (found.bias is None) == (head.bias is None)
    with pytest.raises(BadInput, match="has no head of 5 classes for one"):
        read_head(tmp_path / "heads.safetensors", "one", 5, "p")
    with pytest.raises(BadInput, match="not readable"):
        read_head(tmp_path / "none.safetensors", "one", 5, "p")


def test_a_bare_encoder_takes_its_names_with_or_without_prefix(tmp_path):
    folder = write_clip(tmp_path / "a", 0, CLIPVisionModel)
    other = tmp_path / "b"
    other.mkdir()
    tensors = {f"vision_model.{name}": one for name, one in load_file(folder / "model.safetensors").items()}
    tensors |= {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    (other / "config.json").write_text((folder / "config.json").read_text())
    one, two = open_checkpoint(folder), open_checkpoint(other)
    assert one.names() == two.names()
    assert one.digest("ends") == two.digest("ends")
    assert one.config["architectures"] == ["CLIPVisionModelWithProjection"]
