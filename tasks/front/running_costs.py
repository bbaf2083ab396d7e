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
class Setting:
    """What costs depend on, beside the depth."""

    family: str
    """Digest of base and experts."""
    dtype: str
    device: str
    threads: int
    host: str
    processor: str
    torch: str
    transformers: str

    @classmethod
    def now(cls, workspace: Workspace) -> Setting:
        """That of a profile on this machine."""
        profile, version = workspace.profile, importlib.metadata.version
        machine = (platform.node(), processor(), version("torch"), version("transformers"))
        return cls(family_digest(workspace), profile.dtype, profile.device, profile.threads, *machine)

    def file(self, workspace: Workspace) -> Path:
        """Where its costs are kept; a state folder may travel, and a profile change back and forth."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()
        return workspace.state / "costs" / f"{workspace.name}-{digest[:16]}.json"


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

    setting: Setting
    machine: str = ""
    """What computed, in the words of its maker."""
    costs: tuple[RunningCost, ...] = ()

    @property
    def by_depth(self) -> dict[int, RunningCost]:
        """The costs by the layers that a token passes."""
        return {one.layers: one for one in self.costs}

    def told(self) -> RunningCosts:
        """For tables, with a word on how they were measured."""
        if not self.costs:
            return RunningCosts()
        one = self.setting
        how = f"{self.machine}, {one.device}, {one.dtype}, {one.threads} CPU threads"
        return RunningCosts(self.by_depth, f"what models take to run was measured on this machine: {how}")


def running_costs(workspace: Workspace, front: Front, progress: Progress | None = None) -> RunningCosts:
    """The costs of all depths of a front, those of its references included; measured where they aren't known.

    Where they can't be measured, such as without the models, the note says why: a front is shown all the same. Nothing
    is fetched for it.
    """
    kept = read(workspace)
    try:
        if missing := depths(front) - kept.by_depth.keys():
            kept = measure(workspace, front, missing, kept, progress or Progress())
            with suppress(OSError):  # what can't be kept is measured again
                write_text(kept.setting.file(workspace), json.dumps(asdict(kept), indent=1) + "\n")
    except (BadInput, Failed, OSError, RuntimeError, MemoryError) as error:
        reason = one_line(error, 300).replace(f"{workspace.root}/", "")
        return RunningCosts(kept.by_depth, f"what members take to run is not known: {reason}")
    return kept.told()


def known_costs(workspace: Workspace) -> RunningCosts:
    """The costs that were measured on this machine before; nothing is measured."""
    return read(workspace).told()


def depths(front: Front) -> set[int]:
    """Layers that a token passes in the members of a front, and in what it is held against, where it says so."""
    found = {one.candidate.depth for one in front.members if len(one.path) <= DEEPEST * front.layers}
    return found | ({front.layers} if front.references and "layers" in front.objectives else set())


def read(workspace: Workspace) -> Kept:
    """What is kept for a profile on this machine; nothing where there is no such file, or one that is damaged."""
    setting = Setting.now(workspace)
    file = setting.file(workspace)
    try:
        kept = validate(Kept, read_object(file.parent, file.name), str(file))
    except BadInput:
        return Kept(setting)
    return kept if kept.setting == setting else Kept(setting)


def measure(workspace: Workspace, front: Front, missing: Collection[int], kept: Kept, progress: Progress) -> Kept:
    """What is kept, with the costs of further depths, each of the first member that has it.

    Raises:
        BadInput: the models or the device aren't here, or the front is of others.
    """
    import torch

    threads = torch.get_num_threads()
    with progress.bar("measuring what members take to run", len(missing), "depths") as bar:
        pool = base_pool(workspace)
        if front.layers > pool.layers:
            raise BadInput(f"front.json: has {front.layers} layers, the base {pool.layers}: it is of other models")
        paths = {one.candidate.depth: [layer for _, layer in one.path] for one in reversed(front.members)}
        chosen = [paths.get(depth, range(front.layers)) for depth in sorted(missing)]
        candidates = [Candidate("base", tuple(("base", layer) for layer in path)) for path in chosen]
        torch.set_num_threads(workspace.profile.threads)
        try:
            found = measured(pool, candidates, bar.advance)
        finally:
            torch.set_num_threads(threads)
    cuda = pool.device.type == "cuda"
    machine = torch.cuda.get_device_name(pool.device) if cuda else kept.setting.processor
    return Kept(kept.setting, machine, (*kept.costs, *found))


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
