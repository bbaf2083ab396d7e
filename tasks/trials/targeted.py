"""`hm3 choose --search N`: the search goes on from archive and agent for one preference (method.md, section 4).

It begins with everything that the pipeline has scored, and spends what N candidates cost on all items of `search`.
Nothing under ``runs/`` changes and `test` is not read. The journal answers for what was scored before, so the same call
gives the same model and scores nothing, and one that was cut off goes on.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from models.agent.judge import Judge
from models.agent.online import Search
from models.candidate import Candidate
from models.front import Array, choose, utility
from models.search.trial import Trial
from tasks.front.choice import SPLIT, Wish, choose_among
from tasks.front.found import keep
from tasks.front.front import Front, Member
from tasks.project.progress import Progress
from tasks.project.workspace import Workspace
from tasks.trials.pool import recipe_of
from tasks.trials.reopened import on_selection, reopen
from tasks.trials.repair import repair_members
from tasks.trials.settings import search_settings

SHORTLIST = 12
"""Candidates beside the members that are scored on `selection`. More would find more lucky ones, not better ones."""


@dataclass(frozen=True)
class Targeted:
    """What a search for one preference has found."""

    member: Member
    """A member of the front, where that still is the best."""
    candidates: int
    """N, the candidates whose cost could be spent."""
    item_evaluations: int
    """What was charged."""
    tried: int
    """Candidates that nobody had tried before, on some items at least."""
    utility: float
    """Of what was found, on `selection`."""
    best_member: str | None
    """Id of the best member of the front that meets the requirements, where one does."""
    member_utility: float | None
    """Its utility on `selection`."""

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints beside the member."""
        return {key: value for key, value in asdict(self).items() if key != "member"} | {"split": SPLIT}

    def __str__(self) -> str:
        spent = f"spent {self.item_evaluations:,} item evaluations, on {self.tried} candidates that were new"
        if self.best_member is None:
            return f"{spent}\nutility on {SPLIT} {self.utility:.3f}; no member of the front meets the requirements"
        if self.best_member == self.member.id:
            return f"{spent}\nutility on {SPLIT} {self.utility:.3f}; nothing was found that serves better"
        before = f"that of the best member, {self.best_member}, is {self.member_utility:.3f}"
        return f"{spent}\nutility on {SPLIT} {self.utility:.3f}; {before}"


def search_for(workspace: Workspace, front: Front, wish: Wish, count: int, progress: Progress) -> Targeted:
    """Search for one preference and choose, among what is best on `search` and the members, on `selection`.

    Args:
        workspace: its agent, archive and front must be there.
        front: the members.
        wish: preference and requirements. The search keeps to the requirements, too.
        count: candidates whose cost on all items of `search` may be spent.

    Raises:
        BadInput: a file is missing or of another version, or nothing meets the requirements.
    """
    run = reopen(workspace, front, wish, progress)
    engine, trial, judge = run.engine, run.trial, run.judge
    trial.budget = trial.spent + count * trial.whole
    began, known = trial.spent, len(trial.archive)
    rng = np.random.default_rng([workspace.params.seed, 7, seed_of(wish.weights)])
    with progress.bar("searching", trial.left, "item evaluations") as bar:
        trial.on_spent = bar.advance
        settings, wanted = search_settings(workspace.params.search), wish.weights[None]
        search = Search(trial, judge, run.space, run.paths, wanted, settings, rng, run.agent.actor)
        search.on_round = lambda row: bar.advance(0, f"utility {row['utility']:.3f}")
        search.run()
    judge.learn(trial.archive, rng, steps=0)
    members = {one.candidate for one in front.members}
    new = [one for one in best(trial, judge, wish.weights, len(front.members) + SHORTLIST) if one not in members]
    listed = on_selection(engine, trial, front, new[:SHORTLIST], wish, progress)
    chosen = choose_among(front, [*front.members, *listed], wish)
    if chosen in listed:
        repair_members(engine, [chosen.candidate])
        if engine.repaired(chosen.candidate) != chosen.candidate:
            (chosen,) = on_selection(engine, trial, front, [chosen.candidate], wish, progress)
        text, level = recipe_of(workspace, engine, chosen.candidate)
        chosen = keep(workspace, replace(chosen, mergekit=level), text)
    fits = [one for one in front.members if wish.holds(one)]
    before = fits[choose(front.costs(fits, SPLIT), wish.weights)] if fits else None
    return Targeted(
        member=chosen,
        candidates=count,
        item_evaluations=trial.spent - began,
        tried=len(trial.archive) - known,
        utility=utility_of(front, chosen, wish.weights),
        best_member=before.id if before else None,
        member_utility=utility_of(front, before, wish.weights) if before else None,
    )


def seed_of(weights: Array) -> int:
    """A number that follows from a preference, to six digits of each weight."""
    text = ",".join(f"{weight:.6f}" for weight in weights)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def best(trial: Trial, judge: Judge, weights: Array, count: int) -> list[Candidate]:
    """Fully scored candidates of the greatest expected utility: their own scores alone are those of the lucky."""
    whole = trial.complete()
    found = [trial.archive.entries[i].candidate for i in whole]
    u = trial.reward.utility(judge.costs(found), trial.archive.depths(whole), weights)
    return [found[i] for i in np.argsort(-u, kind="stable")[:count]]


def utility_of(front: Front, member: Member, weights: Array) -> float:
    """Utility on `selection`."""
    return float(utility(front.costs([member], SPLIT), weights)[0])
