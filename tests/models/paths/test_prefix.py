"""Scoring many paths at once equals scoring each alone, computes each shared prefix once, and is right."""

import numpy as np
import pytest
import torch

from models.candidate import Candidate
from models.errors import BadInput
from models.paths.path import path_model
from models.paths.prefix import Answer, Requests, path_likelihoods, trie


def random_pairs(count, seed=0, vocabulary=61):
    generator = np.random.default_rng(seed)
    return [
        (
            generator.integers(3, vocabulary, int(generator.integers(1, 20))).tolist(),
            generator.integers(3, vocabulary, int(generator.integers(1, 6))).tolist(),
        )
        for _ in range(count)
    ]


def edited_paths(count, seed=0, layers=4):
    """Paths that share prefixes, some twice, behind two hosts."""
    generator = np.random.default_rng(seed)
    found = [Candidate.identity(model, layers) for model in "abc"]
    for _ in range(count):
        path = list(found[int(generator.integers(len(found)))].path)
        position = int(generator.integers(len(path)))
        path[position : position + int(generator.integers(2))] = [
            ("abc"[generator.integers(3)], int(generator.integers(layers)))
        ]
        found.append(Candidate("ab"[generator.integers(2)], tuple(path)))
    return [*found, found[3], found[0]]


def edges(candidates):
    prefixes = {(one.host, one.path[:depth]) for one in candidates for depth in range(1, one.depth + 1)}
    return len(prefixes)


@pytest.fixture(scope="module")
def requests():
    return Requests.from_pairs(random_pairs(23), max_length=128, tokens=100)


def test_scores_equal_those_of_scoring_one_by_one_bit_for_bit(pool, requests):
    candidates = edited_paths(20)
    together = path_likelihoods(pool, candidates, requests)
    for candidate, (likelihoods, greedy) in zip(candidates, together, strict=True):
        ((alone, alone_greedy),) = path_likelihoods(pool, [candidate], requests)
        assert torch.equal(likelihoods, alone)
        assert torch.equal(greedy, alone_greedy)
        assert likelihoods.dtype == torch.float64


def test_models_that_do_not_fit_together_are_scored_in_turn_and_each_is_built_once(make_pool, requests, monkeypatch):
    candidates = [*edited_paths(8), *(Candidate.identity(model, 4) for model in "abc")]
    roomy, narrow = make_pool(), make_pool()
    plain = [Candidate.identity(model, 4) for model in "abc"]
    expected = path_likelihoods(roomy, candidates, requests)
    path_likelihoods(roomy, plain, requests)
    narrow.max_bytes = roomy.held_bytes // 2  # two of the three models don't fit
    assert narrow.fitting(plain) == [[0], [1], [2]]
    built, filled = [], narrow._filled
    monkeypatch.setattr(narrow, "_filled", lambda *arguments: built.append(arguments) or filled(*arguments))
    path_likelihoods(narrow, plain, requests)
    assert len(requests.batches) > 1
    assert len(built) == 3 * (4 + 1)
    for (likelihoods, greedy), (others, other_greedy) in zip(
        expected, path_likelihoods(narrow, candidates, requests), strict=True
    ):
        assert torch.equal(likelihoods, others)
        assert torch.equal(greedy, other_greedy)


def test_scores_do_not_depend_on_the_number_of_threads(pool, requests):
    candidates, threads = edited_paths(6), torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(torch.stack([likelihoods for likelihoods, _ in path_likelihoods(pool, candidates, requests)]))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_scores_are_those_of_the_whole_model_on_each_request_alone(make_pool, kind):
    changes = {
        "llama": {},
        "qwen2": {
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "use_sliding_window": True,
            "sliding_window": 5,
        },
        "mistral": {"sliding_window": 6},
    }
    pool, pairs = make_pool(kind, **changes[kind]), random_pairs(17, seed=1)
    candidates = edited_paths(5, seed=2)
    found = path_likelihoods(pool, candidates, Requests.from_pairs(pairs, max_length=128, tokens=64))
    for candidate, (likelihoods, greedy) in zip(candidates, found, strict=True):
        model = path_model(pool, candidate)
        for index, (context, continuation) in enumerate(pairs):
            with torch.inference_mode():
                logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1]
            scores = logits.double().log_softmax(-1)
            expected = scores.gather(1, torch.tensor(continuation).unsqueeze(1)).sum()
            assert likelihoods[index] == pytest.approx(float(expected), abs=2e-4)
            assert bool(greedy[index]) == bool((scores.argmax(-1) == torch.tensor(continuation)).all())


