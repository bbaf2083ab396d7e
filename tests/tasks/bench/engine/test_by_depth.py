"""The trie walked by depth gives the scores of the trie walked depth-first, and calls each layer once a depth."""

import pytest
import torch

from models.candidate import Candidate
from models.paths.pool import Pool
from models.paths.prefix import Requests, path_likelihoods
from models.sources.checkpoint import open_checkpoint
from tasks.bench.engine.by_depth import by_depth
from tests.models.conftest import write_random_model
from tests.models.paths.test_prefix import edited_paths, random_pairs

pytestmark = pytest.mark.lab


@pytest.fixture
def pool(tmp_path):
    sources = {name: open_checkpoint(write_random_model(tmp_path / name, seed)) for seed, name in enumerate("abc")}
    made = Pool(sources["a"].config)
    for name, source in sources.items():
        made.add(name, source)
    return made


@pytest.fixture(scope="module")
def requests():
    return Requests.from_pairs(random_pairs(23), max_length=128, tokens=100)


@pytest.mark.parametrize("hidden_bytes", [2**30, 1])
def test_running_the_states_of_a_depth_as_a_batch_gives_the_same_scores(pool, requests, hidden_bytes):
    candidates = edited_paths(25)
    one_by_one = path_likelihoods(pool, candidates, requests)
    wide = path_likelihoods(pool, candidates, requests, hidden_bytes=hidden_bytes, walk=by_depth)
    for (one, one_greedy), (other, other_greedy) in zip(one_by_one, wide, strict=True):
        assert (one - other).abs().max() <= 1e-4
        assert torch.equal(one_greedy, other_greedy)


def test_by_depth_a_layer_is_called_once_for_all_states_that_take_it(pool, requests):
    calls = []
    for model in "abc":
        for layer in range(4):
            pool.block(model, layer).register_forward_hook(lambda *_: calls.append(1))
    candidates = [Candidate("a", ((first, 0), (second, 1), ("a", 2))) for first in "abc" for second in "abc"]
    path_likelihoods(pool, candidates, requests, walk=by_depth)
    assert len(calls) == 7 * len(requests.batches)
