"""Experts of a base from data: supervised fine-tuning with peft's LoRA, or of all weights.

The loss is on the answers and the end token. Prompt and answer are split into tokens where lm-eval splits them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import string
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.errors import BadInput, Failed
from models.files import parse_json
from models.sources.checkpoint import check_finite, open_checkpoint
from models.sources.lines import lines_of
from models.sources.loadable import OFFLINE, check_loadable, load_tokenizer
from models.sources.lora import LoraSource
from tasks.project.progress import Progress

IGNORED = -100
"""Label of a token that carries no loss."""

Tokens = tuple[list[int], int]
"""Token ids of a row, and how many of them are prompt."""


@dataclass(frozen=True)
class Settings:
    """How experts are trained."""

    steps: int = 200
    """Optimiser steps."""
    rate: float = 2e-3
    """AdamW's learning rate; it falls linearly to zero."""
    batch_tokens: int = 2048
    """Tokens of a batch, padding included; one row at least."""
    longest: int = 1024
    """Tokens of a row; what is longer is left out."""
    rank: int = 16
    """Rank of the adapters; α is twice that."""
    full: bool = False
    """Train all weights instead of an adapter."""
    seed: int = 0
    held_out: float = 0.2
    """Share of the rows, by hash, that are kept for scoring."""


