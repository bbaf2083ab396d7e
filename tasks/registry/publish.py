"""The MLflow registry: the front as versions of ``hm3-front-PROFILE``, the agent as one of ``hm3-agent-PROFILE``.

Publishing goes by content. A version carries the hash of what it is made of, versions that are there are left alone,
and aliases move when all are there: so it can be killed and called again at any time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from models.errors import BadInput, without_secrets
from models.text import markdown
from tasks.front.composition import Composition
from tasks.front.front import BALANCED, Front, Member
from tasks.project.family import load_family
from tasks.project.git import git_tags
from tasks.project.progress import Progress
from tasks.project.workspace import Workspace
from tasks.registry.package import packed
from tasks.registry.versions import MEMBER, answering
from tasks.tracking.messages import log, plain_values
from tasks.tracking.mlflow import connect, open_experiment
from tasks.tracking.spool import spool_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel


@dataclass(frozen=True)
class Published:
    """What is in the registry now."""

    uri: str
    name: str
    """Registered model of the front."""
    front_id: str
    versions: dict[str, int]
    """Member id → version."""
    aliases: dict[str, int]
    """Alias → version."""
    agent: str
    """Registered model of the agent."""
    agent_version: int
    already: bool
    """Nothing had to be done."""

    def __str__(self) -> str:
        first, last = min(self.versions.values()), max(self.versions.values())
        done = "is already" if self.already else "is now"
        aliases = ", ".join(f"{alias} → {version}" for alias, version in self.aliases.items())
        return f"{self.name} {done} versions {first} to {last}, {aliases}"


def publish(workspace: Workspace, progress: Progress | None = None, parent: str | None = None) -> Published:
    """Register agent and members, then move the aliases. What MLflow missed of earlier runs is sent before.

    What is sent is recorded in a run of its own, nested in the pipeline's run ``parent`` if there is one.

    Raises:
        BadInput: something to be published is missing.
        Failed: MLflow does not answer.
    """
    front = Front.read(workspace.run)
    client = connect(workspace.state)
    folder = workspace.state / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    with answering(workspace.state, "; `hm3 publish` goes on from there"), FileLock(folder / "publish.lock"):
        if kept := spool_of(workspace):
            kept.deliver(client, open_experiment(client, workspace))
        return Publication(workspace, front, client, parent).complete(progress or Progress())


def add_version(workspace: Workspace, front: Front, client: MlflowClient, member: Member, progress: Progress) -> int:
    """A version of one member, made to be promoted: with weights unless the profile registers recipes alone.

    Returns its number.

    Raises:
        BadInput: a model of its recipe is missing.
        MlflowException: MLflow does not answer.
    """
    publication = Publication(workspace, front, client, None)
    publication.with_weights = workspace.profile.registry.weights != "none"
    with publication.recorded():
        agent, _ = publication.agent()
        return publication.add([member], agent, progress)[member.id]


class Publication:
    """One front on its way to the registry."""

    def __init__(self, workspace: Workspace, front: Front, client: MlflowClient, parent: str | None):
        self.workspace = workspace
        self.front = front
        self.client = client
        self.parent = parent
        self.experiment = open_experiment(client, workspace)
        self.name = f"hm3-front-{workspace.name}"
        self.agent_name = f"hm3-agent-{workspace.name}"
        self.with_weights = workspace.profile.registry.weights == "members"
        self._run: str | None = None

    def complete(self, progress: Progress) -> Published:
        """Add what is missing; returns what is there then."""
        versions = self._known(self.name, self._marks(), MEMBER)
        missing = [one for one in self.front.members if one.id not in versions]
        with self.recorded():
            agent, is_new = self.agent()
            versions |= self.add(missing, agent, progress)
        aliases = {alias: versions[member.id] for alias, member in self.front.aliases().items()}
        already = not (self._move_aliases(aliases) or missing or is_new)
        versions, uri = {one.id: versions[one.id] for one in self.front.members}, self.client.tracking_uri
        return Published(
            without_secrets(uri), self.name, self.front.digest, versions, aliases, self.agent_name, agent, already
        )

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """What is sent in the block is recorded in a run, which ends with it."""
        try:
            yield
        except BaseException:
            self._close_run("FAILED")
            raise
        self._close_run("FINISHED")

    def agent(self) -> tuple[int, bool]:
        """The version of the agent, and whether it had to be added."""
        folder = self.workspace.run / "agent"
        agent_id = digest_of(folder)
        if known := self._known(self.agent_name, {"agent_id": agent_id}, "agent_id"):
            return known[agent_id], False
        self._ensure(self.agent_name, AGENT.format(profile=self.workspace.name))
        tags = {"agent_id": agent_id, "profile": self.workspace.name}
        with self._logged(f"{self.workspace.name}-agent", tags) as (model, fresh):
            if fresh:
                self.client.log_model_artifacts(model.model_id, str(folder))
        return self._add_version(self.agent_name, model, tags, None), True

    def add(self, members: Sequence[Member], agent: int, progress: Progress) -> dict[str, int]:
        """Register members of the front, proposed by a version of the agent; id → version."""
        if not members:
            return {}
        asked = IMAGES if any(one.images for one in self.workspace.profile.objectives) else PROMPTS
        self._ensure(self.name, FRONT.format(name=self.name, **asked))
        composition, made = Composition.read(self.workspace, self.front), {}
        with progress.bar("registering", len(members), "members") as bar:
            for member in members:
                made[member.id] = self._add_member(member, composition, agent)
                bar.advance()
        return made

    def _known(self, name: str, marks: Mapping[str, str], key: str) -> dict[str, int]:
        """Versions that carry all the marks, by another of their tags."""
        wanted = " and ".join([f"name = '{name}'", *(f"tags.{mark} = '{value}'" for mark, value in marks.items())])
        found = self.client.search_model_versions(wanted)
        return {one.tags[key]: int(one.version) for one in sorted(found, key=lambda one: int(one.version))}

    def _ensure(self, name: str, description: str) -> None:
        """Make a registered model if it is missing."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name, {"profile": self.workspace.name}, description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _add_member(self, member: Member, composition: Composition, agent: int) -> int:
        tags = self._tags(member)
        with self._logged(f"{self.workspace.name}-{member.id}", tags) as (model, fresh):
            if fresh:
                record = self._record(member, composition, agent)
                with packed(self.workspace, member, model, record, with_weights=self.with_weights) as folder:
                    self.client.log_model_artifacts(model.model_id, str(folder))
        self._log_scores(member, model.model_id)
        return self._add_version(self.name, model, tags, described(self.front, member, composition))

    @contextmanager
    def _logged(self, name: str, tags: Mapping[str, str]) -> Iterator[tuple[LoggedModel, bool]]:
        """A model in the experiment, finalised at the end; one that a killed process had finished is taken as it is."""
        key = MEMBER if MEMBER in tags else "agent_id"
        marks = [f"tags.`{mark}` = '{tags[mark]}'" for mark in ("front_id", "weights", key) if mark in tags]
        for left in self.client.search_logged_models([self.experiment], " and ".join(marks)):
            if left.status == "READY":
                yield left, False
                return
            self.client.delete_logged_model(left.model_id)
        model = self.client.create_logged_model(self.experiment, name, self._open_run(), plain_values(tags))
        yield model, True
        self.client.finalize_logged_model(model.model_id, "READY")

    def _add_version(self, name: str, model: LoggedModel, tags: Mapping[str, str], words: str | None) -> int:
        made = self.client.create_model_version(
            name,
            source=f"models:/{model.model_id}",
            run_id=model.source_run_id,
            tags=plain_values(tags),
            description=words,
            await_creation_for=0,
            model_id=model.model_id,
        )
        # MLflow's server notes this by itself, its database store does not.
        mark = {"mlflow.modelVersions": json.dumps([{"name": name, "version": int(made.version)}])}
        self.client.set_logged_model_tags(model.model_id, mark)
        return int(made.version)

    def _marks(self) -> dict[str, str]:
        """Tags by which versions of this front are known."""
        return {"front_id": self.front.digest, "weights": str(self.with_weights).lower()}

    def _tags(self, member: Member) -> dict[str, str]:
        """What people filter by: MLflow's list of versions shows every tag. What was found has no scores on `test`."""
        split = next(one for one in reversed(self.front.splits) if one in member.scores)
        return {
            MEMBER: member.id,
            "layers": str(member.layers),
            "preference": member.preference,
            "mergekit": member.mergekit,
            **{f"{split}.{name}": f"{member.scores[split][name]:.6g}" for name in self.front.tasks},
            **({"found": "true"} if self.front.found else {}),
            **self._marks(),
        }

    def _record(self, member: Member, composition: Composition, agent: int) -> dict[str, Any]:
        """All else that there is to say of a member: scores by split, and its lineage. The recipe lies beside it."""
        family = load_family(self.workspace)
        digests = json.loads((self.workspace.zoo / "family.json").read_text(encoding="utf-8")).get("digests", {})
        return {
            "profile": self.workspace.name,
            "scores": member.scores,
            "reported": member.reported,
            "serves": member.serves,
            "merge": composition.describe(member),
            "base": family.base,
            "experts": family.experts,
            "digests": digests,
            "agent_version": agent,
            "source": git_tags(self.workspace.root),
        }

    def _log_scores(self, member: Member, model_id: str) -> None:
        """Scores as metrics of the model, so that MLflow's tables sort and compare members by them."""
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), self.front.members.index(member) + 1
        points = [(f"{split}/{name}", one) for split, own in member.scores.items() for name, one in own.items()]
        run = self._open_run()
        metrics = [Metric(name, one, now, step, model_id=model_id, run_id=run) for name, one in points]
        self.client.log_batch(run, metrics)

    def _move_aliases(self, aliases: Mapping[str, int]) -> bool:
        now = self.client.get_registered_model(self.name).aliases
        moves = {alias: version for alias, version in aliases.items() if int(now.get(alias, -1)) != version}
        for alias, version in moves.items():
            self.client.set_registered_model_alias(self.name, alias, str(version))
        gone = [alias for alias in now if BALANCED.fullmatch(alias) and alias not in aliases]
        for alias in gone:  # of an older front, whose members had other depths
            self.client.delete_registered_model_alias(self.name, alias)
        return bool(moves or gone)

    def _open_run(self) -> str:
        """The run that records what is sent: the one that a killed process left open for this front, or a new one."""
        if self._run is None:
            mark = f"tags.front_id = '{self.front.digest}' and attributes.status = 'RUNNING'"
            left = self.client.search_runs([self.experiment], mark, max_results=1)
            tags = {"stage": "publish", "profile": self.workspace.name, "front_id": self.front.digest}
            if self.parent:
                tags["mlflow.parentRunId"] = self.parent
            made = left[0] if left else self.client.create_run(self.experiment, tags=tags, run_name="publish")
            self._run = str(made.info.run_id)
        return self._run

    def _close_run(self, status: str) -> None:
        if self._run is not None:
            log(self.client, self._run, points=[("members", len(self.front.members), 0)])
            self.client.set_terminated(self._run, status)


