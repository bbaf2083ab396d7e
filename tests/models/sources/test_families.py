"""Every family: paths are scored and exported as its own code in transformers computes them."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from models.candidate import Candidate
from models.errors import BadInput
from models.merge.methods import METHODS
from models.merge.path_recipe import path_recipe
from models.merge.recipe import Recipe
from models.merge.source import MergedSource
from models.merge.write import merge_to_disk
from models.paths.path import path_model
from models.paths.pool import Pool
from models.paths.prefix import Requests, depth_first, path_likelihoods
from models.sources.architecture import ARCHITECTURES, architecture_of, keeps_lists, with_layers
from models.sources.checkpoint import open_checkpoint
from tasks.bench.engine.by_depth import by_depth
from tests.small_families import DECODER, DECODERS, LAYERS, SLIDING, VISION, random_model

PATH = (("a", 0), ("b", 3), ("b", 1), ("b", 1), ("a", 3))


@pytest.fixture(scope="module")
def make_pool(tmp_path_factory):
    def make(family, config):
        folder = tmp_path_factory.mktemp("family")
        sources = {
            name: open_checkpoint(random_model(folder / name, family, config, seed)) for seed, name in enumerate("ab")
        }
        pool = Pool(sources["a"].config)
        for name, source in sources.items():
            pool.add(name, source)
        return pool

    return make


@pytest.fixture(scope="module", params=DECODERS.values(), ids=DECODERS)
def pool(request, make_pool):
    return make_pool(*request.param)


def export(pool, candidate, out):
    documents = path_recipe(candidate, {}, lambda name: str(pool._sources[name].path), LAYERS)
    merge_to_disk(documents, out, lambda name: pool._sources["a"].path.parent / name)
    return getattr(transformers, pool.config["architectures"][0]).from_pretrained(out)


def random_ids(rows=3, length=14):
    return torch.randint(3, 61, (rows, length), generator=torch.Generator().manual_seed(5))


def test_every_family_is_tried_here():
    assert {family for family, _ in (DECODERS | VISION).values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("host", ["a", "b"])
def test_a_path_equals_its_exported_checkpoint(pool, host, tmp_path):
    candidate, ids = Candidate(host, PATH), random_ids()
    exported = export(pool, candidate, tmp_path / "model")
    with torch.inference_mode():
        assert (path_model(pool, candidate)(ids).logits - exported(ids).logits).abs().max() <= 1e-5


def test_the_whole_model_is_what_transformers_loads(pool):
    ids, folder = random_ids(), pool._sources["b"].path
    with torch.inference_mode():
        whole = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        assert (path_model(pool, Candidate.identity("b", LAYERS))(ids).logits - whole).abs().max() <= 1e-5


def test_generation_with_a_cache_equals_that_without(pool):
    model, ids = path_model(pool, Candidate("b", PATH)), random_ids()
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    options["pad_token_id"] = 0
    cached = model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("walk", [depth_first, by_depth])
def test_scores_are_those_of_the_path_s_model(pool, walk):
    ids = random_ids(6, 11).tolist()
    pairs = [(row[: 3 + number], row[3 + number :]) for number, row in enumerate(ids)]
    candidates = [Candidate("b", PATH), Candidate("a", PATH[:3]), Candidate.identity("a", LAYERS)]
    found = path_likelihoods(pool, candidates, Requests.from_pairs(pairs, 128, tokens=40), walk=walk)
    for candidate, (likelihoods, _) in zip(candidates, found, strict=True):
        model = path_model(pool, candidate)
        for number, (context, continuation) in enumerate(pairs):
            with torch.inference_mode():
                logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
            expected = logits.double().log_softmax(-1).gather(1, torch.tensor(continuation).unsqueeze(1)).sum()
            assert float(likelihoods[number]) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize(("family", "config"), VISION.values(), ids=VISION)
def test_a_path_through_an_image_encoder_equals_its_exported_checkpoint(make_pool, family, config, tmp_path):
    pool, candidate = make_pool(family, config), Candidate("b", PATH)
    exported = export(pool, candidate, tmp_path / "model")
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours, theirs = path_model(pool, candidate)(images)[0], exported(images)[0]
        assert (ours - theirs).abs().max() <= 1e-5
        ends = pool.ends("b")
        hidden, calls = ends.embed(images)
        for step in PATH:
            hidden = calls[step[1]].replay(pool.block(*step), hidden)
        assert (ends.logits(hidden[:, 0]) - theirs).abs().max() <= 1e-5


def test_a_list_by_layer_that_the_config_leaves_out_is_filled_in_before_layers_move():
    config = transformers.Gemma2Config(**DECODER | SLIDING).to_dict() | {"architectures": ["Gemma2ForCausalLM"]}
    kinds = config.pop("layer_types")
    assert with_layers(config, [3, 1, 1])["layer_types"] == [kinds[3], kinds[1], kinds[1]]
    assert "layer_types" not in with_layers(config, range(LAYERS))


def test_mergekit_can_rebuild_paths_that_keep_the_kinds_of_layers():
    config = transformers.Gemma2Config(**DECODER | SLIDING).to_dict() | {"architectures": ["Gemma2ForCausalLM"]}
    assert keeps_lists(config, [2, 3, 0, 1])
    assert not keeps_lists(config, [0, 0, 2, 3])
    assert not keeps_lists(config, [0, 1, 2])
    assert keeps_lists({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 4}, [0, 2])


def test_a_checkpoint_without_the_family_s_prefix_is_the_same_model(tmp_path):
    folder = random_model(tmp_path / "whole", *DECODERS["gpt2"], seed=0)
    bare = tmp_path / "bare"
    bare.mkdir()
    tensors = {name.removeprefix("transformer."): one for name, one in load_file(folder / "model.safetensors").items()}
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 4, 4)}, bare / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["tie_word_embeddings"]  # GPT-2's own files don't say what is the family's rule
    (bare / "config.json").write_text(json.dumps(config))
    one, other = open_checkpoint(folder), open_checkpoint(bare)
    assert one.names() == other.names()
    assert one.digest("layer.2") == other.digest("layer.2")
    assert torch.equal(one.tensor("transformer.wpe.weight"), other.tensor("transformer.wpe.weight"))


def test_methods_on_matrices_see_outputs_before_inputs_whatever_the_family_stores(tmp_path):
    folders = {name: random_model(tmp_path / name, *DECODERS["gpt2"], seed) for seed, name in enumerate(("base", "a"))}
    sources = {name: open_checkpoint(folder) for name, folder in folders.items()}
    recipe = {"merge_method": "wudi", "base_model": "base", "models": [{"model": "a"}], "parameters": {"steps": 3}}
    merged = MergedSource(Recipe.model_validate(recipe), sources.__getitem__)
    name = "transformer.h.1.mlp.c_fc.weight"
    base, expert = (source.tensor(name).T for source in sources.values())
    expected = METHODS["wudi"].merge(base, [expert], weight=[1.0], lambda_=1.0, steps=3, lr=1e-5, linear_layer=True)
    assert torch.equal(merged.tensor(name), expected.T)


def test_layers_that_depend_on_their_place_are_refused():
    config = {"architectures": ["GPT2LMHeadModel"], "scale_attn_by_inverse_layer_idx": True}
    with pytest.raises(BadInput, match="scale_attn_by_inverse_layer_idx: makes each layer depend on its place"):
        architecture_of(config)
