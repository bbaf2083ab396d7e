"""Scoring: candidates in, item scores out, each looked up in the journal first and written to it at once.

Models live in this process or, with ``HM3_ENGINE=ray``, in the workers of a Ray cluster. A score depends on neither,
nor on the candidates that are scored with it: so chunks may have any size and come back in any order.
"""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.candidate import Candidate
from models.errors import BadInput, Lost, one_line
from models.merge.recipe import Recipe, recipe_name
from models.merge.source import MergedSource
from models.paths.pool import Pool, unwatched
from models.sources.checkpoint import Source
from models.sources.lora import open_model
from models.sources.vocabulary_source import share_vocabulary
from tasks.objectives.objectives import ItemScores, Objectives
from tasks.objectives.parts import OnScored
from tasks.project.family import Family, load_family
from tasks.project.progress import Bar
from tasks.project.references import finder
from tasks.project.workspace import Workspace, remote_state
from tasks.schema.profile import Profile
from tasks.scoring.journal import Entry, Journal, key_of, missing
from tasks.scoring.remote_segments import RemoteSegments
from tasks.scoring.repairs import Repairs
from tasks.scoring.where import EngineName, engine_name, settle

_log = logging.getLogger(__name__)

SCORING_VERSION = 1
"""Raise it whenever the same candidate may score differently than before."""

CHUNK = 16
"""Candidates that are scored together at most, and whose scores are written to the journal together."""

SHARED_CHUNK = 8
"""The same where several chunks are scored at once: with 16, the last one kept the others waiting for longer."""

Chunk = tuple[int, int, Mapping[str, Candidate]]
"""Candidates by their keys that are scored together, and the range of items on which they are."""

OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
"""What torch says."""


@dataclass(frozen=True)
class Scored:
    """A candidate's scores on some items: higher is better, one value an item and task objective."""

    candidate: Candidate
    items: Mapping[str, tuple[float, ...]]
    failed: str | None = None

    def means(self) -> dict[str, float]:
        """The mean over the items of each task objective; empty if it failed."""
        return {name: float(np.mean(values)) for name, values in self.items.items()}

    def mean(self) -> np.ndarray:
        """Scores ``(K_tasks,)``: the mean over the items."""
        return np.array(list(self.means().values()))


