"""Block influence is what transformers' hidden states give, token by token and without padding."""

import numpy as np
import pytest
import torch

from models.candidate import Candidate
from models.paths.influence import block_influence
from models.paths.path import path_model
from models.paths.prefix import Requests
from models.paths.vision import ImageItems, image_requests
from models.sources.checkpoint import open_checkpoint
from models.sources.heads import own_head
from tests.models.paths.test_prefix import random_pairs
from tests.models.paths.test_vision import LAYERS, pool_of, write_vit

PATHS = [
    Candidate.identity("b", 4),
    Candidate("a", (("a", 0), ("b", 2), ("b", 2), ("c", 1), ("a", 3))),
    Candidate("c", (("a", 1),)),
]


def cosine(x, y):
    return float((x @ y) / (x.norm() * y.norm()))


def states(model, inputs, layers):
    """Input of every layer and output of the last, ahead of the final norm; (T + 1) of (B, S, D)."""
    seen = []
    for block in layers:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    last = layers[-1].register_forward_hook(lambda _, args, output: seen.append(output))
    with torch.inference_mode():
        model(inputs)
    last.remove()
    return seen


@pytest.mark.parametrize("path", PATHS, ids=["identity", "path", "one layer"])
def test_it_is_one_less_the_mean_cosine_of_hidden_states(pool, path):
    pairs = random_pairs(9)
    requests = Requests.from_pairs(pairs, max_length=128, tokens=60)
    assert any((batch.ids == 0).any() for batch in requests.batches)  # there is padding
    model = path_model(pool, path)
    found = np.zeros((0, path.depth))
    for context, continuation in pairs:  # one by one, so without padding
        ids = torch.tensor([[*context, *continuation][:-1]])
        seen = states(model, ids, model.model.layers)
        with torch.inference_mode():
            hidden = model(ids, output_hidden_states=True).hidden_states
        for i in range(path.depth):  # the last of transformers' is behind the final norm
            torch.testing.assert_close(seen[i], hidden[i])
        cosines = [[cosine(x, y) for x, y in zip(seen[i][0], seen[i + 1][0], strict=True)] for i in range(path.depth)]
        found = np.concatenate([found, np.array(cosines).T])
        model = path_model(pool, path)
    assert len(found) == sum(len(one) + len(other) - 1 for one, other in pairs)
    np.testing.assert_allclose(block_influence(pool, path, [requests]), 1 - found.mean(axis=0), atol=1e-6)


def test_several_kinds_of_requests_count_by_their_tokens(pool):
    one, other = (Requests.from_pairs(random_pairs(6, seed), 128, 60) for seed in (1, 2))
    joined = Requests(12, (*one.batches, *other.batches))
    path = PATHS[0]
    np.testing.assert_allclose(block_influence(pool, path, [one, other]), block_influence(pool, path, [joined]))
    with pytest.raises(ValueError, match="no tokens"):
        block_influence(pool, path, [Requests(0, ())])


def test_images_have_an_influence_too(tmp_path):
    pool = pool_of({name: write_vit(tmp_path / name, seed, ["x", "y", "z"]) for seed, name in enumerate("ab")})
    pixels = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    path = Candidate("b", (("a", 0), ("b", 3), ("a", 2)))
    head = own_head(open_checkpoint(tmp_path / "b"), "task", ("x", "y", "z"), "b")
    items = ImageItems(pixels, torch.zeros(5, dtype=torch.long), head)
    model = path_model(pool, path)
    seen = states(model, pixels, model.vit.layers)
    wanted = [
        1 - np.mean([cosine(x, y) for x, y in zip(seen[i].flatten(0, 1), seen[i + 1].flatten(0, 1), strict=True)])
        for i in range(path.depth)
    ]
    assert path.depth < LAYERS
    np.testing.assert_allclose(block_influence(pool, path, [image_requests(pool, [items])]), wanted, atol=1e-6)


def test_what_is_not_finite_shows(make_pool):
    pool = make_pool()
    with torch.no_grad():
        pool.block("a", 1).mlp.down_proj.weight[0, 0] = torch.nan
    found = block_influence(pool, Candidate.identity("a", 4), [Requests.from_pairs(random_pairs(3), 128)])
    assert np.isnan(found).any()
