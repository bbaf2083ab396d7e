"""Trains one model of `tiny` in a process of its own: see ``tasks.families.training``.

The base learns all tasks at once; an expert goes on from it on its own task and a little of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from tasks.families.tiny.tokenizer import LENGTH
from tasks.families.training import Training, base_plan, descend, distance, do, draw_path, expert_plan
from tasks.schema.params import ZooParams

IGNORED = -100
"""Target that counts for no loss, as in torch."""

EMBEDDING_DEVIATION = 0.3
MATRIX_DEVIATION = 0.02
"""Initial standard deviations. With 0.02 for the embedding too, the base needs twice the steps."""

SCORED_AT_ONCE = 128
"""Items in a batch of scoring."""

Pair = tuple[str, str]
"""Prompt and answer."""


@dataclass(frozen=True)
class Job(Training):
    """What to train, and on what. The model's folder holds the tokenizer already."""

    training: dict[str, list[Pair]]
    """Training examples of each task."""
    scored: dict[str, list[Pair]]
    """Items of each task on which the finished model is scored."""


@dataclass(frozen=True)
class Row:
    """Token ids of a prompt with its answer, and the position of the answer's first token."""

    ids: list[int]
    start: int


def train(job: Job) -> dict[str, Any]:
    """Train the model, score it and write it.

    Returns:
        ``scores``: teacher-forced exact match by task; ``distance``: ‖Θ − Θ₀‖ / ‖Θ₀‖ of an expert.
    """
    params = ZooParams.model_validate(job.params)
    tokenizer = AutoTokenizer.from_pretrained(job.out)
    rows = {task: tokenize(pairs, tokenizer) for task, pairs in job.training.items()}
    generator = np.random.default_rng([job.seed, 1 + list(rows).index(job.task) if job.task else 0])
    if job.task is None or job.base is None:
        model = new_model(params, tokenizer, job.seed)
        chosen = [row for own in rows.values() for row in own]
        inner = {name for name, one in model.named_parameters() if one.ndim == 2 and "embed" not in name}
        plan = base_plan(model, inner, params, job.steps)
    else:
        model = LlamaForCausalLM.from_pretrained(job.base, dtype=torch.float32)
        chosen = with_replay(rows, job.task, params.replay, generator)
        plan = expert_plan(model, params, job.steps)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    batches = batches_of(chosen, params.batch_tokens, tokenizer.pad_token_id, generator)

    def loss(strength: float) -> Tensor:
        path = draw_path(params, strength, generator)
        return answer_loss(model, *next(batches), path)

    descend(model, plan, job.steps, loss)
    result: dict[str, Any] = {
        "scores": {
            task: exact_match(model, tokenize(pairs, tokenizer), tokenizer.pad_token_id)
            for task, pairs in job.scored.items()
        }
    }
    if job.task is not None:
        result["distance"] = distance(list(model.parameters()), before)
    write_model(model, Path(job.out), tokenizer)
    return result


def new_model(params: ZooParams, tokenizer: Any, seed: int) -> LlamaForCausalLM:
    """A Llama with normally distributed weights and a tied head."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=params.width,
        intermediate_size=params.feed_forward,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        num_key_value_heads=params.heads,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            deviation = EMBEDDING_DEVIATION if "embed" in name else MATRIX_DEVIATION
            nn.init.normal_(parameter, std=deviation, generator=generator)
    return model


def tokenize(pairs: Sequence[Pair], tokenizer: Any) -> list[Row]:
    """Rows of token ids; an answer's tokens are those behind the prompt's own, as lm-eval splits them."""
    whole = tokenizer([prompt + answer for prompt, answer in pairs])["input_ids"]
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    return [Row(ids, len(prompt)) for ids, prompt in zip(whole, prompts, strict=True)]


def with_replay(rows: dict[str, list[Row]], task: str, replay: float, generator: np.random.Generator) -> list[Row]:
    """All rows of a task, and of each other task ``replay`` times as many."""
    chosen = list(rows[task])
    for other, own in rows.items():
        if other != task:
            chosen += [own[index] for index in generator.integers(0, len(own), round(replay * len(rows[task])))]
    return chosen


def batches_of(
    rows: Sequence[Row], tokens: int, padding: int, generator: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch, batches of rows of about one length, at most ``tokens`` tokens each with padding."""
    while True:
        order = sorted(generator.permutation(len(rows)), key=lambda index: len(rows[index].ids))
        batches: list[list[Row]] = [[]]
        for index in order:
            if batches[-1] and (len(batches[-1]) + 1) * len(rows[index].ids) > tokens:
                batches.append([])
            batches[-1].append(rows[index])
        for index in generator.permutation(len(batches)):
            yield collate(batches[index], padding)


def collate(rows: Sequence[Row], padding: int) -> tuple[Tensor, Tensor]:
    """Ids ``(B, T)``, padded on the right, and targets ``(B, T)``: the next token where it belongs to an answer."""
    ids = [torch.tensor(row.ids) for row in rows]
    targets = [torch.tensor([IGNORED] * (row.start - 1) + row.ids[row.start :] + [IGNORED]) for row in rows]
    return pad_sequence(ids, True, padding), pad_sequence(targets, True, IGNORED)


def hidden_states(model: LlamaForCausalLM, ids: Tensor, path: Sequence[int]) -> Tensor:
    """States ``(B, T, D)`` behind the final norm of a model whose layers are passed in the order of ``path``.

    There is no cache, so that one layer may stand at two positions.
    """
    states = model.model.embed_tokens(ids)
    positions = model.model.rotary_emb(states, position_ids=torch.arange(ids.shape[1])[None])
    for layer in path:
        states = model.model.layers[layer](states, position_embeddings=positions)
    normed: Tensor = model.model.norm(states)
    return normed


def answer_loss(model: LlamaForCausalLM, ids: Tensor, targets: Tensor, path: Sequence[int]) -> Tensor:
    """Mean cross entropy of the answers' tokens."""
    counted = targets != IGNORED
    return cross_entropy(model.lm_head(hidden_states(model, ids, path)[counted]), targets[counted])


@torch.inference_mode()
def exact_match(model: LlamaForCausalLM, rows: Sequence[Row], padding: int) -> float:
    """Share of the answers of which greedy decoding reproduces every token."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    matches = 0
    for start in range(0, len(ordered), SCORED_AT_ONCE):
        ids, targets = collate(ordered[start : start + SCORED_AT_ONCE], padding)
        guesses = model.lm_head(hidden_states(model, ids, range(len(model.model.layers)))).argmax(-1)
        matches += int(((guesses == targets) | (targets == IGNORED)).all(1).sum())
    return matches / len(rows)


def write_model(model: LlamaForCausalLM, folder: Path, tokenizer: Any) -> None:
    """Config, weights, and a generation config that ends an answer at its newline."""
    newline = tokenizer.encode("\n")[0]
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=[tokenizer.eos_token_id, newline], pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)


if __name__ == "__main__":
    do(Job, train)
