"""Training of the made family: the paths that it trains, what it counts, and that one job gives one result."""

import dataclasses

import numpy as np
import pytest
import torch

from tasks.families.tiny.tokenizer import train_tokenizer
from tasks.families.tiny.train import (
    IGNORED,
    Job,
    Row,
    answer_loss,
    batches_of,
    collate,
    exact_match,
    hidden_states,
    new_model,
    tokenize,
    train,
    with_replay,
)
from tasks.families.training import distance, draw_path
from tasks.schema.params import ZooParams

MICRO = ZooParams(layers=3, width=16, feed_forward=24, heads=2, vocabulary=300, skip=0.3, repeat=0.3)
TEXTS = [(f"{a} + {b} =", f" {a + b}\n") for a in range(8) for b in range(8)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([prompt + answer for prompt, answer in TEXTS], MICRO.vocabulary)


@pytest.fixture
def model(tokenizer):
    return new_model(MICRO, tokenizer, 0)


def test_the_path_of_all_layers_is_the_model_itself(model, tokenizer):
    ids = torch.randint(0, len(tokenizer), (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.lm_head(hidden_states(model, ids, range(3))), model(ids).logits)


def test_a_path_that_repeats_and_skips_is_the_chain_of_its_layers(model, tokenizer):
    ids = torch.randint(0, len(tokenizer), (2, 7), generator=torch.Generator().manual_seed(0))
    other = new_model(MICRO, tokenizer, 0)
    for position, layer in enumerate((2, 2, 0)):
        other.model.layers[position].load_state_dict(model.model.layers[layer].state_dict())
    with torch.no_grad():
        assert torch.equal(hidden_states(model, ids, (2, 2, 0)), hidden_states(other, ids, (0, 1, 2)))


def test_padding_changes_no_score(model, tokenizer):
    rows = tokenize([TEXTS[0], ("a very much longer prompt than that =", " 3\n")], tokenizer)
    alone, _ = collate(rows[:1], tokenizer.pad_token_id)
    padded, _ = collate(rows, tokenizer.pad_token_id)
    with torch.no_grad():
        short = hidden_states(model, alone, range(3))[0]
        assert torch.allclose(hidden_states(model, padded, range(3))[0, : len(short)], short, atol=1e-6)


def test_the_loss_counts_the_tokens_of_the_answers_alone():
    ids, targets = collate([Row([5, 6, 7, 8], 2), Row([9, 8], 1)], 1)
    assert ids.tolist() == [[5, 6, 7, 8], [9, 8, 1, 1]]
    assert targets.tolist() == [[IGNORED, 7, 8, IGNORED], [8, IGNORED, IGNORED, IGNORED]]


def test_layers_are_skipped_and_repeated_as_often_as_asked():
    generator = np.random.default_rng(0)
    paths = [draw_path(MICRO.model_copy(update={"layers": 10}), 0.5, generator) for _ in range(2000)]
    counts = np.array([[path.count(layer) for layer in range(10)] for path in paths])
    assert (counts == 0).mean() == pytest.approx(0.15, abs=0.01)
    assert (counts == 2).mean() == pytest.approx(0.15, abs=0.01)
    assert all(path == sorted(path) for path in paths)
    assert draw_path(MICRO, 0.0, generator) == [0, 1, 2]


def test_batches_stay_within_their_tokens_and_an_epoch_has_every_row():
    rows = [Row([100 + number] * length, 1) for number, length in enumerate([2, 9, 4, 4, 7, 2, 3, 30])]
    batches = batches_of(rows, 20, 1, np.random.default_rng(0))
    seen = []
    while len(seen) < len(rows):
        ids, _ = next(batches)
        assert ids.numel() <= 20 or len(ids) == 1
        seen += ids[:, 0].tolist()
    assert sorted(seen) == [row.ids[0] for row in rows]


def test_replay_adds_its_share_of_every_other_task():
    rows = {task: [Row([number], 0)] * 100 for number, task in enumerate("abc")}
    chosen = [row.ids[0] for row in with_replay(rows, "b", 0.03, np.random.default_rng(0))]
    assert [chosen.count(number) for number in range(3)] == [3, 100, 3]


def test_exact_match_is_what_greedy_decoding_reproduces(model, tokenizer):
    rows = tokenize(TEXTS, tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = batches_of(rows, 512, tokenizer.pad_token_id, np.random.default_rng(0))
    for _ in range(60):
        answer_loss(model, *next(batches), range(3)).backward()
        optimiser.step()
        optimiser.zero_grad()
    right = 0
    for prompt, answer in TEXTS:
        ids = tokenizer(prompt, return_tensors="pt")
        wanted = tokenizer.encode(prompt + answer)[ids.input_ids.shape[1] :]
        with torch.no_grad():
            found = model.generate(**ids, max_new_tokens=len(wanted), do_sample=False, eos_token_id=None)
        right += found[0, ids.input_ids.shape[1] :].tolist() == wanted
    assert exact_match(model, rows, tokenizer.pad_token_id) == right / len(TEXTS)
    assert 0.1 < right / len(TEXTS) < 1


def test_distance_is_relative_to_the_base():
    assert (
        distance([torch.tensor([3.0, 5.0]), torch.tensor([4.0])], [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]) == 1
    )


def test_one_job_gives_one_result_and_an_expert_starts_from_the_base(tmp_path, tokenizer, capsys):
    torch.set_num_threads(1)
    found = []
    for number in range(2):
        folders = {name: tmp_path / f"{name}{number}" for name in ("base", "math")}
        for folder in folders.values():
            tokenizer.save_pretrained(folder)
        pairs = {"math": TEXTS, "code": TEXTS[:9]}
        base = Job(str(folders["base"]), None, None, 5, 4, MICRO.model_dump(), pairs, pairs)
        expert = dataclasses.replace(base, out=str(folders["math"]), base=str(folders["base"]), task="math")
        found.append((train(base), train(expert), [(f / "model.safetensors").read_bytes() for f in folders.values()]))
    assert found[0] == found[1]
    assert found[0][0].keys() == {"scores"} and 0 < found[0][1]["distance"] < 1
    still = dataclasses.replace(expert, params={**expert.params, "expert_rate": 1e-12})
    assert train(still)["distance"] < 1e-6
