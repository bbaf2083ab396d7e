"""A pool whose models live in Ray workers: their weights go through the object store, so each node holds them once.

The driver keeps what names and digests need. Jobs (:class:`models.paths.pool.Job`) go out with candidates and recipes
that these need; what comes back is what the same job gives in this process, bit for bit.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import ray
import torch
from torch import Tensor

from models.candidate import Candidate
from models.errors import Failed, one_line
from models.merge.recipe import Recipe
from models.merge.source import MergedSource
from models.paths.folded import RepairedSource
from models.paths.pool import Job, Pool, unwatched
from models.sources.checkpoint import Source
from tasks.schema.profile import Profile
from tasks.scoring.fleet import Fleet, Need
from tasks.scoring.where import LOCAL

JOBS = 16
"""Jobs that are kept for later calls, by the driver in the object store and by each worker."""


@dataclass(frozen=True)
class Shared:
    """A model in the object store."""

    config: dict[str, Any]
    names: tuple[str, ...]
    groups: Mapping[str, Any]
    """Reference of each tensor group: name → array and name of the dtype."""
    digests: Mapping[str, str]
    """Of each tensor group."""


class SharedSource:
    """A model that is read from the object store, without a copy: a :class:`models.sources.checkpoint.Source`."""

    def __init__(self, shared: Shared, group: Callable[[str], str]) -> None:
        self.config = shared.config
        self._shared = shared
        self._group = group
        self._held: dict[str, dict[str, Tensor]] = {}

    def names(self) -> list[str]:
        """See ``Source``."""
        return list(self._shared.names)

    def tensor(self, name: str) -> Tensor:
        """See ``Source``: a view of the store's memory, so never write into it."""
        group = self._group(name)
        if group not in self._held:
            stored = ray.get(self._shared.groups[group])
            self._held[group] = {
                one: torch.from_numpy(array).view(getattr(torch, dtype)) for one, (array, dtype) in stored.items()
            }
        return self._held[group][name]

    def digest(self, group: str) -> str:
        """See ``Source``; the driver, which makes the keys of the journal, has computed them."""
        return self._shared.digests[group]


@dataclass(frozen=True)
class Added:
    """A recipe of the pool."""

    name: str
    recipe: Recipe
    models: Mapping[str, str]
    """What the recipe calls each model → its name in the pool."""


@dataclass(frozen=True)
class Mended:
    """A model of the pool with one layer repaired."""

    name: str
    model: str
    layer: int
    fold: list[Any]
    """Reference of what is added to it, in a list so that it isn't fetched for every call."""


class Worker:
    """Keeps a pool and does jobs with it; the class of the actors."""

    def __init__(self, config: dict[str, Any], profile: Profile, shared: Mapping[str, Shared]) -> None:
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        logging.getLogger("transformers").setLevel(logging.ERROR)
        torch.set_num_threads(profile.threads)
        torch.use_deterministic_algorithms(True)
        self._device = profile.device
        self._pool = Pool(config, profile.device, getattr(torch, profile.dtype), profile.pool_bytes)
        group = self._pool.architecture.group
        self._sources: dict[str, Source] = {name: SharedSource(one, group) for name, one in shared.items()}
        for name, source in self._sources.items():
            self._pool.add(name, source)
        self._job = lru_cache(JOBS)(ray.get)

    def ping(self) -> int:
        """Its process id: it is there."""
        return os.getpid()

    def work(self, job: list[Any], recipes: Sequence[Added | Mended], candidates: Sequence[Candidate]) -> list[Any]:
        """What a job makes of candidates.

        Args:
            job: its reference, in a list so that it isn't fetched for every call.
            recipes: what the candidates need, each behind what it needs itself.
            candidates: what to compute it with.
        """
        for one in recipes:
            if one.name in self._sources:
                continue
            if isinstance(one, Mended):
                block = partial(self._pool.block, one.model, one.layer)
                fold = partial(ray.get, one.fold[0])
                made: Source = RepairedSource(self._sources[one.model], one.layer, fold, one.name, block)
            else:
                models = {name: self._sources[mine] for name, mine in one.models.items()}
                made = MergedSource(one.recipe, models.__getitem__, self._device)
            self._sources[one.name] = made
            self._pool.add(one.name, made)
        return self._pool.run(self._job(*job), candidates, unwatched)


