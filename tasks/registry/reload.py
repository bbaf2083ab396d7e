"""The gates that look into the registry: a version is there, and what is fetched of it scores as recorded."""

from __future__ import annotations

from dataclasses import replace

from models.errors import BadInput, Failed, one_line
from tasks.front.choice import SPLIT
from tasks.front.front import Front
from tasks.project.progress import Progress
from tasks.project.workspace import Workspace
from tasks.registry.gates import REGISTERED, REPRODUCED, Check, reproduced
from tasks.registry.package import damaged
from tasks.registry.publish import add_version
from tasks.registry.versions import Package, Registered, Version, member_folder
from tasks.scoring.evaluation import evaluate

POLICY = {"members": "weights", "champion": "weights", "none": "recipe"}
"""What must be there of a version that an alias is promoted to, by the profile's ``registry.weights``."""


class Reload:
    """The registry's side of one promotion; the front is that of what is promoted."""

    def __init__(self, workspace: Workspace, registered: Registered, front: Front, progress: Progress):
        self.workspace = workspace
        self.registered = registered
        self.front = front
        self.progress = progress
        self.policy = workspace.profile.registry.weights

    def absent(self, member: str) -> Check:
        """What the gate says where a member of the present front has no version."""
        here = f"in {self.registered.name}"
        return Check(REGISTERED, "version", "none", here, False, f"member {member}: `hm3 publish` registers it")

    def checks(self, version: Version | None) -> list[Check]:
        """Whether a version and its package are there; None where what was found is not registered yet."""
        from mlflow.exceptions import MlflowException

        if version is None:
            return [Check(REGISTERED, "version", "", "", None, "registered once it loses nothing")]
        number, here = f"version {version.number}", f"in {self.registered.name}"
        found = Check(REGISTERED, "version", number, here, True, version.member)
        wanted, note = POLICY[self.policy], f"registry.weights: {self.policy}"
        try:
            package = self.registered.package(version)
        except (MlflowException, OSError) as error:
            package, note = Package(False, False, 0), one_line(error, 200)
        there = package.weights or (wanted == "recipe" and package.recipe)
        if not there and package.recipe:
            note += "; `hm3 publish` registers the front with its weights"
        return [found, Check(REGISTERED, "package", str(package), wanted, there, note)]

    def add(self, member: str, version: Version | None) -> Version | None:
        """A version made for this promotion: of what was found, or with the weights that a version lacks so far.

        None where none is to be made: weights are there already or not wanted, or the version is of another front.
        """
        if version is not None:
            late = self.policy == "champion" or (self.policy == "members" and self.front.found)
            if not late or version.has_weights or version.front_id != self.front.digest:
                return None
        made = add_version(self.workspace, self.front, self.registered.client, self.front.member(member), self.progress)
        del self.registered.versions
        return self.registered.versions[made]

    def withdraw(self, version: Version) -> None:
        """Take a version that :meth:`add` made, and its files' entry, out of the registry."""
        self.registered.client.delete_model_version(self.registered.name, str(version.number))
        self.registered.client.delete_logged_model(version.model_id)

    def reproduces(self, version: Version, recorded: dict[str, float]) -> list[Check]:
        """Whether a version, fetched from the registry, scores on `selection` as recorded."""
        from mlflow.exceptions import MlflowException

        try:
            sound, again, rebuilt = self._scores(version)
        except (BadInput, Failed, MlflowException, OSError) as error:
            return [Check(REPRODUCED, SPLIT, "", "", False, one_line(error, 200))]
        note = "rebuilt from the registered recipe" if rebuilt else ""
        rules, objectives = self.workspace.profile.promotion, self.workspace.profile.objective_names
        scored = reproduced(again, recorded, objectives, rules.reproduction)
        return [*sound, *(replace(one, note=one.note or note) for one in scored)]

    def comparable(self, present: Version, front_id: str) -> dict[str, float]:
        """Scores on `selection` of an alias's present holder, to hold a model of a front against.

        Recorded ones of another front may stand for other items, so such a version is scored again where it can be.
        """
        from mlflow.exceptions import MlflowException

        recorded = self.registered.scores(present, SPLIT)
        if present.front_id == front_id:
            return recorded
        try:
            return self._scores(present)[1]
        except (BadInput, Failed, MlflowException, OSError) as error:
            said = f"is compared by its recorded scores: {one_line(error, 200)}"
            self.progress.message(f"version {present.number} {said}")
            return recorded

    def _scores(self, version: Version) -> tuple[list[Check], dict[str, float], bool]:
        """Checksums and scores of what is fetched, and whether it had to be rebuilt from its recipe."""
        with (
            self.progress.bar(f"fetching version {version.number} from the registry") as bar,
            self.registered.fetched(version, self.workspace.state / "mlflow") as package,
        ):
            bar.advance()
            wrong = damaged(package)
            if wrong:
                raise Failed(f"{wrong[0]}: is not what its checksum in the registry says; publish the front again")
            sums = [] if wrong is None else [Check(REPRODUCED, "checksums", "as recorded", "as recorded", True)]
            folder = member_folder(package)
            rebuilt = not (folder / "config.json").is_file()
            target = folder / "recipe.yaml" if rebuilt else folder
            found = evaluate(self.workspace, str(target), SPLIT, self.workspace.root, self.progress)
        return sums, found.scores, rebuilt
