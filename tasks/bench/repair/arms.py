"""Ways to repair a cut, each a function of a family and the layers that are left out.

Each adds what it changes to the pool and gives a candidate. ReplaceMe is Shopkhoev et al. 2025 (arXiv 2505.02819): with
M what leaves the MLP of the last layer before the cut and Y the stream beside it, a square matrix T for which M T + Y
comes close to the stream X behind the cut, by least squares or by the cosine; it is folded into the second matrix of
the MLP. It has no ridge, no weights, and sees every token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from models.candidate import Candidate, SourceLayer
from models.paths.folded import Fold, RepairedSource
from models.paths.prefix import Requests
from models.paths.repair import Seam, add_batch, seams_of, solved, sums_of, watched
from models.paths.threads import single_threads
from tasks.bench.repair.ground import MERGE, Ground, Held

TOKENS, RIDGE = 8_000, 0.01
"""Of a calibration that serves a whole search."""
MORE_TOKENS, LOW_RIDGE = 24_000, 0.003
"""Of one that serves a member of the front."""

Cut = tuple[int, ...]
"""Layers that are left out."""

_NUMBERS = itertools.count()


def cut_path(ground: Ground, cut: Cut, model: str = MERGE) -> Candidate:
    """A model less some of its layers."""
    return Candidate(model, tuple((model, layer) for layer in range(ground.layers) if layer not in cut))


def add(ground: Ground, base: str, changed: Mapping[str, Tensor]) -> str:
    """Let a model take part that has other tensors than one in the pool; its name there."""
    name = f"{base}~{next(_NUMBERS)}"
    ground.pool.add(name, Held(ground.pool._source(base), changed, name))
    return name


def forget(ground: Ground) -> None:
    """Let the pool forget every changed model."""
    for name in ground.pool.names:
        if "~" in name:
            ground.pool.discard(name)


def repaired(ground: Ground, path: Candidate, folds: Mapping[Seam, Fold]) -> Candidate:
    """A path whose seams are repaired by what was calibrated; those without a fold are left alone."""
    steps: list[SourceLayer] = list(path.path)
    for position, seam in seams_of(path, ground.layers).items():
        if seam in folds:
            steps[position] = add_fold(ground, seam.model, seam.layer, folds[seam]), seam.layer
    return Candidate(path.host, tuple(steps))


def add_fold(ground: Ground, model: str, layer: int, fold: Fold) -> str:
    """Let a model take part one layer of which is refitted; its name in the pool."""
    name = f"{model}~{next(_NUMBERS)}"
    ground.pool.add(name, RepairedSource(ground.pool._source(model), layer, lambda: fold, name))
    return name


def runs(layers: int, longest: int, model: str = MERGE) -> list[Seam]:
    """All seams of one model that leave out so many layers at most in one piece."""
    return [
        Seam(model, layer, model, following)
        for layer in range(layers - 1)
        for following in range(layer + 2, min(layer + 1 + longest, layers) + 1)
    ]


def seams(ground: Ground, cuts: Iterable[Cut]) -> list[Seam]:
    """The seams of some cuts, each once; layer 0 has nothing before it."""
    return sorted({seam for cut in cuts for seam in seams_of(cut_path(ground, cut), ground.layers).values()})


def replace_me(ground: Ground, cuts: Sequence[Cut], requests: Requests, cosine: bool) -> list[Candidate]:
    """ReplaceMe's T for each seam of some cuts, from the uncut model's activations."""
    wanted = seams(ground, cuts)
    layers = {seam.layer for seam in wanted}
    seen = collect(ground, requests, layers, {seam.next for seam in wanted} | {layer + 1 for layer in layers})
    folds = {}
    for seam in wanted:
        weight = ground.source.tensor(f"model.layers.{seam.layer}.mlp.down_proj.weight").float()
        inner = seen[f"inner {seam.layer}"] @ weight.T
        beside = seen[f"stream {seam.layer + 1}"] - inner
        turn = (by_cosine if cosine else by_squares)(inner, beside, seen[f"stream {seam.next}"])
        folds[seam] = Fold(turn.T @ weight - weight)
    return [repaired(ground, cut_path(ground, cut), folds) for cut in cuts]


def by_squares(inner: Tensor, beside: Tensor, target: Tensor) -> Tensor:
    """T = (MᵀM)⁻¹ Mᵀ (X − Y), ``(D, D)``, of activations ``(N, D)``."""
    found: Tensor = torch.linalg.lstsq(inner.double(), (target - beside).double()).solution
    return found.float()


def by_cosine(inner: Tensor, beside: Tensor, target: Tensor, epochs: int = 30, rate: float = 1e-3) -> Tensor:
    """T of the least mean cosine distance between M T + Y and X: Adam from the identity, batches of 1,024 tokens.

    The paper takes 10 epochs at a rate of 1e-4 over a set of texts that is many times as large.
    """
    turn = torch.eye(inner.shape[1], requires_grad=True)
    optimiser = torch.optim.Adam([turn], lr=rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(inner), generator=generator).split(1024):  # type: ignore[no-untyped-call]
            found = inner[rows] @ turn + beside[rows]
            distance = 1 - torch.cosine_similarity(found, target[rows], dim=1).mean()
            optimiser.zero_grad()
            distance.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return turn.detach()


def collect(ground: Ground, requests: Requests, layers: set[int], streams: set[int]) -> dict[str, Tensor]:
    """What enters the second matrix of some layers' MLPs, ``inner L``, and some streams, ``stream L``: all tokens."""
    parts: dict[str, list[Tensor]] = {}

    def see(batch: object) -> dict[str, Tensor]:
        with torch.inference_mode():
            found = watched(ground.pool, MERGE, batch, layers)  # type: ignore[arg-type]
            inner = {f"inner {one}": found.inner[one] for one in layers}
            return {f"stream {one}": found.stream[one] for one in streams} | inner

    with single_threads(torch.get_num_threads()) as workers:
        for seen in workers.map(see, requests.batches):
            for name, tensor in seen.items():
                parts.setdefault(name, []).append(tensor)
    return {name: torch.cat(some).clone() for name, some in parts.items()}


def growing(
    ground: Ground, cut: Cut, sizes: Sequence[int], ridges: Sequence[float]
) -> dict[tuple[int, float], dict[Seam, Fold]]:
    """The folds of a cut from more and more tokens, with several ridges; no text is passed through twice."""
    sums, done = sums_of(ground.pool, seams(ground, [cut])), 0
    found: dict[tuple[int, float], dict[Seam, Fold]] = {}
    for size in sizes:
        requests = ground.texts(size - done, skip=done // len(ground.tasks))
        done = size
        with torch.inference_mode():
            for batch in requests.batches:
                streams = {MERGE: watched(ground.pool, MERGE, batch, {layer for _, layer in sums})}
                for one in sums.values():
                    add_batch(ground.pool, one, streams)
            for ridge in ridges:
                found[size, ridge] = {seam: fold for one in sums.values() for seam, fold in solved(one, ridge).items()}
    return found
