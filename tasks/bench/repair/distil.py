"""A short distillation of a repaired cut to the uncut merge, on texts that its repair has not seen."""

from __future__ import annotations

from itertools import cycle, islice

import torch
from torch import Tensor, nn

from models.candidate import Candidate
from models.paths.pool import shallow_clone
from models.paths.prefix import Batch, Requests
from tasks.bench.repair.arms import add
from tasks.bench.repair.ground import MERGE, Ground
from tasks.bench.repair.halves import MLP

STEPS, RATE, TOKENS = 80, 5e-5, 256
"""Optimiser steps, Adam's learning rate (it falls to zero), tokens of a step."""


def distilled(ground: Ground, candidate: Candidate, requests: Requests) -> Candidate:
    """Train the second matrix of the MLP of each layer that was repaired, in single precision.

    The loss is the divergence (Kullback and Leibler) from the uncut merge's distribution of each token of an answer.

    Args:
        ground: the family.
        candidate: a repaired path; what is trained are its layers that aren't the merge's own.
        requests: texts in batches of about ``TOKENS``; they are passed over as often as it takes.
    """
    ends, layers = ground.pool.ends(MERGE), list(range(ground.layers))
    blocks: list[tuple[nn.Module, int]] = []
    trained: dict[int, nn.Parameter] = {}
    for position, (model, layer) in enumerate(candidate.path):
        block = shallow_clone(ground.pool.block(model, layer))
        if model != MERGE:
            down = block.get_submodule(MLP)
            trained[position] = nn.Parameter(down.get_parameter("weight").detach().clone().float())
        blocks.append((block, layer))
    optimiser = torch.optim.Adam(trained.values(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, STEPS)
    for batch in islice(cycle(requests.batches), STEPS):
        assert isinstance(batch, Batch)  # noqa: S101 (texts)
        hidden, calls = ends.embed(batch.inputs)
        with torch.no_grad():
            wanted = hidden
            for layer in layers:
                wanted = calls[layer].replay(ground.pool.block(MERGE, layer), wanted)
            teacher = ends.logits(wanted[batch.row, batch.column]).float().log_softmax(dim=-1)
        for position, (block, layer) in enumerate(blocks):
            if position in trained:
                down = block.get_submodule(MLP)
                down._parameters["weight"] = trained[position].to(ground.pool.dtype)  # type: ignore[assignment]
            hidden = calls[layer].replay(block, hidden)
        student = ends.logits(hidden[batch.row, batch.column]).float().log_softmax(dim=-1)
        loss: Tensor = (teacher.exp() * (teacher - student)).sum(dim=-1).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    steps = list(candidate.path)
    for position, parameter in trained.items():
        model, layer = steps[position]
        steps[position] = add(ground, model, {f"model.layers.{layer}.{MLP}.weight": parameter.detach()}), layer
    return Candidate(candidate.host, tuple(steps))
