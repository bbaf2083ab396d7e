"""`hm3 doctor`: what a run needs is checked before anything is computed, and what it will cost is said."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import psutil
import torch

from models.errors import BadInput, Failed
from models.merge.methods import find_method
from models.sources.architecture import position_settings
from models.sources.checkpoint import Model
from models.sources.compatibility import check_compatible
from models.sources.hub import HubModel, Unreachable
from models.sources.lora import open_model
from models.sources.vocabulary_source import share_vocabulary
from tasks.doctor.buckets import configured, try_out
from tasks.doctor.diagnosis import Check, Diagnosis, in_bytes
from tasks.doctor.plan import PROBE_SECONDS, Plan, costs_of, plan_of, probe
from tasks.families.sizing import parameter_count
from tasks.objectives.calibration import calibration_of, counted
from tasks.objectives.images.items import open_processor
from tasks.objectives.items import SPLITS
from tasks.objectives.lessons import Lessons
from tasks.objectives.objectives import Objectives, described
from tasks.objectives.scorers import UNHELD, code_of, evaluation
from tasks.objectives.task_files import TaskFile, check_names, find, task_label
from tasks.objectives.tokens import open_tokenizer
from tasks.project.family import FILE, load_family
from tasks.project.progress import Progress
from tasks.project.references import finder, hub_parts, models_of
from tasks.project.workspace import Workspace
from tasks.sandbox.sandbox import describe
from tasks.schema.profile import Objective
from tasks.scoring.where import engine_name

WORK_BYTES = 200 * 2**20
"""Archives, logs, reports and databases of a run, generously."""

VARIABLES = {"Prefect": "PREFECT_API_URL", "MLflow": "MLFLOW_TRACKING_URI"}
"""What says that a run is to use a server."""


@dataclass
class Found:
    """What the checks opened."""

    sources: dict[str, Model] = field(default_factory=dict)
    objectives: Objectives | None = None
    """Those of the search split."""
    seconds: float | None = None
    """That an item evaluation takes."""
    unreachable: bool = False
    """Whether the hub has models that are needed, and does not answer."""


def examine(
    workspace: Workspace,
    servers: Mapping[str, tuple[str, bool]],
    tell: Callable[[Check], None] = lambda check: None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Look at everything that a run of the profile needs; nothing is computed but one small probe of the base's speed.

    What is known at once comes first, and what reads models and data afterwards.

    Args:
        workspace: the profile's.
        servers: name of each server that a run would use → its address, and whether it answers.
        tell: is given each check as soon as it is done.
        progress: for what takes longer.
    """
    progress, found = progress or Progress(), Found()
    checks: list[Check] = []
    quick = (parameters(workspace), programs(workspace), [device(workspace)], answering(servers))
    slow = (models(workspace, found), data(workspace, found, progress), scoring(workspace, found, checks, progress))
    for check in chain(*quick, *slow):
        checks.append(check)
        tell(check)
    plan = plan_of(workspace, found.sources, found.seconds)
    for check in (memory(plan), disk(workspace, plan), *buckets(workspace, servers)):
        checks.append(check)
        tell(check)
    return Diagnosis(workspace.name, tuple(checks), plan)


def answering(servers: Mapping[str, tuple[str, bool]]) -> Iterator[Check]:
    """Whether the servers that a run would use answer."""
    for name, (url, answers) in servers.items():
        remedy = "" if answers else f" does not answer; start it, or unset {VARIABLES[name]}"
        yield Check(name, "good" if answers else "bad", url + remedy)


def scoring(workspace: Workspace, found: Found, checks: Sequence[Check], progress: Progress) -> Iterator[Check]:
    """How fast the base is scored, if all that was looked at before is sound."""
    amiss = any(one.status == "bad" and one.what not in VARIABLES for one in checks)
    if "base" not in found.sources or found.objectives is None or amiss:
        return
    try:
        trial = probe(workspace, found.sources["base"], found.objectives, progress)
    except BadInput as error:
        yield Check("scoring", "bad", str(error))
        return
    found.seconds = trial.seconds
    short = "" if trial.whole else f", stopped after {PROBE_SECONDS:.0f} s"
    yield Check("scoring", "good", f"{trial.seconds * 1000:,.3g} ms an item evaluation, of {trial.items}{short}")


def attempt(what: str, look: Callable[[], str]) -> Check:
    """A check that is good unless ``look`` raises BadInput."""
    try:
        return Check(what, "good", look())
    except BadInput as error:
        return Check(what, "bad", str(error))


