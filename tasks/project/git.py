"""Calls of git, and what it says of a project."""

from __future__ import annotations

import subprocess
from pathlib import Path

from models.errors import Failed, one_line


def git(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A git command in a folder; without git one that failed."""
    full = ["git", "-C", str(folder), *command]
    try:
        return subprocess.run(full, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(full, 127, "", str(error))


def demand(folder: Path, *command: str) -> str:
    """What a git command prints that has to succeed.

    Raises:
        Failed: it does not.
    """
    done = git(folder, *command)
    if done.returncode != 0:
        raise Failed(f"git {command[0]}: {one_line(done.stderr) or 'failed'}")
    return done.stdout


def git_tags(root: Path) -> dict[str, str]:
    """The commit that is checked out, and whether files differ from it; nothing outside a repository."""
    commit = git(root, "rev-parse", "HEAD")
    if commit.returncode != 0:
        return {}
    changed = git(root, "status", "--porcelain").stdout.strip()
    return {"mlflow.source.git.commit": commit.stdout.strip(), "git.dirty": str(bool(changed)).lower()}
