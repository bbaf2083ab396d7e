"""The families on which searches are compared: made ones with the benchmark's own seeds, or the one that is given."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from models.agent.hm3 import HM3Settings
from models.candidate import Candidate
from models.errors import BadInput, Failed
from models.front import Scale
from models.merge.recipe import recipe_name
from models.merge.space import RecipeSpace
from models.paths.repair import VERSION
from models.search.environment import PathRules
from tasks import zoo
from tasks.bench.engine.families import OPEN_GATES
from tasks.bench.searches.arms import hm3_settings
from tasks.project.progress import Progress
from tasks.project.records import write_text
from tasks.project.workspace import Workspace, open_workspace, read_yaml
from tasks.scoring.engine import Engine
from tasks.scoring.repairs import Repairs
from tasks.trials.pool import path_rules
from tasks.trials.repair import begin_repairs

FIRST_FAMILY = 7001
"""Seed of the first made family: none that anybody tunes on, though what comes of it is looked at."""

FIRST_UNSEEN = 7201
"""Seed of the first family to confirm on; raise it when a profile or the search is changed for what came of these."""

TRIES = 4
"""Seeds beyond those asked for, should a family miss its gates."""

SMALL_ZOO: dict[str, Any] = {"layers": 3, "base_steps": 240, "expert_steps": 140, **OPEN_GATES}
SMALL_ITEMS = {"search": 32, "selection": 32, "test": 48}


@dataclass(frozen=True)
class Family:
    """A family to compare on: its project, and where the benchmark keeps what it scores."""

    seed: int
    """With which it was made; 0 where it is given."""
    workspace: Workspace
    folder: Path

    def open(self) -> Ground:
        """Models, objectives and journal."""
        return Ground(self, Engine(self.workspace, self.folder / "journal"))


@dataclass(frozen=True)
class Ground:
    """An open family: every arm is scored by its one engine."""

    family: Family
    engine: Engine

    @property
    def workspace(self) -> Workspace:
        """The project of the family, seen through the profile."""
        return self.family.workspace

    @cached_property
    def sources(self) -> list[Candidate]:
        """Base and experts."""
        return [Candidate.identity(name, self.engine.layers) for name in ("base", *self.engine.family.experts)]

    @cached_property
    def tasks(self) -> Scale:
        """Ideal and nadir of the task objectives, over base and experts on the search split."""
        scores = np.array([one.mean() for one in self.engine.scored(self.sources, "search")])
        names = self.engine.objectives("search").names
        return Scale(names, tuple(map(float, scores.max(axis=0))), tuple(map(float, scores.min(axis=0))))

    def scale(self, depth: bool) -> Scale:
        """Of all objectives, or of the tasks alone.

        Raises:
            BadInput: the profile has no depth objective.
        """
        if not depth:
            return self.tasks
        layers = self.workspace.profile.layers
        if layers is None:
            raise BadInput(f"profiles/{self.workspace.name}.yaml: layers: is off; set it, or add --no-depth")
        return Scale(
            (*self.tasks.names, "layers"), (*self.tasks.ideal, layers.ideal), (*self.tasks.nadir, layers.nadir)
        )

    @cached_property
    def repairs(self) -> tuple[Repairs | None, int]:
        """What repairs seams for every arm, and what that is charged: calibrated on the plain merges.

        So no arm has folds of a better model than another. None where the profile repairs nothing.
        """
        if not self.workspace.profile.repairs:
            return None, 0
        merges = [self.engine.add(one).host for one in self.space.plain_merges().values()]
        made = begin_repairs(self.workspace, self.engine, merges, Progress())
        found, self.engine.repairs = self.engine.repairs, None
        return found, made.item_evaluations if made else 0

    @property
    def space(self) -> RecipeSpace:
        """All recipes of the family; random masks have one seed, so that arms share scores."""
        params, models = self.workspace.params, self.engine.family
        return RecipeSpace(params.sample.methods, models.base, models.experts, params.seed)

    @property
    def rules(self) -> PathRules:
        """Which paths are legal."""
        return path_rules(self.workspace.profile, self.engine.layers)

    @cached_property
    def digest(self) -> str:
        """Eight digits for all that results depend on beside the arm, its seed and its budget."""
        params, profile = self.workspace.params, self.workspace.profile
        # Rows from before profiles had settings of their own were measured with the defaults, and stay good.
        later = {"start": PathRules.start, "end": PathRules.end}
        rules = {key: value for key, value in asdict(self.rules).items() if (key, value) not in later.items()}
        described = [
            [self.engine.pool.digest(one) for one in self.sources],
            [self.engine.objectives(split).definition for split in ("search", "selection", "test")],
            [profile.dtype, rules, profile.layers.model_dump() if profile.layers else None],
            [params.seed, params.sample.methods, params.pareto.model_dump()],
        ]
        if profile.repairs:
            described.append(["repair", VERSION])
        if (settings := hm3_settings(params)) != HM3Settings():
            described.append(asdict(settings))
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]


def open_families(
    user: Workspace, folder: Path, count: int, small: bool, progress: Progress, first: int = FIRST_FAMILY
) -> list[Family]:
    """The families of a profile: ``count`` that are made, or the one that is given.

    A made family that misses its gates is passed over for the next seed; which ones is decided before any arm runs.

    Args:
        user: the user's project and profile.
        folder: where the benchmark keeps its own.
        count: of made families.
        small: make tiny ones with few items.
        progress: shows the training.
        first: seed of the first that is made.

    Raises:
        BadInput: the given family isn't there.
        Failed: too many made families miss their gates.
    """
    if user.profile.made is None:
        return [Family(0, user, folder / "given")]
    found: list[Family] = []
    for seed in range(first, first + count + TRIES):
        if len(found) == count:
            break
        own = project(user, folder, seed, small)
        missed = own.root / "missed.txt"
        if not (own.zoo / "family.json").is_file() and not missed.is_file():
            try:
                zoo.run(own, progress)
            except Failed as error:
                progress.message(f"family {seed}: {error}; the next seed takes its place")
                write_text(missed, f"{error}\n")
        if not missed.is_file():
            found.append(Family(seed, own, own.root))
    if len(found) < count:
        raise Failed(f"{user.name}: {count} families wanted, {len(found)} met their gates; see zoo in params.yaml")
    return found


def project(user: Workspace, folder: Path, seed: int, small: bool) -> Workspace:
    """A project with the profile of the user's and another seed, for a family to be made in."""
    data: dict[str, Any] = read_yaml(user.root / "profiles" / f"{user.name}.yaml")
    params = user.params.model_dump(mode="json") | {"profiles": [user.name], "seed": seed}
    data.pop("params", None)  # they are in place already
    if small:
        params["zoo"] |= SMALL_ZOO
        data["objectives"] = [one | {"items": SMALL_ITEMS} for one in data["objectives"]]
    described = json.dumps([params["zoo"], seed, data], sort_keys=True, default=str)
    root = folder / f"family-{seed}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"
    write_text(root / "params.yaml", yaml.safe_dump(params))
    write_text(root / "profiles" / f"{user.name}.yaml", yaml.safe_dump(data, sort_keys=False))
    if user.task_folder is not None:
        shutil.copytree(user.task_folder, root / "profiles" / user.name, dirs_exist_ok=True)
    return open_workspace(user.name, root, user.state)


def without(ground: Ground, names: Sequence[str]) -> None:
    """Let the pool forget recipes that no arm needs any more; repairs are calibrated on the plain merges."""
    repairs = ground.workspace.profile.repairs
    merges = {recipe_name(one) for one in ground.space.plain_merges().values()} if repairs else set()
    for name in (one for one in names if one not in merges):
        ground.engine.pool.discard(name)
        ground.engine.recipes.pop(name, None)
