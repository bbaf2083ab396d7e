"""RegMean++ and layer-wise AdaMerging learn what their merge methods use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from models.errors import BadInput
from models.learned.repaired import repair
from models.learned.texts import Texts, batches, digest, read_texts
from models.merge.source import MergedSource
from models.paths.pool import Pool
from models.sources.checkpoint import Source
from models.sources.loadable import load_tokenizer

MERGED = "merged"
OnStep = Callable[[int, int], None]
"""Is told how many steps are done, and of how many."""


def learn(source: MergedSource, tokenizer: Path, find: Callable[[str], Path], on_step: OnStep) -> None:
    """Let a source learn from the texts that its recipe names, or from its calibration items.

    Args:
        source: whose method learns.
        tokenizer: folder of the tokenizer.
        find: path of a file that the recipe names.
        on_step: is told after each layer, or each step of the optimiser.

    Raises:
        BadInput: texts are missing or hold no tokens, or the models are no language models.
    """
    if source.recipe.repair is not None:
        repair(source, find, on_step)
        return
    group = source.recipe.groups[0]
    if source.architecture.classes:
        raise BadInput(f"merge_method: {source.recipe.merge_method} reads texts, which an encoder of images can't")
    texts = {one.model: read_texts(find(one.texts)) for one in group.sources if one.texts is not None}
    pool = _pool(source)
    reader, rows = load_tokenizer(tokenizer, str(tokenizer), "put one there"), source.setting("rows")
    read = {name: batches(some, reader, rows, pool.max_length) for name, some in texts.items()}
    if empty := [name for name, some in read.items() if not some]:
        raise BadInput(f"{group.place}: {empty[0]}: texts: hold no tokens")
    source.texts = digest([*texts.values()])
    LEARN[source.recipe.merge_method](source, pool, read, on_step)


def regmean_plusplus(source: MergedSource, pool: Pool, read: Mapping[str, Sequence[Texts]], on_step: OnStep) -> None:
    """Merge layer by layer, from Gram matrices of the experts' layers behind those that are merged already.

    The merged layers are held in memory.
    """
    architecture = source.architecture
    inner: dict[int, list[str]] = {}
    for name in source.names():
        layer, _ = architecture.split(name)
        if layer is not None:
            inner.setdefault(layer, []).append(name)
        elif architecture.is_before(name):
            source.learned[name] = ()
    with torch.no_grad():
        ends = pool.ends(MERGED)
        streams = {
            name: [(*ends.embed(one.ids.to(pool.device)), one.real.to(pool.device)) for one in some]
            for name, some in read.items()
        }
        for layer in range(pool.layers):
            grams = {}
            for name, stream in streams.items():
                grams[name] = _grams(pool.block(name, layer), layer, stream)
            for name in inner[layer]:
                part = architecture.live(name).removeprefix(f"{architecture.live(architecture.blocks)}.{layer}.")
                owner = part.removesuffix(".weight")
                found = [grams[expert].get(owner) for expert in read] if part.endswith(".weight") else []
                source.learned[name] = tuple(gram for gram in found if gram is not None)
                source.merged[name] = source.tensor(name)
                del source.learned[name]
            if layer < pool.layers - 1:
                block = pool.block(MERGED, layer)
                streams = {
                    name: [(calls[layer].replay(block, hidden), calls, real) for hidden, calls, real in stream]
                    for name, stream in streams.items()
                }
            on_step(layer + 1, pool.layers)


Stream = list[tuple[Tensor, list[Any], Tensor]]
"""For each batch the hidden states, how each layer is called, and which tokens are real."""


def _grams(block: nn.Module, layer: int, stream: Stream) -> dict[str, Tensor]:
    """Mean of x xᵀ over the real tokens' inputs x of each linear layer of a block, by the layer's name."""
    sums: dict[str, Tensor] = {}
    for hidden, calls, real in stream:

        def note(name: str, inputs: Tensor, real: Tensor = real) -> None:
            if inputs.shape[:2] == real.shape:  # an expert among experts sees some tokens only
                rows = inputs[real]
                sums[name] = sums.get(name, 0) + rows.T @ rows

        watched = [(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear | Conv1D)]
        hooks = [
            module.register_forward_pre_hook(lambda _, inputs, name=name, note=note: note(name, inputs[0]))
            for name, module in watched
        ]
        try:
            calls[layer].replay(block, hidden)
        finally:
            for hook in hooks:
                hook.remove()
    tokens = sum(int(real.sum()) for _, _, real in stream)
    return {name: total / tokens for name, total in sums.items()}


def adamerging(source: MergedSource, pool: Pool, read: Mapping[str, Sequence[Texts]], on_step: OnStep) -> None:
    """Learn a weight for each tensor of each expert by gradient descent; all models are held in memory."""
    architecture, names = source.architecture, source.names()
    first = source.recipe.groups[0].base
    models = {
        name: {one: model.tensor(one).to(pool.device, pool.dtype) for one in names}
        for name, model in source.inputs.items()
    }
    base = models[str(first)]
    moved = {name: torch.stack([models[expert][name] - base[name] for expert in read]) for name in names}
    weights = nn.Parameter(torch.full((len(names), len(read)), float(source.setting("init")), device=pool.device))
    optimizer = torch.optim.Adam([weights], lr=source.setting("lr"))
    steps, clamp = source.setting("steps"), source.setting("clamp")

    def used() -> Tensor:
        return weights.clamp(0, 1) if clamp else weights

    for step in range(steps):
        merged = {
            architecture.live(name): base[name] + torch.tensordot(row.to(pool.dtype), moved[name], 1)
            for name, row in zip(names, used().unbind(), strict=True)
        }
        if architecture.head not in names:
            merged[architecture.live(architecture.head or "")] = merged[architecture.live(architecture.embedding)]
        losses = []
        for some in read.values():
            batch = some[step % len(some)]
            ids = batch.ids.to(pool.device)
            logits = functional_call(pool.skeleton, merged, (ids,), {"use_cache": False}).logits
            losses.append(entropy(logits[batch.real.to(pool.device)]))
        torch.autograd.backward(torch.stack(losses).sum())
        optimizer.step()
        optimizer.zero_grad()
        on_step(step + 1, steps)
    with torch.no_grad():
        source.learned = {name: tuple(row.tolist()) for name, row in zip(names, used(), strict=True)}


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the distributions of logits ``(N, V)``, as fusion_bench computes it."""
    shares = logits.softmax(dim=-1)
    return -(shares * (shares + 1e-8).log()).sum(dim=-1).mean()


LEARN = {"regmean_plusplus": regmean_plusplus, "layer_wise_adamerging": adamerging}


def _pool(source: MergedSource) -> Pool:
    """The experts, and what is merged of them, in their widest number format but at least float32."""
    widest = {model.tensor(model.names()[0]).dtype for model in source.inputs.values()}
    dtype = reduce(torch.promote_types, widest, torch.float32)
    pool = Pool(next(iter(source.inputs.values())).config, source.device, dtype)
    models: dict[str, Source] = {**source.inputs, MERGED: source}
    for name, model in models.items():
        pool.add(name, model)
    return pool