def parameters(workspace: Workspace) -> Iterator[Check]:
    """What the schema can't see: parameters that don't fit each other."""
    params, faults = workspace.params, []
    if workspace.name not in params.profiles:
        yield Check("parameters", "later", f"params.yaml: profiles: {workspace.name} is not listed; `hm3 run` adds it")
    for method in params.sample.methods:
        try:
            find_method(method)
        except BadInput as error:
            faults.append(f"sample.methods: {error}")
    most = max(one.items.search for one in workspace.profile.objectives)
    if max(params.search.rungs) > most or list(params.search.rungs) != sorted(set(params.search.rungs)):
        faults.append(f"search.rungs: must grow, and end at {most} items at most")
    if params.dataset.items > most:
        faults.append(f"dataset.items: there are {most} search items; take fewer")
    costs = costs_of(workspace)
    spent = costs["sample"].item_evaluations + costs["dataset"].item_evaluations
    if spent >= params.search.budget:
        taken = f"{params.search.budget:,} item evaluations, of which sample and dataset take {spent:,}"
        faults.append(f"search.budget: {taken}; raise it, or lower sample.candidates or dataset.edits")
    if not faults:
        yield Check("parameters", "good", "params.yaml and the profile follow the schema and fit each other")
    for fault in faults:
        own = f", with profiles/{workspace.name}.yaml: params" if workspace.profile.params else ""
        yield Check("parameters", "bad", f"params.yaml{own}: {fault}")


def programs(workspace: Workspace) -> Iterator[Check]:
    """What holds the programs that models write, where the profile has them run."""
    if workspace.profile.run_code:
        yield attempt("sandbox", lambda: describe(workspace.profile.sandbox))


def models(workspace: Workspace, found: Found) -> Iterator[Check]:
    """Base, experts and their tokenizer."""
    profile = workspace.profile
    if profile.made and not (workspace.zoo / FILE).is_file():
        yield Check("models", "later", f"stage zoo makes the {profile.made} family: {', '.join(profile.experts)}")
        return
    folders = models_of(profile)
    if profile.made:
        try:
            family = load_family(workspace)
        except BadInput as error:
            yield Check("models", "bad", str(error))
            return
        folders = {"base": family.base, **family.experts}
    if away := [one for one in hub_parts(folders.values()) if one.cached() is None]:
        yield from on_hub(away, found)
        return
    for name, folder in folders.items():
        yield attempt(name, partial(model, workspace, found, name, folder))
    if "base" in found.sources:
        base = found.sources["base"]
        if base.architecture.classes:
            yield attempt("processor", lambda: type(open_processor(base.tokenizer)).__name__)
        else:
            yield attempt("tokenizer", lambda: f"{len(open_tokenizer(base.tokenizer)):,} tokens")


def on_hub(away: Sequence[HubModel], found: Found) -> Iterator[Check]:
    """Models that the hub has and its cache lacks; the hub is asked for their sizes alone."""
    names = ", ".join(map(str, away))
    sizes = []
    for one in away:
        try:
            sizes.append(one.bytes())
        except Unreachable as error:
            found.unreachable = True
            yield Check("models", "bad", f"{names}: {error.reason}")
            return
        except BadInput as error:
            yield Check("models", "bad", str(error))
    if len(sizes) == len(away):
        yield Check("models", "later", f"stage zoo fetches {in_bytes(sum(sizes))} from the hub: {names}")


def model(workspace: Workspace, found: Found, name: str, folder: str) -> str:
    """Open one model; what there is to say about it. Raises BadInput if it can't be used."""
    source = open_model(folder, finder(workspace))
    label = f"expert {name}"
    if name != "base" and "base" in found.sources:
        base, aligned = share_vocabulary({"base": found.sources["base"], label: source}).values()
        check_compatible(base, aligned, label)
    found.sources[name] = source
    note = other_positions(found.sources.get("base", source).config, source.config)
    return f"{folder}: {parameter_count(source) / 1e6:,.2f} M parameters{note}"


def other_positions(base: dict[str, Any], own: dict[str, Any]) -> str:
    """What a model's rotary embeddings were trained with, where that isn't what its layers will run with."""
    ours, theirs = position_settings(base), position_settings(own)
    differs = [key for key in dict.fromkeys((*theirs, *ours)) if ours.get(key) != theirs.get(key)]
    if not differs:
        return ""
    said = ", ".join(f"{key} {_told(theirs.get(key))} (base: {_told(ours.get(key))})" for key in differs)
    return f"; its positions differ: {said}; its layers run with the base's, so expect it to lose on long texts"


def _told(value: Any) -> str:
    return "none" if value is None else f"{value:,.10g}" if isinstance(value, int | float) else str(value)