class RayPool(Pool):
    """The pool of a family whose jobs are done by the workers of a Ray cluster."""

    def __init__(self, config: dict[str, Any], profile: Profile, address: str, say: Callable[[str], None]) -> None:
        """Join the cluster, or start one on this machine. Workers start with the first job.

        Args:
            config: the base's ``config.json``.
            profile: the model family.
            address: what ``tasks.scoring.where.settle`` gave.
            say: gets a line whenever workers come or go.

        Raises:
            Failed: the cluster does not answer.
        """
        super().__init__(config, "cpu", getattr(torch, profile.dtype), profile.pool_bytes)
        self.device = torch.device(profile.device)  # of the workers: no block is built here
        self._config = config
        self._profile = profile
        self._say = say
        self._shared: dict[str, Source] = {}
        self._added: dict[str, Added | Mended] = {}
        self._repaired: dict[str, RepairedSource] = {}
        self._jobs: OrderedDict[int, tuple[Job, Any]] = OrderedDict()
        self._fleet: Fleet | None = None
        self._opening = threading.Lock()
        join(address)

    def add(self, name: str, source: Source) -> None:
        """See ``Pool``."""
        super().add(name, source)
        if isinstance(source, MergedSource):
            models = {one: self._name(one, made) for one, made in source.inputs.items()}
            self._added[name] = Added(name, source.recipe, models)
        elif isinstance(source, RepairedSource):
            self._repaired[name] = source
        else:
            self._shared[name] = source

    def discard(self, name: str) -> None:
        """See ``Pool``; workers keep what they have, under a name that follows from its content."""
        super().discard(name)
        self._added.pop(name, None)
        self._repaired.pop(name, None)

    @property
    def lanes(self) -> int:
        """Twice as many as there are workers, so that none waits for the driver."""
        return 2 * (self._profile.ray.workers or max(self.fleet.size, self.fleet.room))

    @property
    def fleet(self) -> Fleet:
        """The workers, started when first asked for."""
        with self._opening:
            if self._fleet is None:
                group = self.architecture.group
                shared = ray.put({name: share(source, group) for name, source in self._shared.items()})
                wanted = self._profile.ray
                gpus = wanted.gpus if self.device.type == "cuda" else 0
                cpus = wanted.cpus if wanted.cpus is not None else (1 if gpus else self._profile.threads)
                actor = ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
                hire = partial(actor.remote, self._config, self._profile, shared)
                self._fleet = Fleet(hire, Need(cpus, gpus), wanted.workers, wanted.minutes * 60, self._say)
            return self._fleet

    def run(self, job: Job, candidates: Sequence[Candidate], on_done: Callable[[float], None]) -> list[Any]:
        """See ``Pool``; from any thread."""
        for candidate in candidates:
            self.check(candidate)
        needed: dict[str, Added | Mended] = {}
        with self._opening:  # a fold goes into the object store once
            for name in dict.fromkeys(name for one in candidates for name in one.models):
                self._need(name, needed)
        fleet = self.fleet
        units = float(sum(one.depth for one in candidates))
        found: list[Any] = fleet.call(id(job), units, [self._reference(job)], list(needed.values()), list(candidates))
        on_done(len(candidates))
        return found

    def close(self) -> None:
        """Let the workers go."""
        if self._fleet is not None:
            self._fleet.close()
            self._fleet = None

    def _reference(self, job: Job) -> Any:
        """The job in the object store; kept, so that its number is not given to another."""
        with self._opening:
            if id(job) not in self._jobs:
                self._jobs[id(job)] = job, ray.put(job)
                while len(self._jobs) > JOBS:
                    self._jobs.popitem(last=False)
            self._jobs.move_to_end(id(job))
            return self._jobs[id(job)][1]

    def _need(self, name: str, needed: dict[str, Added | Mended]) -> None:
        if name in self._repaired:  # only now: its fold was still to be computed when it was added
            source = self._repaired[name]
            of = self._name("", source.source)
            self._added[name] = Mended(name, of, source.layer, [ray.put(source.fold())])
            del self._repaired[name]
        if name in self._added and name not in needed:
            one = self._added[name]
            for model in [one.model] if isinstance(one, Mended) else one.models.values():
                self._need(model, needed)
            needed[name] = one

    def _name(self, reference: str, source: Source) -> str:
        if isinstance(source, MergedSource):
            return source.recipe.name or reference
        return next(name for name, one in self._shared.items() if one is source)


def share(source: Source, group: Callable[[str], str]) -> Shared:
    """Put a model into the object store, a group of tensors at a time."""
    names = source.names()
    groups = {}
    for wanted in dict.fromkeys(map(group, names)):
        stored = {}
        for name in names:
            if group(name) == wanted:
                tensor = source.tensor(name).contiguous()
                dtype = str(tensor.dtype).removeprefix("torch.")
                plain = tensor.view(torch.int16) if dtype == "bfloat16" else tensor
                stored[name] = plain.cpu().numpy(), dtype
        groups[wanted] = ray.put(stored)
    return Shared(source.config, tuple(names), groups, {wanted: source.digest(wanted) for wanted in groups})


def join(address: str) -> None:
    """Join a cluster, or with the address ``local`` start one on this machine.

    Raises:
        Failed: it does not answer.
    """
    if ray.is_initialized():
        return
    settings: dict[str, Any] = {}
    if address == LOCAL:
        folder = tempfile.mkdtemp(prefix="hm3-ray-")  # not in the state: its sockets need a short path
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # called after Ray's own
        settings = {"include_dashboard": False, "_temp_dir": folder}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "a cluster on this machine" if address == LOCAL else address
        raise Failed(f"ray: {where} does not answer: {one_line(error, 300)}") from None
