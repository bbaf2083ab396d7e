"""Alignment gives a layer the moments that it knows, and folds into a plain checkpoint of every family."""

from pathlib import Path

import pytest
import torch
import transformers

from models.candidate import Candidate
from models.merge.path_recipe import path_recipe
from models.merge.source import open_recipes
from models.paths.alignment import Alignment, FoldedSource, aligned_model, measure_moments, normalised
from models.paths.path import path_model
from models.sources.checkpoint import write_checkpoint
from tests.models.sources.test_families import DECODERS, LAYERS, PATH, VISION, make_pool, random_ids

__all__ = ["make_pool"]  # a fixture
IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=(DECODERS | VISION).values(), ids=DECODERS | VISION)
def family(request, make_pool):
    """A pool, and inputs that its models take."""
    name, _ = request.param
    return make_pool(*request.param), IMAGES if "Image" in name or "CLIP" in name else random_ids(5, 20)


def align(pool, inputs, gate=1.0):
    return Alignment({name: measure_moments(pool, name, [inputs[:2], inputs[2:]]) for name in "ab"}, gate)


def folded_checkpoint(pool, candidate, alignment, out):
    documents = path_recipe(candidate, {}, str, LAYERS)
    plain = open_recipes(documents, lambda name: pool._sources[name])
    folded = FoldedSource(plain, pool.architecture, alignment.scales(candidate, LAYERS))
    tensors = ((name, folded.tensor(name)) for name in folded.names())
    write_checkpoint(out, folded.config, tensors, tokenizer_from=Path(out))
    return getattr(transformers, pool.config["architectures"][0]).from_pretrained(out)


@pytest.mark.parametrize("gate", [1.0, 0.4])
def test_the_folded_checkpoint_has_the_logits_of_the_live_model(family, gate, tmp_path):
    pool, inputs = family
    candidate = Candidate("b", PATH)
    alignment = align(pool, inputs, gate)
    assert any(scale and abs(scale.residual - 1) > 0.05 for scale in alignment.scales(candidate, LAYERS))
    exported = folded_checkpoint(pool, candidate, alignment, tmp_path / "model")
    with torch.inference_mode():
        live, plain = aligned_model(pool, candidate, alignment)(inputs)[0], path_model(pool, candidate)(inputs)[0]
        assert (live - exported(inputs)[0]).abs().max() <= 1e-4
        assert (live - plain).abs().max() > 1e-3


def test_a_closed_gate_and_native_order_change_nothing(family):
    pool, inputs = family
    with torch.inference_mode():
        for candidate, gate in ((Candidate("b", PATH), 0.0), (Candidate.identity("a", LAYERS), 1.0)):
            aligned, plain = aligned_model(pool, candidate, align(pool, inputs, gate)), path_model(pool, candidate)
            assert torch.allclose(aligned(inputs)[0], plain(inputs)[0], atol=1e-6)
    assert align(pool, inputs).scales(Candidate.identity("a", LAYERS), LAYERS) == [None] * (LAYERS + 1)


def test_behind_a_transition_a_layer_reads_the_moments_that_it_knows(family):
    """On the calibration data themselves, for the first layer behind native ones, the match is exact."""
    pool, inputs = family
    moments = {name: measure_moments(pool, name, [inputs]) for name in "ab"}
    candidate = Candidate("a", (("a", 0), ("a", 1), ("b", 3)))
    scale = Alignment(moments, 1.0).scales(candidate, LAYERS)[2]
    with torch.inference_mode():
        hidden, calls = pool.ends("a").embed(inputs)
        for layer in (0, 1):
            hidden = calls[layer].replay(pool.block("a", layer), hidden)
        known = pool.ends("b").embed(inputs)[0]
        for layer in (0, 1, 2):
            known = calls[layer].replay(pool.block("b", layer), known)
    assert float((scale.residual * hidden).square().mean()) == pytest.approx(float(known.square().mean()), rel=1e-5)
    reads = (scale.read * normalised(hidden.double(), pool.architecture)).square().mean((0, 1))
    expected = normalised(known.double(), pool.architecture).square().mean((0, 1))
    assert torch.allclose(reads, expected, rtol=1e-5)


def test_generation_with_a_cache_works_on_an_aligned_path(make_pool):
    pool, ids = make_pool(*DECODERS["gemma2"]), random_ids(5, 20)
    model = aligned_model(pool, Candidate("b", PATH), align(pool, ids))
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached = model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