def described(front: Front, member: Member, composition: Composition) -> str:
    """A member in Markdown: its scores, and what it was made of."""
    scores = {split: " | ".join(f"{own[name]:.3f}" for name in front.tasks) for split, own in member.scores.items()}
    lines = [
        f"{member.layers} layers; serves {markdown(member.preference)}.",
        "",
        f"| split | {' | '.join(map(markdown, front.tasks))} |",
        "|---" * (len(front.tasks) + 1) + "|",
        *(f"| {markdown(split)} | {own} |" for split, own in scores.items()),
        "",
        markdown(composition.describe(member)),
        "",
        *(f"- {markdown(name)}: {markdown(words)}" for name, words in composition.merges(member).items()),
    ]
    return "\n".join(lines)


def digest_of(folder: Path) -> str:
    """sha256 over names and contents of a folder's files.

    Raises:
        BadInput: it is missing or empty.
    """
    digest = hashlib.sha256()
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    if not files:
        raise BadInput(f"runs/{folder.parent.name}/{folder.name}: no files; run stage `train` or `dvc pull`")
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


FRONT = """A front of merged models that hm3 found: a version a member; versions with the same `front_id` are one front.

`mlflow.pyfunc.load_model("models:/{name}@balanced").predict({asked})` answers with {answer}.

Aliases: `balanced` weighs all tasks alike and ignores depth, `balanced-N` is the same with at most N layers, \
`best-OBJECTIVE` is best at one. Tags hold what one filters by; \
`member.json` among a version's files has the scores by split and what it was made of. A version with the tag `found` \
is what a search for one preference found beside a front.
"""

PROMPTS = {"asked": '["a prompt"]', "answer": "text"}
IMAGES = {"asked": '{"image": [PNG_IN_BASE64]}', "answer": "the class of each image, by task"}
"""What a member is asked, and what it answers."""

AGENT = (
    """What is learned for profile `{profile}`, as files: a merge for every preference, and a surrogate of scores."""
)
