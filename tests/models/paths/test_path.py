"""A path over several models is a Hugging Face model: same logits as its export, with and without a KV cache."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.path import path_model
from tests.small_models import write_path

PATHS = {
    "identity": Candidate.identity("a", 4),
    "repeats": Candidate("a", (("a", 0), ("a", 1), ("a", 1), ("a", 2), ("a", 2), ("a", 3))),
    "skips": Candidate("a", (("a", 0), ("a", 3))),
    "reorders": Candidate("a", (("a", 2), ("a", 0), ("a", 3), ("a", 1))),
    "borrows": Candidate("a", (("b", 0), ("c", 0), ("a", 1), ("b", 3))),
    "foreign host": Candidate("c", tuple(("a", layer) for layer in range(4))),
    "one layer": Candidate("b", (("c", 3),)),
}


@pytest.fixture(params=PATHS.values(), ids=PATHS)
def candidate(request):
    return request.param


@pytest.fixture
def ids():
    return torch.randint(3, 61, (3, 17), generator=torch.Generator().manual_seed(1))


def test_logits_equal_those_of_an_exported_checkpoint(pool, candidate, ids, tmp_path):
    exported = AutoModelForCausalLM.from_pretrained(write_path(pool._sources, candidate, tmp_path / "model"))
    with torch.inference_mode():
        difference = path_model(pool, candidate)(ids).logits - exported(ids).logits
    assert difference.abs().max() <= 1e-5


def test_logits_with_a_cache_equal_those_without(pool, candidate, ids):
    model = path_model(pool, candidate)
    with torch.inference_mode():
        whole = model(ids, use_cache=False).logits
        cache, pieces = None, []
        for piece in (ids[:, :9], *ids[:, 9:].split(1, dim=1)):
            out = model(piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            pieces.append(out.logits)
    assert len(cache) == candidate.depth
    assert (torch.cat(pieces, dim=1) - whole).abs().max() <= 1e-4 * whole.abs().max()


def test_greedy_generation_with_a_cache_equals_that_without(pool, candidate, ids):
    model = path_model(pool, candidate)
    # left padding, as generation in batches has it
    ids[0, :5], ids[1, :2] = 0, 0
    options = {"attention_mask": (ids != 0).long(), "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    cached = model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    assert cached.shape == (3, 29)


def test_no_parameter_is_copied_and_the_pool_s_blocks_stay_as_they_are(pool):
    candidate = PATHS["repeats"]
    model = path_model(pool, candidate)
    for position, step in enumerate(candidate.path):
        block = pool.block(*step)
        for ours, theirs in zip(model.model.layers[position].parameters(), block.parameters(), strict=True):
            assert ours is theirs
        assert model.model.layers[position].self_attn.layer_idx == position
        assert block.self_attn.layer_idx == step[1]
    assert model.get_input_embeddings().weight is pool.ends("a").model.get_input_embeddings().weight
    assert model.config.num_hidden_layers == 6
    assert pool.skeleton.config.num_hidden_layers == 4
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_each_position_keeps_the_kind_of_attention_of_its_source_layer(make_pool, ids, tmp_path):
    kinds = ["full_attention", "sliding_attention"] * 2
    pool = make_pool("qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=5)
    candidate = Candidate("a", (("a", 1), ("b", 1), ("a", 0), ("c", 3), ("a", 3)))
    model = path_model(pool, candidate)
    assert model.config.layer_types == [kinds[layer] for _, layer in candidate.path]
    exported = AutoModelForCausalLM.from_pretrained(write_path(pool._sources, candidate, tmp_path / "model"))
    with torch.inference_mode():
        assert (model(ids).logits - exported(ids).logits).abs().max() <= 1e-5


def test_an_impossible_path_is_refused(pool):
    with pytest.raises(BadInput, match="has no layer 9"):
        path_model(pool, Candidate("a", (("a", 9),)))
