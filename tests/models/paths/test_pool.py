"""Blocks are built from the models' own tensors, once, within a bound on bytes."""

import hashlib

import pytest
import torch

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.pool import parameter_bytes


def test_a_block_holds_the_source_s_tensors_without_a_copy(pool):
    block = pool.block("b", 2)
    for name, parameter in block.named_parameters():
        stored = pool._sources["b"].tensor(f"model.layers.2.{name}")
        assert torch.equal(parameter, stored)
        assert parameter.data_ptr() == stored.data_ptr()
        assert not parameter.requires_grad


def test_a_block_is_built_once(pool):
    assert pool.block("a", 1) is pool.block("a", 1)
    assert pool.ends("a") is pool.ends("a")


def test_a_tied_head_is_the_embedding(make_pool):
    tied = make_pool(tie_word_embeddings=True).ends("a")
    assert tied.head.weight is tied.model.get_input_embeddings().weight
    untied = make_pool().ends("a")
    assert not torch.equal(untied.head.weight, untied.model.get_input_embeddings().weight)


def test_parameters_get_the_pool_s_dtype(make_pool):
    pool = make_pool(dtype=torch.bfloat16)
    stored = pool._sources["c"].tensor("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(pool.block("c", 0).mlp.up_proj.weight, stored.bfloat16())
    assert pool.ends("c").norm.weight.dtype == torch.bfloat16


def test_what_was_used_least_recently_makes_room(make_pool):
    pool = make_pool()
    size = parameter_bytes(pool.block("a", 0))
    pool.max_bytes = 3 * size
    first = pool.block("a", 0)
    second, third = pool.block("a", 1), pool.block("a", 2)
    assert pool.block("a", 0) is first
    pool.block("a", 3)
    assert pool.held_bytes == 3 * size
    assert pool.block("a", 0) is first
    assert pool.block("a", 2) is third
    assert pool.block("a", 1) is not second


def test_held_bytes_stay_bounded_over_a_long_walk(make_pool):
    pool = make_pool()
    pool.max_bytes = 2 * parameter_bytes(pool.block("a", 0)) + 1
    for step in [(model, layer) for layer in range(4) for model in "abc"] * 2:
        pool.block(*step)
        assert 0 < pool.held_bytes <= pool.max_bytes


def test_a_discarded_model_is_forgotten(make_pool):
    pool = make_pool()
    pool.block("b", 0)
    pool.ends("b")
    pool.digest(Candidate.identity("b", 4))
    pool.discard("b")
    assert pool.held_bytes == 0
    assert "b" not in pool
    assert pool.names == ("a", "c")
    with pytest.raises(BadInput, match="model 'b': not in the pool; there are a, c"):
        pool.block("b", 0)
    with pytest.raises(ValueError, match="already"):
        pool.add("a", pool._sources["c"])


def test_a_digest_follows_content_and_order_not_names(make_pool):
    pool = make_pool()
    pool.add("again", pool._sources["a"])
    identity = pool.digest(Candidate.identity("a", 4))
    assert identity == pool.digest(Candidate.identity("again", 4))
    assert identity == pool.digest(Candidate("a", (("again", 0), ("a", 1), ("again", 2), ("a", 3))))
    different = {
        pool.digest(Candidate("b", tuple(("a", layer) for layer in range(4)))),
        pool.digest(Candidate("a", (("a", 1), ("a", 0), ("a", 2), ("a", 3)))),
        pool.digest(Candidate("a", (("a", 0), ("a", 1), ("a", 2)))),
        pool.digest(Candidate("a", (("a", 0), ("a", 1), ("a", 2), ("b", 3)))),
        identity,
    }
    assert len(different) == 5
    groups = [pool._sources["a"].digest(group) for group in ("ends", "layer.0", "layer.1", "layer.2", "layer.3")]
    assert identity == hashlib.sha256("\n".join(groups).encode()).hexdigest()


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (Candidate("a", ()), "path: is empty"),
        (Candidate("a", (("a", 4),)), "path: a has no layer 4; it has 0 to 3"),
        (Candidate("a", (("a", -1),)), "path: a has no layer -1"),
        (Candidate("a", (("x", 0),)), "model 'x': not in the pool; there are a, b, c"),
        (Candidate("y", (("a", 0),)), "model 'y': not in the pool"),
    ],
)
def test_a_candidate_that_cannot_be_built_is_refused(make_pool, candidate, message):
    pool = make_pool()
    with pytest.raises(BadInput, match=message):
        pool.check(candidate)
    with pytest.raises(BadInput, match=message):
        pool.digest(candidate)