def test_a_continuation_that_greedy_decoding_gives_is_found(make_pool):
    pool, candidate = make_pool(), Candidate.identity("b", 4)
    context = [5, 9, 31]
    whole = path_model(pool, candidate).generate(
        torch.tensor([context]), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    answer = whole[0, 3:].tolist()
    wrong = [*answer[:-1], (answer[-1] + 1) % 61]
    ((_, greedy),) = path_likelihoods(
        pool, [candidate], Requests.from_pairs([(context, answer), (context, wrong)], 128)
    )
    assert greedy.tolist() == [True, False]


def test_each_shared_prefix_is_computed_once(make_pool, requests):
    pool, candidates = make_pool(), edited_paths(12)
    calls = []
    for model in "abc":
        for layer in range(4):
            pool.block(model, layer).register_forward_hook(lambda *_: calls.append(1))
    path_likelihoods(pool, candidates, requests)
    assert len(calls) == edges(candidates) * len(requests.batches)
    assert len(calls) < sum(one.depth for one in candidates) * len(requests.batches)


def test_the_trie_holds_every_candidate_at_its_path():
    candidates = edited_paths(15)
    found = {}

    def collect(host, node, path):
        for number in node.candidates:
            found[number] = Candidate(host, path)
        for step, child in node.children.items():
            collect(host, child, (*path, step))

    for host, root in trie(candidates).items():
        collect(host, root, ())
    assert [found[number] for number in range(len(candidates))] == candidates


def test_hidden_states_are_held_for_the_branches_above_alone(make_pool):
    pool = make_pool()
    steps = [(model, layer) for model in "abc" for layer in range(4)]
    candidates = [Candidate("a", (*steps[:4], step, other)) for step in steps for other in steps]
    alive, most = set(), 0

    class Watched(torch.nn.Module):
        """A block that knows which of its outputs are still held."""

        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, hidden, **arguments):
            import weakref

            nonlocal most
            out = self.block(hidden, **arguments).view_as(hidden)
            key = object()
            alive.add(key)
            weakref.finalize(out, alive.discard, key)
            most = max(most, len(alive))
            return out

    for step in steps:
        pool._kept[step] = Watched(pool.block(*step))
    path_likelihoods(pool, candidates, Requests.from_pairs(random_pairs(4), 128))
    assert most <= 4


@pytest.mark.parametrize("states", [0, 1, 2])
def test_hidden_states_stay_within_their_bound_and_the_scores_as_they_are(make_pool, requests, states):
    """What had to make room is computed again."""
    pool, candidates = make_pool(), edited_paths(25)
    roomy = path_likelihoods(pool, candidates, requests)
    calls = []
    for model in "abc":
        for layer in range(4):
            pool.block(model, layer).register_forward_hook(lambda *_: calls.append(1))
    path_likelihoods(pool, candidates, requests)
    once = len(calls)
    largest = max(batch.ids.numel() for batch in requests.batches) * 32 * 4
    tight = path_likelihoods(pool, candidates, requests, hidden_bytes=states * largest * torch.get_num_threads())
    assert len(calls) > 2 * once
    for (one, one_greedy), (other, other_greedy) in zip(roomy, tight, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one_greedy, other_greedy)


def test_results_are_independent_of_how_requests_are_batched(pool):
    pairs, candidates = random_pairs(31, seed=3), edited_paths(4)
    coarse = path_likelihoods(pool, candidates, Requests.from_pairs(pairs, 128, tokens=10**6))
    fine = path_likelihoods(pool, candidates, Requests.from_pairs(pairs, 128, tokens=1))
    for (one, one_greedy), (other, other_greedy) in zip(coarse, fine, strict=True):
        assert torch.allclose(one, other, atol=2e-4)
        assert torch.equal(one_greedy, other_greedy)