@dataclass(frozen=True)
class Row:
    """One example."""

    prompt: str
    completion: str

    @property
    def place(self) -> float:
        """Where its hash lies in [0, 1): decides whether it is held out."""
        digest = hashlib.sha256(json.dumps([self.prompt, self.completion]).encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64


@dataclass(frozen=True)
class Trained:
    """What came of one training."""

    rows: int
    tokens: int
    first_loss: float
    """Mean over the first tenth of the steps, nats a token."""
    last_loss: float
    """Mean over the last tenth."""


def read_rows(path: Path, prompt: str = "", completion: str = "") -> list[Row]:
    """Examples of a JSONL file, gzipped or not, each once.

    Args:
        path: one JSON object a line, with ``prompt`` and ``completion``, or with ``text`` alone.
        prompt: what makes a prompt of an object's fields, such as ``"Question: {question}\\nAnswer:"``.
        completion: what makes an answer of them, such as ``" {answer}"``; needed with ``prompt``.

    Raises:
        BadInput: the file is missing, no JSONL, empty, or an object lacks a field.
    """
    found: dict[Row, None] = {}
    for number, line in lines_of(path):
        if line.strip():
            data = parse_json(line, f"{path}: line {number}")
            found[_row(data, prompt, completion, f"{path}: line {number}")] = None
    if not found:
        raise BadInput(f"{path}: holds no rows; give it at least one")
    return list(found)


def _row(data: Any, prompt: str, completion: str, label: str) -> Row:
    if not isinstance(data, dict):
        raise BadInput(f"{label}: no JSON object; write one a line")
    if not completion and "completion" not in data and "text" in data:
        row = Row("", str(data["text"]))
    else:
        row = Row(_filled(prompt or "{prompt}", data, label), _filled(completion or "{completion}", data, label))
    if not row.completion.strip():
        raise BadInput(f"{label}: has an empty answer; mend it or take it out")
    return row


def _filled(template: str, data: Mapping[str, Any], label: str) -> str:
    """A template with the fields that it names; attributes and indices of them are not looked at."""
    parts = []
    try:
        for text, field, *_ in string.Formatter().parse(template):
            parts.append(text + ("" if field is None else str(data[field])))
    except KeyError as error:
        remedy = f"there are {', '.join(map(str, data)) or 'none'}; name them in --prompt and --completion"
        raise BadInput(f"{label}: has no field {error}; {remedy}") from None
    except ValueError as error:
        raise BadInput(f"--prompt or --completion {template!r}: {error}; write fields as {{name}}") from None
    return "".join(parts)


def divided(rows: Sequence[Row], held_out: float) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and rows that are kept for scoring in the order of their hashes.

    Raises:
        BadInput: one of the two is empty.
    """
    kept = sorted((row for row in rows if row.place < held_out), key=lambda row: row.place)
    train = [row for row in rows if row.place >= held_out]
    if not train or not kept:
        raise BadInput(f"{len(rows)} rows: too few to train on and to hold out {held_out:.0%} of them; give more")
    return train, kept


def tokens_of(tokenizer: Any, row: Row) -> Tokens:
    """A row with the end token. Spaces at the end of the prompt belong to the answer, as with lm-eval."""
    prompt = row.prompt.rstrip()
    whole: list[int] = tokenizer(row.prompt + row.completion).input_ids
    before = len(tokenizer(prompt).input_ids) if prompt else 0
    end = tokenizer.eos_token_id
    return whole + ([end] if end is not None and whole[-1:] != [end] else []), min(before, len(whole) - 1)


def train_expert(
    base: Path, rows: Sequence[Row], out: Path, settings: Settings, progress: Progress, label: str, named: str
) -> Trained:
    """Train one expert and write it as an adapter, or as a checkpoint; it appears when it is whole.

    Args:
        base: folder of the base model.
        rows: to train on.
        out: folder to make.
        settings: of the training.
        progress: shows steps and loss.
        label: the expert's name.
        named: the base's reference, which an adapter notes.

    Raises:
        BadInput: ``out`` is there, or no row is short enough.
        Failed: the loss is not finite.
    """
    from transformers import AutoModelForCausalLM

    if out.exists():
        raise BadInput(f"{out}: is there already; remove it or take another name")
    tokenizer = load_tokenizer(base, str(base), "put one there")
    tokenised = [tokens_of(tokenizer, row) for row in rows]
    examples = [one for one in tokenised if 2 <= len(one[0]) <= settings.longest]
    if not examples:
        raise BadInput(f"{label}: no row has {settings.longest} tokens or fewer; raise --longest")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(settings.seed)
        model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32, **OFFLINE)
        model = model if settings.full else _with_adapter(model, settings, named)
        losses = _train(model, examples, settings, progress, label)
        partial = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(partial)
        if settings.full:
            tokenizer.save_pretrained(partial)
        (partial / "README.md").unlink(missing_ok=True)  # peft's form for a card, not filled in
        _check(base, partial, str(out), full=settings.full)
        partial.rename(out)
    tenth = max(1, len(losses) // 10)
    ends = (sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth)
    return Trained(len(examples), sum(len(ids) for ids, _ in examples), *ends)


def _check(base: Path, made: Path, label: str, *, full: bool) -> None:
    """Read what was written as those do who use it, before it gets its name.

    Raises:
        BadInput: it can't be loaded, or holds NaN or infinity.
    """
    try:
        if full:
            check_loadable(made, label)
        check_finite(open_checkpoint(made) if full else LoraSource(open_checkpoint(base), made), label)
    except BadInput:
        shutil.rmtree(made)
        raise


def _with_adapter(model: Any, settings: Settings, named: str) -> Any:
    """The model with a LoRA adapter on every linear layer but the head (Hu et al. 2021)."""
    from peft import LoraConfig, get_peft_model

    rank = settings.rank
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = named
    return adapted


def _train(model: Any, examples: Sequence[Tokens], settings: Settings, progress: Progress, label: str) -> list[float]:
    """Loss of each step, nats a token."""
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.rate, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / settings.steps)
    generator = torch.Generator().manual_seed(settings.seed)
    batches = _batches(examples, settings.batch_tokens, generator)
    losses: list[float] = []
    model.train()
    with progress.bar(f"train {label}", settings.steps, "steps") as bar:
        for _ in range(settings.steps):
            ids, labels, mask = _padded(next(batches))
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            if not bool(torch.isfinite(loss)):
                raise Failed(f"{label}: the loss is {loss.item()} after {len(losses)} steps; lower --rate")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            decay.step()
            optimizer.zero_grad()
            losses.append(float(loss))
            bar.advance(1, f"loss {losses[-1]:.3f}")
    return losses


def _batches(examples: Sequence[Tokens], tokens: int, generator: torch.Generator) -> Iterator[list[Tokens]]:
    """Batches without end: epochs in random order, cut where the next row would be too much."""
    batch: list[Tokens] = []
    while True:
        for index in torch.randperm(len(examples), generator=generator).tolist():
            longest = max(len(ids) for ids, _ in [*batch, examples[index]])
            if batch and longest * (len(batch) + 1) > tokens:
                yield batch
                batch = []
            batch.append(examples[index])
        if batch:  # an epoch ends a batch, so that few rows still make one
            yield batch
            batch = []


def _padded(batch: Sequence[Tokens]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, labels and mask ``(B, T)``, padded on the right."""
    ids = [torch.tensor(row) for row, _ in batch]
    labels = [torch.tensor([IGNORED] * before + row[before:]) for row, before in batch]
    mask = [torch.ones_like(row) for row in ids]
    return pad_sequence(ids, True), pad_sequence(labels, True, IGNORED), pad_sequence(mask, True)
