"""What a path takes to run: counted against transformers' own models and the formula of a KV cache."""

import math
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from models.candidate import Candidate
from models.paths.latency import BATCH, PROMPT, ROUNDS, STEPS, milliseconds, running_costs
from models.paths.pool import Pool
from models.sources.checkpoint import open_checkpoint
from tests.models.conftest import SIZES
from tests.small_models import write_path

DEPTHS = {
    "skips": Candidate("a", (("a", 0), ("a", 3))),
    "identity": Candidate.identity("a", 4),
    "repeats": Candidate("b", (("a", 0), ("a", 1), ("a", 1), ("b", 2), ("a", 3))),
}
HEAD = SIZES["hidden_size"] // SIZES["num_attention_heads"]


def running_cost(pool, candidate):
    (cost,) = running_costs(pool, [candidate])
    return cost


def plausible(cost):
    return all(math.isfinite(one) and 0 < one < 10_000 for one in (cost.ms_1, cost.ms_32))


def test_parameters_are_those_of_the_checkpoint(pool, tmp_path):
    for name, candidate in DEPTHS.items():
        written = AutoModelForCausalLM.from_pretrained(write_path(pool._sources, candidate, tmp_path / name))
        cost = running_cost(pool, candidate)
        assert cost.parameters == sum(one.numel() for one in written.parameters()), name
        assert cost.layers == candidate.depth
        assert cost.unit == "token"
        assert plausible(cost)


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_holds_keys_and_values_of_every_layer(make_pool, heads, dtype):
    pool = make_pool(num_key_value_heads=heads, dtype=dtype)
    for candidate in DEPTHS.values():
        cost = running_cost(pool, candidate)
        assert cost.cache_bytes == 2 * candidate.depth * heads * HEAD * dtype.itemsize


def test_a_deeper_path_has_more_of_everything_that_is_held(pool):
    done = []
    costs = running_costs(pool, list(DEPTHS.values()), done.append)
    assert [one.layers for one in costs] == [2, 4, 5]
    assert [one.parameters for one in costs] == sorted({one.parameters for one in costs})
    assert [one.cache_bytes for one in costs] == sorted({one.cache_bytes for one in costs})
    assert sum(done) == pytest.approx(3)


def test_gpt2_has_a_place_for_every_token_that_it_decodes(make_pool):
    pool = make_pool("gpt2", n_embd=32, n_layer=4, n_head=4, n_positions=16, max_position_embeddings=16)
    cost = running_cost(pool, DEPTHS["skips"])
    assert plausible(cost)
    assert cost.cache_bytes == 2 * 2 * 32 * 4


@pytest.mark.parametrize("window", [2, 5, 1000])
def test_a_sliding_window_hides_nothing_of_the_cache(make_pool, window):
    pool = make_pool("gemma2", head_dim=8, sliding_window=window)
    assert "sliding_attention" in pool.skeleton.config.layer_types
    cost = running_cost(pool, Candidate.identity("a", 4))
    assert plausible(cost)
    assert cost.cache_bytes == 2 * 4 * SIZES["num_key_value_heads"] * 8 * 4


def test_an_encoder_of_images_has_no_cache(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**sizes, num_hidden_layers=3)).save_pretrained(tmp_path / "whole")
    ViTForImageClassification(ViTConfig(**sizes, num_hidden_layers=2)).save_pretrained(tmp_path / "short")
    source = open_checkpoint(tmp_path / "whole")
    pool = Pool(source.config)
    pool.add("a", source)
    short = running_cost(pool, Candidate("a", (("a", 0), ("a", 2))))
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path / "short")
    assert short.parameters == sum(one.numel() for one in theirs.parameters())
    assert plausible(short)
    assert (short.cache_bytes, short.unit) == (None, "image")


def test_a_step_decodes_one_token_of_every_text(pool):
    seen = []
    embedding = pool.ends("a").model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    running_cost(pool, DEPTHS["skips"])
    hook.remove()
    assert set(seen) == {(1, PROMPT), (1, 1), (BATCH, 1)}
    assert seen.count((1, PROMPT)) == 1 + 2 * ROUNDS


def test_a_time_is_that_of_a_step_over_its_batch_and_runs_take_turns():
    begun, done = [], []

    def run(name, pause):
        def begin(batch):
            begun.append((name, batch))
            return lambda: done.append(time.sleep(pause * (1 if batch == 1 else 2)))

        return begin

    ones, many = milliseconds([run("short", 0.002), run("long", 0.006)], 3, torch.device("cpu"))
    assert begun == [("short", 1), ("short", BATCH), ("long", 1), ("long", BATCH)] * ROUNDS
    assert len(done) == 4 * ROUNDS * (1 + 3)
    assert ones[0] >= 2 and ones[1] >= 6
    assert many[0] >= 4 / BATCH and many[1] >= 12 / BATCH
    assert many[0] < ones[0] < ones[1]


def test_slow_steps_are_timed_once_a_round(monkeypatch):
    monkeypatch.setattr("models.paths.latency.SECONDS", 0.01)
    done = []
    milliseconds([lambda _: lambda: done.append(time.sleep(0.02))], STEPS, torch.device("cpu"))
    assert len(done) == 2 * ROUNDS * (1 + 1)
