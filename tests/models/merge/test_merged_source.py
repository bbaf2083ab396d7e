"""Merged models as sources: what they are made of, and digests that name it without a tensor being computed."""

import pytest
import torch
import yaml

from models.errors import BadInput
from models.merge.recipe import Recipe, parse_recipes
from models.merge.source import MergedSource, mask_generator, open_recipes
from models.sources.checkpoint import open_checkpoint

GROUPS = ["ends", "layer.0", "layer.1", "layer.2"]


class Counting:
    """A checkpoint that counts the tensors that are read."""

    def __init__(self, path):
        self.checkpoint = open_checkpoint(path)
        self.config = self.checkpoint.config
        self.read = 0

    def names(self):
        return self.checkpoint.names()

    def tensor(self, name):
        self.read += 1
        return self.checkpoint.tensor(name)

    def digest(self, group):
        return self.checkpoint.digest(group)


@pytest.fixture(scope="module")
def family(make_family, tmp_path_factory):
    folders = make_family(tmp_path_factory.mktemp("family"), experts=3)
    return {name: Counting(folder) for name, folder in folders.items()}


def entry(name, **parameters):
    return {"model": name, "parameters": parameters or {"weight": 0.5, "density": 0.4}}


def recipe(method="ties", models="ab", **more):
    document = {
        "merge_method": method,
        "base_model": "base",
        "models": [entry(one) if isinstance(one, str) else one for one in models],
    }
    return Recipe.model_validate(document | more)


def source(family, *args, **more):
    return MergedSource(recipe(*args, **more), family.__getitem__)


def path(*steps, **more):
    slices = [{"sources": [{"model": model, "layer_range": [layer, layer + 1]}]} for model, layer in steps]
    return Recipe.model_validate({"merge_method": "passthrough", "slices": slices} | more)


def digests(one):
    return {group: one.digest(group) for group in GROUPS}


def same(one, other):
    return {
        group
        for group in GROUPS
        if all(
            torch.equal(one.tensor(name), other.tensor(name))
            for name in one.names()
            if one.architecture.group(name) == group
        )
    }


def test_a_digest_needs_no_tensor(family):
    merged = source(family)
    for one in family.values():  # a checkpoint reads its own once
        digests(one)
        one.read = 0
    digests(merged)
    assert sum(one.read for one in family.values()) == 0


def test_digests_differ_exactly_where_settings_or_inputs_do(family):
    first = source(family)
    assert digests(first) == digests(source(family))
    later = source(family, models=[entry("a", weight=[0.5, 0.5, 0.9], density=0.4), "b"])
    changed = {group for group in GROUPS if first.digest(group) != later.digest(group)}
    assert changed == {"layer.2"} == set(GROUPS) - same(first, later)
    for other in (source(family, models="ac"), source(family, "task_arithmetic"), source(family, out_dtype="bfloat16")):
        assert not {first.digest(group) for group in GROUPS} & {other.digest(group) for group in GROUPS}


def test_equal_settings_in_other_words_have_equal_digests(family):
    models = [{"model": "a"}, {"model": "b"}]
    respelled = source(family, models=models, parameters={"weight": [0.5, 0.5], "density": 0.4})
    assert digests(source(family)) == digests(respelled)


def test_layers_passed_through_keep_their_digest_and_their_tensors(family):
    passed = MergedSource(path(("a", 1), ("b", 1), ("a", 0), ("a", 0)), family.__getitem__)
    assert passed.config["num_hidden_layers"] == 4
    assert passed.digest("layer.0") == family["a"].digest("layer.1")
    assert passed.digest("layer.2") == passed.digest("layer.3") == family["a"].digest("layer.0")
    assert passed.digest("ends") == family["a"].digest("ends")
    ends = MergedSource(path(("a", 1), ("b", 1)), family.__getitem__)
    assert ends.digest("ends") not in {family["a"].digest("ends"), family["b"].digest("ends")}
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(passed.tensor(name.format(3)), family["a"].tensor(name.format(0)))
    scaled = MergedSource(path(("a", 1), parameters={"scale": 2}), family.__getitem__)
    assert scaled.digest("layer.0") != family["a"].digest("layer.1")
    assert torch.equal(scaled.tensor(name.format(0)), 2 * family["a"].tensor(name.format(1)))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_masks_come_from_the_seed_the_tensor_and_the_model(family, method):
    one = source(family, method, parameters={"seed": 1})
    assert same(one, source(family, method, parameters={"seed": 1})) == set(GROUPS)
    assert same(one, source(family, method, parameters={"seed": 2})) == set()
    assert not set(digests(one).values()) & set(digests(source(family, method, parameters={"seed": 2})).values())
    other = source(family, method, models="ba", parameters={"seed": 1})
    for name in one.names():
        assert torch.allclose(one.tensor(name), other.tensor(name), atol=1e-6)
    masks = {
        tuple((torch.rand(50, generator=mask_generator(seed, tensor, model)) < 0.5).tolist())
        for seed in (0, 1)
        for tensor in ("x", "y")
        for model in ("a", "b")
    }
    assert len(masks) == 8


def test_a_merge_of_merges(family):
    text = yaml.safe_dump_all(
        [
            {"name": "half"} | recipe().model_dump(exclude_defaults=True, mode="json"),
            recipe("task_arithmetic", [{"model": "half"}, {"model": "c"}], parameters={"weight": 0.5}).model_dump(
                exclude_defaults=True, mode="json"
            ),
        ]
    )
    merged = open_recipes(parse_recipes(text, "x"), family.__getitem__)
    half, base = source(family), family["base"]
    for name in merged.names():
        expected = base.tensor(name) + 0.5 * (half.tensor(name) + family["c"].tensor(name) - 2 * base.tensor(name))
        assert torch.allclose(merged.tensor(name), expected, atol=1e-6)


def test_the_config_tells_layers_and_dtype(family):
    assert source(family).config == family["base"].config
    merged = MergedSource(path(("a", 1), ("a", 1), dtype="bfloat16"), family.__getitem__)
    assert merged.config == family["a"].config | {"num_hidden_layers": 2, "dtype": "bfloat16"}
    assert {merged.tensor(name).dtype for name in merged.names()} == {torch.bfloat16}


def test_an_unknown_layer_is_refused(family):
    with pytest.raises(BadInput, match=r"slices\.1\.sources: layer_range: layer 3 is unknown; b has layers 0 to 2"):
        MergedSource(path(("a", 0), ("b", 3)), family.__getitem__)


def test_a_filter_that_leaves_a_tensor_without_a_weight_is_refused(family):
    models = [{"model": "a", "parameters": {"weight": {"filter": "mlp", "value": 1}}}]
    merged = source(family, "task_arithmetic", models)
    with pytest.raises(BadInput, match=r"weight: has no value for model\.norm\.weight of a; add one without filter"):
        merged.tensor("model.norm.weight")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 4}, "odd: config.json: num_hidden_layers: 4, but the base has 3"),
        ({"hidden_size": 32}, "odd: config.json: hidden_size: 32, but the base has 16"),
        ({"vocabulary": 50}, "odd: config.json: vocab_size: 50, but the base has 41"),
        ({"tied": False}, "odd: lm_head.weight: tensor is in one of base and model only"),
    ],
    ids=str,
)
def test_models_that_are_no_fine_tunes_of_the_base_are_refused(family, make_llama, tmp_path, sizes, message):
    odd = open_checkpoint(make_llama(tmp_path / "odd", **sizes))
    with pytest.raises(BadInput) as caught:
        source({**family, "odd": odd}, models=["a", "odd"])
    assert str(caught.value).startswith(message)