def data(workspace: Workspace, found: Found, progress: Progress) -> Iterator[Check]:
    """Tasks, and the items of every split."""
    objectives = workspace.profile.objectives
    names = ", ".join(name for one in objectives for name in tasks_of(one))
    if found.unreachable:
        yield Check("data", "later", "looked at when the models are there")
        return

    def known() -> str:
        check_names(workspace)
        return names

    yield (named := attempt("tasks", known))
    if named.status == "good":
        yield from task_code(workspace)
    if workspace.profile.made and not workspace.items.is_dir():
        yield Check("data", "later", "stage zoo makes the items")
        return
    if "base" not in found.sources:
        yield Check("data", "later", "looked at when the base is there, whose tokenizer it needs")
        return

    splits: dict[str, Objectives] = {}

    def items(split: str) -> str:
        splits[split] = Objectives(workspace, split, found.sources["base"].tokenizer)
        splits[split].reported.metrics()
        return f"{split}: {', '.join(f'{name} {splits[split].count(name)}' for name in splits[split].names)} items"

    with progress.bar("reading items", len(SPLITS), "splits") as bar:
        for split in SPLITS:
            yield attempt("data", partial(items, split))
            bar.advance(1, split)
    found.objectives = splits.get("search")
    if len(splits) == len(SPLITS):
        if getattr(workspace.profile.paths, "repair", False) and workspace.profile.layers is not None:
            folder = found.sources["base"].tokenizer
            yield attempt("calibration", lambda: counted(workspace, calibration_of(workspace, folder)))
        twice = "; each layer is computed a second time" if workspace.profile.checkpointing else ""
        yield attempt("actor", lambda: f"{Lessons(splits['search'])}{twice}")
        for name in splits["search"].names:
            for text in described(name, splits):
                yield Check("objective", "good", text)


def task_code(workspace: Workspace) -> Iterator[Check]:
    """What runs when tasks are read and scored: Python of the task files' own, and scorers that no sandbox holds.

    Where a scorer lacks consent, reading the items says so.
    """
    found: dict[str, TaskFile] = {}
    for objective in workspace.profile.objectives:
        label = task_label(workspace, objective.name)
        for name in [*(one.task for one in objective.parts), *(one.task for one in objective.reported)]:
            found |= {file.path.name if file.path else file.name: file for file in find(workspace, name, label)}
    for place, file in found.items():
        if code := code_of(file):
            yield Check("task code", "good", f"{place} is code: reading it runs {', '.join(code)} as this user")
        if workspace.profile.run_code and (by := evaluation(file)) and not by.confined:
            yield Check("task code", "good", f"{place}: {by.text}: {UNHELD}")


def tasks_of(objective: Objective) -> list[str]:
    """What an objective is judged by: lm-eval's tasks, or images."""
    return [objective.images.data] if objective.images else [part.task for part in objective.parts]


def enough(what: str, need: int, free: int, remedy: str, where: str = "") -> Check:
    """Whether so many bytes are free."""
    said = f"{in_bytes(need)} needed, {in_bytes(free)} free{where}"
    return Check(what, "good", said) if need <= free else Check(what, "bad", f"{said}; {remedy}")


def memory(plan: Plan) -> Check:
    """Whether the working memory is enough."""
    free = psutil.virtual_memory().available
    if plan.memory is None:
        return Check("memory", "later", f"{in_bytes(free)} are free")
    return enough("memory", plan.memory, free, "lower pool_bytes in the profile or free some")


def disk(workspace: Workspace, plan: Plan) -> Check:
    """Whether the disk is large enough for what is written: outs, DVC's cache of them, and the registry."""
    existing = next(one for one in (workspace.state, *workspace.state.parents) if one.is_dir())
    free, need = shutil.disk_usage(existing).free, WORK_BYTES + (plan.registered or 0)
    return enough("disk", need, free, "free some, or set registry.weights to champion", f" at {existing}")


def device(workspace: Workspace) -> Check:
    """Whether torch has the profile's device."""
    wanted = torch.device(workspace.profile.device)
    if engine_name() == "ray":
        return Check("device", "good", f"{wanted} of the Ray workers")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        return Check("device", "bad", f"profile: device: {wanted} is not there; set device: cpu, or install CUDA")
    cores = len(os.sched_getaffinity(0))
    return Check("device", "good", f"{wanted}, {workspace.profile.threads} threads of {cores} cores")


def buckets(workspace: Workspace, servers: Mapping[str, tuple[str, bool]]) -> Iterator[Check]:
    """Whether the buckets that the state, DVC and MLflow are told to use can be used."""
    _, answers = servers.get("MLflow", ("", False))
    try:
        found = list(configured(workspace, answers))
    except (BadInput, Failed) as error:
        yield Check("bucket", "bad", str(error))
        return
    for one in found:
        yield attempt("bucket", partial(try_out, one))
