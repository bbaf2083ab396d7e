"""A run with other parameters as a DVC experiment: in a git working tree of its own, with the project's DVC cache.

The project's own files stay as they are. What was computed comes back under a name that `dvc exp show` lists and
`dvc exp apply` brings into the project.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from flows.servers.local import environment, last_line, run_logged
from models.errors import BadInput, Failed
from models.files import validate
from tasks.project.git import demand, git
from tasks.project.workspace import Workspace, open_workspace, read_yaml, remote_state
from tasks.schema.params import Params

OWN = (".hm3", ".venv", ".dvc", "runs", "dvc_plots", "__pycache__")
"""Folders of which each working tree has its own, or none."""


def with_settings(root: Path, settings: Sequence[str], own: Mapping[str, Any] | None = None) -> Params:
    """The parameters of params.yaml with ``key=value`` settings applied, checked by the schema.

    Args:
        settings: such as ``search.budget=20000``; the value is YAML.
        own: blocks that the profile sets for itself, which settings override.

    Raises:
        BadInput: no pair, an unknown key, or a value that the schema refuses.
    """
    data = read_yaml(root / "params.yaml") or {}
    for name, value in (own or {}).items():
        data[name] = {**(data.get(name) or {}), **value} if isinstance(value, dict) else value
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key.strip() and equals):
            raise BadInput(f"-S {setting}: write it as key=value, such as search.budget=20000")
        if key.strip() == "profiles":
            raise BadInput(f"-S {setting}: a run has one profile; name it with --profile")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise BadInput(f"-S {setting}: {text!r} is no YAML value") from None
        try:
            place(data, key.strip(), value)
        except TypeError:
            raise BadInput(f"-S {setting}: {key}: unknown key; params.yaml lists them") from None
    return validate(Params, data, "-S")


def differences(before: Params, after: Params) -> dict[str, Any]:
    """Keys, with dots, whose values differ, and their new values."""
    from tasks.tracking.record import flatten  # help needs no pandas

    old = flatten(before, ".")
    return {key: value for key, value in flatten(after, ".").items() if value != old[key]}


@contextmanager
def experiment(workspace: Workspace, params: Params, say: Callable[[str], None]) -> Iterator[tuple[Workspace, str]]:
    """The workspace in a working tree with other parameters; saved as a DVC experiment when the block ends well.

    The tree starts from the last commit and the tracked files' present state. Stages that an interrupted run of the
    same experiment finished come back from DVC's cache of runs.

    Args:
        workspace: the project; its files are only read.
        params: the parameters to run with.
        say: gets a line on what came of it.

    Yields:
        The workspace to work in, and the experiment's name, which follows from the parameters that differ.

    Raises:
        BadInput: the project is no git repository with a commit.
        Failed: git or DVC refuse.
    """
    changed = differences(workspace.params, params)
    digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]
    name = f"{workspace.name}-{digest}"
    tree = workspace.state / "experiments" / name
    log = workspace.state / "logs" / "experiment.log"
    remove_tree(workspace.root, tree)
    try:
        make_tree(workspace, tree, changed, log)
        say(f"experiment {name}: {', '.join(f'{key}={json.dumps(value)}' for key, value in changed.items())}")
        # stages whose state is in a bucket keep what they have of it in their own tree
        inside = open_workspace(workspace.name, tree, None if remote_state() else workspace.state)
        yield replace(inside, engine=workspace.engine), name
        stages = [f"{one}@{workspace.name}" for one in read_yaml(tree / "dvc.yaml")["stages"]]
        # only these: it refuses a profile of params.yaml that was never run
        dvc(tree, workspace.state, log, "exp", "save", "--force", "--name", name, *stages)
        compare = "compare with `dvc exp show --only-changed`"
        say(f"experiment {name} is saved: {compare}, take it over with `dvc exp apply {name}`")
    finally:
        remove_tree(workspace.root, tree)


def make_tree(workspace: Workspace, tree: Path, changed: dict[str, Any], log: Path) -> None:
    """A working tree with the project's tracked files, DVC cache, present outs, and other parameters."""
    from dvc.repo import Repo
    from dvc.utils.serialize import modify_yaml

    root = workspace.root
    if git(root, "rev-parse", "--verify", "--quiet", "HEAD").returncode != 0:
        raise BadInput(f"{root.name}/: an experiment starts from a git commit and there is none; commit the project")
    tree.parent.mkdir(parents=True, exist_ok=True)
    demand(root, "worktree", "add", "--force", "--detach", str(tree), "HEAD")
    git(root, "update-index", "-q", "--refresh")  # or `stash create` fails where a file was touched and not changed
    uncommitted = demand(root, "stash", "create").strip()
    if uncommitted:
        demand(tree, "read-tree", "-u", "--reset", uncommitted)
    if (root / "dvc.lock").is_file():  # it may not be in git yet
        shutil.copy(root / "dvc.lock", tree)
    with Repo(str(root)) as repo:
        cache = repo.cache.local_cache_dir
        core, remotes = dict(repo.config["core"]), {name: dict(one) for name, one in repo.config["remote"].items()}
    with Repo(str(tree)) as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = cache
        # Their addresses may be relative to the project, and git knows nothing of those in .dvc/config.local.
        config["core"], config["remote"] = core, remotes
    # each value goes to where the run will read it: what the profile sets for itself hides params.yaml
    hidden = [key for key in changed if is_set(workspace.profile.params, key)]
    with modify_yaml(str(tree / "params.yaml")) as data:  # keeps comments and order
        for key in changed:
            if key not in hidden:
                place(data, key, changed[key])
    if hidden:
        mine = Path("profiles", f"{workspace.name}.yaml")
        (tree / mine).parent.mkdir(exist_ok=True)
        shutil.copy(root / mine, tree / mine)  # git may not know it yet
        with modify_yaml(str(tree / mine)) as profile:
            for key in hidden:
                place(profile["params"], key, changed[key])
    dvc(tree, workspace.state, log, "checkout", "--quiet", "--allow-missing")
    link_untracked(root, tree)