def test_batches_respect_the_budget_and_hold_every_request_once():
    pairs = random_pairs(57, seed=4)
    requests = Requests.from_pairs(pairs, max_length=128, tokens=90)
    assert sorted(torch.cat([batch.rows for batch in requests.batches]).tolist()) == list(range(57))
    assert all(batch.ids.numel() <= 90 for batch in requests.batches)
    for batch in requests.batches:
        for number, index in enumerate(batch.rows.tolist()):
            context, continuation = pairs[index]
            assert batch.ids[number, : len(context) + len(continuation) - 1].tolist() == [*context, *continuation][:-1]
            mine = batch.row == number
            assert batch.target[mine].tolist() == continuation
            assert batch.column[mine].tolist() == list(range(len(context) - 1, len(context) + len(continuation) - 1))


def test_a_request_that_is_too_long_loses_its_left_end():
    context, continuation = list(range(3, 23)), [30, 31, 32]
    (batch,) = Requests.from_pairs([(context, continuation)], max_length=10).batches
    assert batch.ids.tolist() == [[*context, *continuation][-11:-1]]
    assert batch.column.tolist() == [7, 8, 9]


def test_a_model_that_yields_nan_is_marked_and_does_not_spoil_the_others(make_pool, requests):
    pool = make_pool()
    broken = torch.full_like(pool.block("b", 1).mlp.down_proj.weight, torch.nan)
    pool.block("b", 1).mlp.down_proj.weight = torch.nn.Parameter(broken, requires_grad=False)
    sound, bad = Candidate.identity("a", 4), Candidate("a", (("a", 0), ("b", 1)))
    (good, _), (values, greedy) = path_likelihoods(pool, [sound, bad], requests)
    assert values.isnan().all()
    assert not greedy.any()
    assert torch.equal(good, path_likelihoods(pool, [sound], requests)[0][0])


def test_progress_counts_each_candidate_once(pool, requests):
    told = []
    candidates = edited_paths(9)
    path_likelihoods(pool, candidates, requests, told.append)
    assert sum(told) == len(candidates)
    assert all(one > 0 for one in told)


def test_a_pool_that_is_too_small_for_the_paths_gives_the_same_scores(make_pool, requests):
    pool, candidates = make_pool(), edited_paths(10)
    roomy = path_likelihoods(pool, candidates, requests)
    pool.max_bytes = 1
    for (one, _), (other, _) in zip(roomy, path_likelihoods(pool, candidates, requests), strict=True):
        assert torch.equal(one, other)


def test_what_scoring_builds_can_be_used_outside_of_it(make_pool, requests):
    pool = make_pool(dtype=torch.bfloat16)
    path_likelihoods(pool, [Candidate.identity("a", 4)], requests)
    assert not any(one.is_inference() for module in pool._kept.values() for one in module.parameters())


def test_an_unknown_layer_is_refused_before_anything_is_computed(pool, requests):
    told = []
    with pytest.raises(BadInput, match="has no layer 7"):
        path_likelihoods(pool, [Candidate.identity("a", 4), Candidate("a", (("b", 7),))], requests, told.append)
    assert told == []


def test_nothing_to_score_gives_nothing(pool, requests):
    assert path_likelihoods(pool, [], requests) == []
    ((likelihoods, greedy),) = path_likelihoods(pool, [Candidate.identity("a", 4)], Requests.from_pairs([], 128))
    assert likelihoods.shape == greedy.shape == (0,)


def test_the_share_of_right_tokens_is_that_of_the_logits_of_the_whole_model(pool):
    pairs = random_pairs(6)
    candidate = edited_paths(4)[-3]
    ((likelihoods, shares),) = path_likelihoods(
        pool, [candidate], Requests.from_pairs(pairs, max_length=128), shares=True
    )
    ((plain, greedy),) = path_likelihoods(pool, [candidate], Requests.from_pairs(pairs, max_length=128))
    assert torch.equal(likelihoods, plain) and torch.equal(greedy, shares == 1)
    model = path_model(pool, candidate)
    for (context, continuation), share in zip(pairs, shares.tolist(), strict=True):
        with torch.inference_mode():
            best = model(torch.tensor([[*context, *continuation]])).logits[0].argmax(-1)[len(context) - 1 : -1]
        right = [int(one) == wanted for one, wanted in zip(best, continuation, strict=True)]
        assert share == pytest.approx(sum(right) / len(right))


def test_an_answer_is_what_lm_eval_takes_and_knows_its_tokens():
    answer = Answer(-1.5, 0.75)
    likelihood, greedy = answer
    assert (likelihood, greedy, answer.matching) == (-1.5, False, 0.75)
    assert answer == (-1.5, False) and Answer(-1.5, 1.0)[1] is True
