"""Another way through the trie of prefixes: all states that take the same layer at the same depth pass it as one batch.

Sums are then made in another order: scores agree to rounding, not bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.candidate import SourceLayer
from models.paths.ends import Call
from models.paths.pool import Pool
from models.paths.prefix import Likelihoods, Node, Scorable


def by_depth(pool: Pool, host: str, root: Node, batch: Scorable, found: Likelihoods, hidden_bytes: int) -> None:
    """Score every candidate behind one host on one batch, all states of a depth before the next."""
    ends = pool.ends(host)
    start, calls = ends.embed(batch.inputs)
    most = max(1, hidden_bytes // start.nbytes)
    states = [(root, start)]
    while states:
        takers: dict[SourceLayer, list[tuple[Node, Tensor]]] = {}
        for node, hidden in states:
            for step, child in node.children.items():
                takers.setdefault(step, []).append((child, hidden))
        states = []
        for step, waiting in takers.items():
            block = pool.block(*step)
            for first in range(0, len(waiting), most):
                some = waiting[first : first + most]
                output = repeat(calls[step[1]], len(some)).replay(block, torch.cat([hidden for _, hidden in some]))
                states += zip((node for node, _ in some), torch.split(output, len(start)), strict=True)
        for node, hidden in states:
            if node.candidates:
                found.add(node.candidates, batch, *batch.likelihoods(ends, hidden))


def repeat(call: Call, times: int) -> Call:
    """The call for the same B sequences, ``times`` times one after the other."""
    rows = len(call.hidden)

    def repeated(value: Any) -> Any:
        if isinstance(value, Tensor) and rows > 1 and value.dim() and len(value) == rows:
            return value.repeat(times, *(1,) * (value.dim() - 1))
        return tuple(map(repeated, value)) if isinstance(value, tuple) else value

    options = {name: repeated(value) for name, value in call.options.items()}
    return Call(call.hidden, tuple(map(repeated, call.arguments)), options)