def is_set(block: Mapping[str, Any] | None, key: str) -> bool:
    """Whether blocks in blocks hold the key, written with dots."""
    first, _, rest = key.partition(".")
    return first in (block or {}) and (not rest or is_set((block or {})[first], rest))


def place(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a value whose key is written with dots; raises TypeError where a block on the way is none."""
    *blocks, last = key.split(".")
    block: Any = data
    for name in blocks:
        block = block.setdefault(name, {}) if isinstance(block, dict) else None
    if not isinstance(block, dict):
        raise TypeError(f"{key}: not in a block")
    block[last] = value


def link_untracked(root: Path, tree: Path) -> None:
    """Let the tree see what git does not know of, such as folders of models and profiles that are not added yet."""
    listed = demand(root, "ls-files", "-z", "--others", "--directory", "--no-empty-directory")
    for name in filter(None, listed.split("\0")):
        path = Path(name)
        if path.parts[0] in OWN or path.name in OWN or (tree / path).exists() or root / path in tree.parents:
            continue
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).symlink_to(root / path)


def remove_tree(root: Path, tree: Path) -> None:
    """Take a working tree away, if it is there, and the reference that `dvc exp save` leaves behind in one."""
    git(root, "worktree", "remove", "--force", "--force", str(tree))
    shutil.rmtree(tree, ignore_errors=True)
    git(root, "worktree", "prune")
    git(root, "update-ref", "-d", "refs/exps/exec/EXEC_HEAD")


def dvc(tree: Path, state: Path, log: Path, *command: str) -> None:
    """A DVC command in a working tree; raises Failed if it fails."""
    full = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", *command]
    if run_logged(full, cwd=tree, env=environment(state), log=log) != 0:
        raise Failed(f"dvc {' '.join(command[:2])}: {last_line(log)}; see {log}")
