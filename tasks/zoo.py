"""Stage `zoo`: makes the family, or checks the one that is given; writes where it lies, and the items of its tasks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from models.sources.checkpoint import Model, check_finite
from models.sources.compatibility import check_compatible
from models.sources.loadable import check_loadable
from models.sources.lora import open_model
from models.sources.vocabulary_source import share_vocabulary
from tasks.families.tiny.make import make_family
from tasks.families.tiny_vision.make import make_family as make_vision_family
from tasks.objectives.images.heads import write_text_heads
from tasks.project.family import FILE, Family
from tasks.project.progress import Bar, Progress
from tasks.project.references import finder, hub_parts, models_of
from tasks.project.workspace import Workspace


def run(workspace: Workspace, progress: Progress) -> None:
    """Leave ``zoo/`` with ``family.json``, and ``tasks/``; a made family's models and items lie in them.

    They appear under their names when all is well.

    Raises:
        BadInput: a given model is missing, damaged or doesn't fit the base; more items are asked for than can be made.
        Failed: a made family misses one of its gates.
    """
    zoo, items = (path.with_name(f".{path.name}.partial") for path in (workspace.zoo, workspace.items))
    try:
        for folder in (zoo, items):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        gates: dict[str, Any] = {}
        if workspace.profile.made is not None:
            make = {"tiny": make_family, "tiny-vision": make_vision_family}[workspace.profile.made]
            gates = make(workspace, zoo, items, progress)
            names = ("base", *workspace.profile.experts)
            digests = check_models({name: name for name in names}, zoo.joinpath, progress)
            for name in names:
                check_loadable(zoo / name, name)
            lie = {name: (workspace.zoo / name).relative_to(workspace.root).as_posix() for name in names}
        else:
            (items / ".empty").touch()  # git and DVC keep no empty folder
            lie = models_of(workspace.profile)
            fetch(workspace, progress)
            digests = check_models(lie, finder(workspace), progress)
            write_text_heads(workspace, items)
        family = Family(lie.pop("base"), lie)
        content = {"base": family.base, "experts": family.experts, "digests": digests, "gates": gates}
        (zoo / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for folder, final in ((zoo, workspace.zoo), (items, workspace.items)):
            shutil.rmtree(final, ignore_errors=True)
            folder.rename(final)
    finally:
        for folder in (zoo, items):
            shutil.rmtree(folder, ignore_errors=True)


def fetch(workspace: Workspace, progress: Progress) -> None:
    """Have the models of the hub in its cache.

    Raises:
        BadInput: one can't be had.
    """
    parts = [one for one in hub_parts(models_of(workspace.profile).values()) if one.cached() is None]
    if not parts:
        return
    sizes = {one: one.bytes() for one in parts}
    with progress.bar("fetch from the hub", sum(sizes.values()), "bytes") as bar:
        for one, size in sizes.items():
            before = bar.completed
            bar.advance(0, str(one))
            with watched(lambda one=one, size=size, before=before: show(before + min(size, one.held()), bar)):  # type: ignore[misc]
                one.fetch()
            show(before + size, bar)


def show(completed: float, bar: Bar) -> None:
    """Bring a bar to where it should be."""
    bar.advance(completed - bar.completed)


@contextmanager
def watched(look: Callable[[], None]) -> Iterator[None]:
    """Look each second while the block works."""
    over = Event()

    def repeat() -> None:
        while not over.wait(1):
            look()

    thread = Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def check_models(models: dict[str, str], find: Callable[[str], Path], progress: Progress) -> dict[str, str]:
    """Digests of base and experts, which are ``MODEL`` or ``MODEL+ADAPTER`` by name.

    Raises:
        BadInput: a model is missing or damaged, holds NaN or infinity, or is no fine-tune of the base.
    """
    base = open_model(models["base"], find)
    digests = {}
    with progress.bar("check models", len(models), "models") as bar:
        for name, reference in models.items():
            model = open_model(reference, find)
            ours, theirs = share_vocabulary({"base": base, name: model}).values() if name != "base" else (base, base)
            check_compatible(ours, theirs, name)
            check_finite(model, name)
            digests[name] = digest(model)
            bar.advance(1, name)
    return digests


def digest(model: Model) -> str:
    """Hex sha256 of the content of all its tensors."""
    groups = sorted({model.architecture.group(name) for name in model.names()})
    return hashlib.sha256("\n".join(f"{group} {model.digest(group)}" for group in groups).encode()).hexdigest()
