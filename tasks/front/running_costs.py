"""What the members of a front take to run on this machine: measured once for each depth, and kept in the state folder.

Weights don't change it, so the base's layers stand for those of the members: nothing has to be merged.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.candidate import Candidate
from models.errors import BadInput, Failed, one_line
from models.files import read_object, validate
from models.paths.latency import BATCH, RunningCost
from models.paths.latency import running_costs as measured
from tasks.front.found import family_digest
from tasks.front.front import Front
from tasks.project.family import load_family
from tasks.project.progress import Progress
from tasks.project.records import write_text
from tasks.project.references import finder, hub_parts
from tasks.project.workspace import Workspace

if TYPE_CHECKING:  # it imports transformers, and costs that are known are shown without it
    from models.paths.pool import Pool

DEEPEST = 4
"""Deepest path that is measured, over the layers of the base."""


@dataclass(frozen=True)
class RunningCosts:
    """What models take to run, by the layers that a token passes, as tables show it."""

    of: Mapping[int, RunningCost] = field(default_factory=dict)
    note: str = ""
    """How it was measured, or why it is not known."""

    @property
    def headings(self) -> tuple[str, ...]:
        """Of the columns; none where nothing is known."""
        if not self.of:
            return ()
        unit = next(iter(self.of.values())).unit
        names = ("parameters", f"ms/{unit} ×1", f"×{BATCH}")
        return names if unit == "image" else (*names, "KV B/token")

    def cells(self, depth: int) -> tuple[str, ...]:
        """Of a model of so many layers: one a heading, empty where it was not measured."""
        cost = self.of.get(depth)
        if cost is None:
            return ("",) * len(self.headings)
        held = () if cost.cache_bytes is None else (f"{cost.cache_bytes:,.0f}",)
        return (short(cost.parameters), f"{cost.ms_1:.3g}", f"{cost.ms_32:.3g}", *held)

    def to_json(self, depth: int) -> dict[str, Any] | None:
        """Of a model of so many layers, as ``--json`` prints it."""
        return asdict(self.of[depth]) if depth in self.of else None


@dataclass(frozen=True)
class Kept:
    """What a file of costs holds."""

    note: str
    costs: tuple[RunningCost, ...]


def running_costs(workspace: Workspace, front: Front, progress: Progress | None = None) -> RunningCosts:
    """The costs of all depths of a front, those of its references included; measured where they aren't known.

    Where they can't be measured, such as without the models, the note says why: a front is shown all the same. Nothing
    is fetched for it.
    """
    kept = known_costs(workspace)
    try:
        if missing := depths(front) - kept.of.keys():
            kept = measure(workspace, front, missing, kept, progress or Progress())
            with suppress(OSError):  # what can't be kept is measured again
                content = asdict(Kept(kept.note, tuple(kept.of.values())))
                write_text(file_of(workspace), json.dumps(content, indent=1) + "\n")
    except (BadInput, Failed, OSError, RuntimeError, MemoryError) as error:
        reason = one_line(error, 300).replace(f"{workspace.root}/", "")
        return RunningCosts(kept.of, f"what members take to run is not known: {reason}")
    return kept


def known_costs(workspace: Workspace) -> RunningCosts:
    """The costs that were measured on this machine before; none where there is no such file, or one that is damaged."""
    file = file_of(workspace)
    try:
        kept = validate(Kept, read_object(file.parent, file.name), str(file))
    except BadInput:
        return RunningCosts()
    return RunningCosts({one.layers: one for one in kept.costs}, kept.note)


def file_of(workspace: Workspace) -> Path:
    """Where a profile's costs are kept, named by all that they depend on beside the depth: the models, how they are
    run, and this machine. A state folder may travel, and a profile change back and forth.
    """
    profile, version = workspace.profile, importlib.metadata.version
    machine = [platform.node(), processor(), version("torch"), version("transformers")]
    setting = [family_digest(workspace), profile.dtype, profile.device, profile.threads, *machine]
    digest = hashlib.sha256(json.dumps(setting).encode()).hexdigest()
    return workspace.state / "costs" / f"{workspace.name}-{digest[:16]}.json"


def depths(front: Front) -> set[int]:
    """Layers that a token passes in the members of a front, and in what it is held against, where it says so."""
    found = {one.candidate.depth for one in front.members if len(one.path) <= DEEPEST * front.layers}
    return found | ({front.layers} if front.references and "layers" in front.objectives else set())


def measure(
    workspace: Workspace, front: Front, missing: Collection[int], kept: RunningCosts, progress: Progress
) -> RunningCosts:
    """What is known, with the costs of further depths, each of the first member that has it.

    Raises:
        BadInput: the models or the device aren't here, or the front is of others.
    """
    import torch

    threads, profile = torch.get_num_threads(), workspace.profile
    with progress.bar("measuring what members take to run", len(missing), "depths") as bar:
        pool = base_pool(workspace)
        if front.layers > pool.layers:
            raise BadInput(f"front.json: has {front.layers} layers, the base {pool.layers}: it is of other models")
        paths = {one.candidate.depth: [layer for _, layer in one.path] for one in reversed(front.members)}
        chosen = [paths.get(depth, range(front.layers)) for depth in sorted(missing)]
        candidates = [Candidate("base", tuple(("base", layer) for layer in path)) for path in chosen]
        torch.set_num_threads(profile.threads)
        try:
            found = measured(pool, candidates, bar.advance)
        finally:
            torch.set_num_threads(threads)
    machine = torch.cuda.get_device_name(pool.device) if pool.device.type == "cuda" else processor()
    how = f"{machine}, {profile.device}, {profile.dtype}, {profile.threads} CPU threads"
    costs = {**kept.of, **{one.layers: one for one in found}}
    return RunningCosts(costs, f"what models take to run was measured on this machine: {how}")


def base_pool(workspace: Workspace) -> Pool:
    """A pool of the base alone, with the vocabulary, or the head, that members have.

    Raises:
        BadInput: a model of the family is missing, or the device is.
    """
    import torch

    from models.sources.lora import open_model
    from models.sources.vocabulary_source import share_vocabulary
    from tasks.objectives.images.heads import family_heads

    family, profile = load_family(workspace), workspace.profile
    references = dict.fromkeys((family.base, *family.experts.values()))
    for one in hub_parts(references):
        if one.cached() is None:
            raise BadInput(f"{one}: not fetched yet; `hm3 run --profile {workspace.name}` fetches it")
    if profile.device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"profiles/{workspace.name}.yaml: device: {profile.device} isn't here")
    find = finder(workspace)
    base = share_vocabulary({one: open_model(one, find) for one in references})[family.base]

    from models.paths.pool import Pool
    from models.sources.architecture import architecture_of

    if architecture_of(base.config).classes == "head":
        base = family_heads(workspace).on(base)
    pool = Pool(base.config, profile.device, getattr(torch, profile.dtype), max_bytes=2**62)  # it all runs at once
    pool.add("base", base)
    return pool


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def short(count: int) -> str:
    """A number of parameters in three digits: ``4.1k``, ``0.72M``, ``134M``, ``6.74B``."""
    unit, size = ("B", 1e9) if count >= 1e9 else ("M", 1e6) if count >= 1e5 else ("k", 1e3)
    return f"{float(f'{count / size:.3g}'):g}{unit}"