class Engine:
    """The pool of a family, the objectives on each split and the journal."""

    def __init__(self, workspace: Workspace, journal: Path | None = None):
        """Open the family; by default with the profile's own journal: in the state folder and any bucket."""
        self.workspace = workspace
        self.family: Family = load_family(workspace)
        self.recipes: dict[str, Recipe] = {}
        remote, mine = None if journal else remote_state(), f"journal/{workspace.name}"
        segments = RemoteSegments(f"{remote}/{mine}") if remote else None
        self.journal = Journal(journal or workspace.state / mine, segments)
        self._objectives: dict[str, Objectives] = {}
        names = dict.fromkeys((self.family.base, *self.family.experts.values()))
        self._find = finder(workspace)
        opened = {name: open_model(name, self._find) for name in names}
        self.tokenizer = opened[self.family.base].tokenizer
        self._sources: dict[str, Source] = share_vocabulary(opened)
        base = self.source(self.family.base)
        profile = workspace.profile
        self.pool = open_pool(base.config, profile, engine_name(workspace.engine))
        self.repairs: Repairs | None = None
        """Repairs seams of what is scored, once anchors are known."""
        self.pool.add("base", base)
        for name, folder in self.family.experts.items():
            self.pool.add(name, self.source(folder))
        # what was imported stays: looking through it for garbage took a third of the time of a merge
        gc.collect()
        gc.freeze()
        self.versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "lm-eval")}

    @property
    def layers(self) -> int:
        """Number of layers of the base, L."""
        return self.pool.layers

    def source(self, reference: str) -> Source:
        """A model by its name in the family, its folder relative to the project, or the name of an added recipe."""
        reference = self.locate(reference)
        if reference in self.recipes:
            return MergedSource(self.recipes[reference], self.source, str(self.pool.home))
        if reference not in self._sources:
            self._sources[reference] = open_model(reference, self._find)
        return self._sources[reference]

    def locate(self, model: str) -> str:
        """What a recipe writes for a model of the pool: a folder, or the name of another recipe."""
        return self.family.base if model == "base" else self.family.experts.get(model, model)

    def add(self, recipe: Recipe) -> Candidate:
        """Let a recipe take part under the name that follows from its content; returns its identity path."""
        name = recipe_name(recipe)
        if name not in self.pool:
            self.recipes[name] = recipe.model_copy(update={"name": name})
            self.pool.add(name, self.source(name))
        return Candidate.identity(name, self.layers)

    def objectives(self, split: str) -> Objectives:
        """Requests of a split, built when first asked for."""
        if split not in self._objectives:
            self._objectives[split] = Objectives(self.workspace, split, self.tokenizer)
        return self._objectives[split]

    def items(self, split: str) -> int:
        """Items of the largest objective of a split: the end of the range that covers them all."""
        objectives = self.objectives(split)
        return max(objectives.count(name) for name in objectives.names)

    def cost(self, split: str, start: int = 0, stop: int | None = None) -> int:
        """Item evaluations that one candidate takes on the items ``[start, stop)`` of every objective."""
        objectives = self.objectives(split)
        counts = [objectives.count(name) for name in objectives.names]
        return sum(min(count, count if stop is None else stop) - min(count, start) for count in counts)

    def scored(
        self,
        candidates: Sequence[Candidate],
        split: str,
        start: int = 0,
        stop: int | None = None,
        bar: Bar | None = None,
    ) -> list[Scored]:
        """Scores on the items ``[start, stop)`` of every objective of a split.

        Args:
            candidates: what to score; each model on the way is in the pool.
            split: ``search``, ``selection`` or ``test``.
            start: first item.
            stop: item after the last, by default all.
            bar: advanced by one for each candidate.
        """
        objectives = self.objectives(split)
        stop = self.items(split) if stop is None else stop
        run = [self.repaired(candidate) for candidate in candidates]
        keys = [self.key(split, content=self.pool.digest(candidate)) for candidate in run]
        advance = bar.advance if bar else unwatched
        work: dict[tuple[int, int], dict[str, Candidate]] = {}
        for candidate, key in zip(run, keys, strict=True):
            for span in missing(self.journal.find(key), start, stop):
                work.setdefault(span, {}).setdefault(key, candidate)
        known = len(candidates) - len({key for spans in work.values() for key in spans})
        if known:
            advance(known)
        if self.repairs is not None:
            self.repairs.prepare(one for by_key in work.values() for one in by_key.values())
        chunks = [chunk for span, by_key in work.items() for chunk in self._chunks(*span, by_key)]
        for (low, high, by_key), scores in self._chunk_scores(objectives, chunks, advance):
            self.journal.append(
                Entry(key, low, high, {name: tuple(values) for name, values in one.items.items()}, one.failed)
                for key, one in zip(by_key, scores, strict=True)
            )
        counts = {name: objectives.count(name) for name in objectives.names}
        expected = {name: min(stop, count) - min(start, count) for name, count in counts.items()}
        return [
            self._read(candidate, self.journal.find(key), expected, start, stop)
            for candidate, key in zip(candidates, keys, strict=True)
        ]

    def key(self, split: str, **parts: object) -> str:
        """The journal's key of what depends on these parts, the items of a split, and how models are run here."""
        profile = self.workspace.profile
        setting = {"dtype": profile.dtype, "device": torch.device(profile.device).type, "split": split}
        versions = {"versions": self.versions, "scoring": SCORING_VERSION}
        return key_of(**parts, **setting, **versions, definition=self.objectives(split).definition)

    def repaired(self, candidate: Candidate) -> Candidate:
        """A candidate as it is run: with its seams repaired, where they are."""
        return candidate if self.repairs is None else self.repairs.repaired(candidate)

    def _chunks(self, start: int, stop: int, by_key: Mapping[str, Candidate]) -> Iterator[Chunk]:
        """Chunks of one size; where several are scored at once, small enough for all, and with common prefixes."""
        found = list(by_key.items())
        size = CHUNK
        if self.pool.lanes > 1:
            found.sort(key=lambda one: (one[1].host, one[1].path))
            size = max(1, min(SHARED_CHUNK, -(-len(found) // self.pool.lanes)))
        for first in range(0, len(found), size):
            yield start, stop, dict(found[first : first + size])

    def _chunk_scores(
        self, objectives: Objectives, chunks: Sequence[Chunk], advance: OnScored
    ) -> Iterator[tuple[Chunk, list[ItemScores]]]:
        """Chunks with their scores, as they come."""

        def scores(chunk: Chunk) -> list[ItemScores]:
            start, stop, by_key = chunk
            return self._bearable(objectives, list(by_key.values()), start, stop, advance)

        lanes = min(self.pool.lanes, len(chunks))
        if lanes <= 1:
            yield from ((chunk, scores(chunk)) for chunk in chunks)
            return
        executor = ThreadPoolExecutor(lanes)
        try:
            asked = {executor.submit(scores, chunk): chunk for chunk in chunks}
            yield from ((asked[one], one.result()) for one in as_completed(asked))
        finally:
            executor.shutdown(cancel_futures=True)

    def _bearable(
        self, objectives: Objectives, candidates: Sequence[Candidate], start: int, stop: int, advance: OnScored
    ) -> list[ItemScores]:
        """Scores of a chunk; if memory doesn't suffice, of its halves. What fails alone has failed."""
        try:
            return objectives.item_scores(self.pool, candidates, start, stop, advance)
        except (MemoryError, RuntimeError) as error:  # torch has a class of its own for GPUs alone
            if not (isinstance(error, (MemoryError, Lost)) or OUT_OF_MEMORY.search(str(error))):
                raise
            reason = one_line(error, 200)
        # not in the block above: while the error is handled, all that was computed is still held
        gc.collect()
        if self.pool.home.type == "cuda":
            torch.cuda.empty_cache()
        half = len(candidates) // 2
        if not half:
            return [ItemScores(failed=f"more than a process bears: {reason}")]
        parts = (candidates[:half], candidates[half:])
        return [one for part in parts for one in self._bearable(objectives, part, start, stop, advance)]

    def _read(
        self, candidate: Candidate, entries: Sequence[Entry], expected: Mapping[str, int], start: int, stop: int
    ) -> Scored:
        """What the journal says of a candidate, which must be so many scores an objective."""
        for entry in entries:
            if entry.failed and entry.start < stop and entry.stop > start:
                return Scored(candidate, {}, entry.failed)
        values: dict[str, tuple[float, ...]] = dict.fromkeys(expected, ())
        for entry in entries:
            low, high = max(entry.start, start), min(entry.stop, stop)
            if low < high:
                for name in expected:
                    values[name] += tuple(entry.scores.get(name, ())[low - entry.start : high - entry.start])
        for name, count in expected.items():
            if len(values[name]) != count:
                raise BadInput(
                    f"{self.journal.folder}: holds {len(values[name])} scores on {count} items of {name};"
                    " move the folder away, or use `hm3 run --fresh`"
                )
        return Scored(candidate, values)


def open_pool(config: dict[str, Any], profile: Profile, engine: EngineName) -> Pool:
    """A pool without models for a base's ``config.json``, in this process or on the workers of a cluster."""
    if engine == "ray":
        address = settle(profile.ray.address)
        from tasks.scoring.ray_pool import RayPool

        return RayPool(config, profile, address, _log.warning)
    return Pool(config, profile.device, getattr(torch, profile.dtype), profile.pool_bytes)
