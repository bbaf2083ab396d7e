"""Files that a DVC which was killed leaves half written, put right before the next one reads them.

DVC empties ``dvc.lock`` and the file of its read and write locks before it writes them anew. Killed in between, it
leaves files with which no later DVC goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tasks.project.records import write_text

if TYPE_CHECKING:
    from dvc.repo import Repo

LOCK = "dvc.lock"
RWLOCK = "rwlock"


def keep_lock(root: Path) -> None:
    """Keep a copy of ``dvc.lock`` in DVC's own folder, for :func:`mend`; called before a DVC that may write it."""
    kept = copy_of(root)
    if kept.parent.is_dir() and is_whole(root / LOCK):
        write_text(kept, (root / LOCK).read_text(encoding="utf-8"))


def mend(repo: Repo) -> None:
    """Put right what a killed DVC left, while no other one writes.

    A ``dvc.lock`` that was cut off becomes what it was before; what DVC did since is in its cache of runs. A cut file
    of read and write locks goes: the process that was to hold them is gone.
    """
    root = Path(repo.root_dir)
    kept, rwlock = copy_of(root), copy_of(root).with_name(RWLOCK)
    if not is_cut(root / LOCK) and is_json(rwlock):
        return
    with repo.lock:
        if is_cut(root / LOCK):
            if kept.is_file():
                write_text(root / LOCK, kept.read_text(encoding="utf-8"))
            else:
                (root / LOCK).unlink()
        if not is_json(rwlock):
            rwlock.unlink()


def copy_of(root: Path) -> Path:
    """Where the copy of ``dvc.lock`` is."""
    return root / ".dvc" / "tmp" / f"hm3-{LOCK}"


def is_whole(path: Path) -> bool:
    """Whether a file is there and holds all that a ``dvc.lock`` must."""
    try:
        text = path.read_text(encoding="utf-8")
        stages = yaml.safe_load(text)["stages"]
        return text.endswith("\n") and all("cmd" in stage for stage in stages.values())
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return False


def is_cut(path: Path) -> bool:
    """Whether a ``dvc.lock`` ends before its time. One with the marks of a merge is its user's to put right."""
    return path.is_file() and not is_whole(path) and "<<<<<<< " not in path.read_text("utf-8", "replace")


def is_json(path: Path) -> bool:
    """Whether a file is missing or holds JSON."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True
