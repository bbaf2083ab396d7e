"""Repaired seams in a run: where calibration items lie, and behind which layers a repair gains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.candidate import Candidate
from models.errors import BadInput
from models.front import Array
from models.merge.blocks import Repair
from models.paths.calibration import Calibration
from models.paths.prefix import PathLikelihoods, Requests
from models.paths.vision import ImageItems, image_requests
from tasks.objectives.calibration import calibration_of, counted
from tasks.objectives.images.objective import ImageObjective
from tasks.project.progress import Bar, Progress
from tasks.project.records import Anchors, Repaired
from tasks.project.workspace import Workspace
from tasks.scoring.engine import Engine
from tasks.scoring.repairs import Repairs

FILE = "anchors/calibration.safetensors"
"""Under ``runs/PROFILE``."""

RUNGS = (8, 32)
"""Held-out items on which a layer is tried: on the first few, and on all where those leave it open."""

CLEAR, GAIN = 3.0, 1.0
"""Standard errors by which a repair must gain on the first items, and on all."""


def begin_repairs(workspace: Workspace, engine: Engine, models: Sequence[str], progress: Progress) -> Repaired | None:
    """Calibrate models, see behind which layers a repair gains, and let the engine repair from now on.

    It gains where the first of the models, one layer left out, loses less on held-out items with the layer before
    refitted than without: where layers were trained to be left out there is nothing to repair.

    Writes the calibration items beside the anchors. None where the profile repairs nothing.

    Raises:
        BadInput: there are too few calibration items.
    """
    if not workspace.profile.repairs or engine.layers < 2:
        return None
    with progress.bar("calibration items"):
        calibration = calibration_of(workspace, engine.tokenizer)
    said = counted(workspace, calibration)
    (workspace.run / FILE).parent.mkdir(parents=True, exist_ok=True)
    calibration.write(workspace.run / FILE)
    tried = repairs_of(workspace, engine, calibration, range(engine.layers - 1), models, progress)
    for model in models:
        tried.calibrate(model)
    with progress.bar("trying repairs", engine.layers - 1, "layers") as bar:
        layers, evaluations = gaining(engine, tried, models[0], bar)
    engine.repairs = repairs_of(workspace, engine, calibration, layers, models, progress)
    evaluations += tried.cost * len(models)
    gain = f"it gains behind {len(layers)} of {engine.layers - 1} layers"
    progress.message(f"repair: {said}; {gain}; {evaluations:,} item evaluations")
    return Repaired(calibration.digest, layers, evaluations)


def open_repairs(workspace: Workspace, engine: Engine, anchors: Anchors, progress: Progress) -> None:
    """Let the engine repair as stage `sample` has decided.

    Raises:
        BadInput: the calibration items are missing, or others.
    """
    if anchors.repair is None:
        return
    path = workspace.run / FILE
    calibration = Calibration.read(path)
    if calibration.digest != anchors.repair.rows:
        raise BadInput(f"{path}: not the items of anchors.json; run stage `sample` again, or `dvc pull`")
    models = anchors.anchors or list(engine.family.experts)
    engine.repairs = repairs_of(workspace, engine, calibration, anchors.repair.layers, models, progress)


def repairs_of(
    workspace: Workspace,
    engine: Engine,
    calibration: Calibration,
    layers: Sequence[int],
    models: Sequence[str],
    progress: Progress,
) -> Repairs:
    """Repairs of an engine's models, kept in the state folder."""
    folder = workspace.state / "repairs" / workspace.name
    return Repairs(engine.pool, engine.source, calibration, folder, layers, models, progress)


def gaining(engine: Engine, repairs: Repairs, model: str, bar: Bar) -> tuple[list[int], int]:
    """Layers whose refit gains when the layer behind them is left out, and the item evaluations that it took."""
    held_out = repairs.calibration.held_out()
    open_layers, layers, evaluations, seen = list(range(engine.layers - 1)), [], 0, 0
    gains: dict[int, list[float]] = {layer: [] for layer in open_layers}
    for rung in RUNGS:
        items = held_out.part(seen, rung)
        if not items.tasks or not open_layers:
            break
        seen = rung
        cuts = [_without(model, engine.layers, layer + 1) for layer in open_layers]
        candidates = [one for cut in cuts for one in (cut, repairs.repaired(cut))]
        losses = _losses(engine, items, candidates)
        evaluations += len(items.tasks) * len(candidates)
        last, still = rung >= len(held_out.tasks), []
        for layer, naive, mended in zip(open_layers, losses[::2], losses[1::2], strict=True):
            gains[layer] += (naive - mended).tolist()
            size = _errors_above_zero(gains[layer])
            if last or rung == RUNGS[-1]:
                layers += [layer] if size > GAIN else []
            elif size > CLEAR:
                layers.append(layer)
            elif not size < -GAIN:
                still.append(layer)
        bar.advance(len(open_layers) - len(still))
        open_layers = still if not last else []
    return sorted(layers), evaluations


def _errors_above_zero(values: Sequence[float]) -> float:
    """Mean of values in its standard errors; 0 where they don't vary, as where a repair changes nothing."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)) / spread * len(values) ** 0.5 if spread else 0.0


def repair_members(engine: Engine, members: Sequence[Candidate]) -> int:
    """Let the engine repair members of the front from now on, each on its own activations; the item evaluations."""
    if engine.repairs is None:
        return 0
    engine.repairs = engine.repairs.of_members()
    engine.repairs.prepare(map(engine.repaired, members))
    return engine.repairs.cost_of(members)


def recipe_block(workspace: Workspace, engine: Engine, candidate: Candidate) -> Repair | None:
    """How a recipe says that a member's seams are repaired; None where it has none that are.

    The engine repairs as members are repaired.
    """
    repairs = engine.repairs
    positions = repairs.refitted(candidate) if repairs else ()
    if repairs is None or not positions:
        return None
    return Repair(
        rows=(workspace.run / FILE).relative_to(workspace.root).as_posix(),
        sha256=repairs.rows,
        tokens=repairs.settings.tokens,
        ridge=repairs.settings.ridge,
        dtype=workspace.profile.dtype,
        layers=positions,
        in_turn=repairs.in_turn(candidate),
    )


def _without(model: str, layers: int, gone: int) -> Candidate:
    return Candidate(model, tuple((model, layer) for layer in range(layers) if layer != gone))


def _with_heads(engine: Engine, items: Calibration) -> Requests:
    """Images as requests for the right class, by the head of their task."""
    assert items.pixels is not None  # noqa: S101 (who calls has looked)
    composed, labels = engine.objectives("search").composed, torch.tensor(items.answers)
    found = []
    for task in dict.fromkeys(items.tasks):
        part: ImageObjective = composed[task].parts[0]
        mine = torch.tensor([one == task for one in items.tasks])
        found.append(ImageItems(items.pixels[mine].float(), labels[mine], part.items.head))
    return image_requests(engine.pool, found)


def _losses(engine: Engine, items: Calibration, candidates: Sequence[Candidate]) -> list[Array]:
    """Loss (N,) of each candidate on each item: nats a token of the answer, or of an image's class."""
    requests = _with_heads(engine, items) if items.pixels is not None else items.requests(engine.pool)
    sizes = np.array([1.0] * len(items.tasks) if items.pixels is not None else items.answers)
    found = engine.pool.run(PathLikelihoods(requests), candidates, lambda _: None)
    return [np.nan_to_num(-likelihoods.numpy() / sizes, nan=1e9) for likelihoods, _ in found]
