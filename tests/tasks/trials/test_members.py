"""Members of a front: chosen by the items of two splits together, inside the reference point, beyond noise."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from models.candidate import Candidate
from models.front import REFERENCE, Scale, nondominated
from tasks.project.progress import Progress
from tasks.scoring.engine import Scored
from tasks.trials.members import REFERENCES, Listed, choose_members, shortlist, standard_error

LAYERS, ITEMS = 8, {"search": 20, "selection": 30}
SCALE = Scale(("x", "y", "layers"), (0.9, 0.9, 0.5), (0.3, 0.3, 1.0))


class DrawnEngine:
    """Answers every item by lot, rightly the more often the more layers a path has."""

    layers = LAYERS

    def items(self, split):
        return ITEMS[split]

    def objectives(self, split):
        return SimpleNamespace(names=("x", "y"))

    def scored(self, candidates, split, bar=None):
        return [self.drawn(one, split) for one in candidates]

    def drawn(self, candidate, split):
        rng = np.random.default_rng([*candidate.id.encode(), *split.encode()])
        if candidate.path[0][1] == 1:
            return Scored(candidate, {}, "NaN")
        leaning = 0.5 + 0.4 * (candidate.path[0][0] == "a")
        rates = {"x": leaning, "y": 1.4 - leaning}
        items = {
            name: tuple(float(one) for one in rng.random(ITEMS[split]) < rate - 0.08 * (LAYERS - candidate.depth))
            for name, rate in rates.items()
        }
        return Scored(candidate, items)


@pytest.fixture
def engine():
    return DrawnEngine()


@pytest.fixture(scope="module")
def listed():
    """Two experts, and paths that drop layers of them; one of these fails."""
    rng = np.random.default_rng(0)
    found = [Listed(Candidate.identity(name, LAYERS), "expert", name) for name in ("a", "b")]
    for name in rng.choice(["a", "b"], size=60):
        kept = [0, *np.sort(rng.permutation(np.arange(2, LAYERS))[: rng.integers(2, LAYERS - 1)])]
        found.append(Listed(Candidate(str(name), tuple((str(name), int(layer)) for layer in kept)), "edit", "path"))
    found.append(Listed(Candidate("a", (("a", 1), ("a", 2))), "edit", "fails"))
    return list({one.candidate: one for one in found}.values())


def pooled(engine, listed):
    """Costs and their standard errors by the items of both splits."""
    scored = [engine.scored([one.candidate for one in listed], split) for split in ITEMS]
    values = [[np.array([*a.items[name], *b.items[name]]) for name in a.items] for a, b in zip(*scored, strict=True)]
    depths = np.array([[one.candidate.depth / LAYERS] for one in listed])
    means = np.array([[task.mean() for task in row] for row in values])
    errors = np.array([[task.std() / len(task) ** 0.5 for task in row] for row in values])
    return SCALE.relative(np.hstack([means, depths])), SCALE.relative_errors(np.hstack([errors, 0 * depths]))


def test_members_are_chosen_by_the_items_of_search_and_selection_together(engine, listed):
    sound = listed[:-1]
    costs, errors = pooled(engine, sound)
    held = np.flatnonzero((costs < REFERENCE).all(axis=1) | [one.kind in REFERENCES for one in sound])
    front = held[nondominated(costs[held], errors[held])]
    assert 2 < len(front) < len(nondominated(costs[held])) < len(held) < len(sound)  # some lead within noise alone
    assert choose_members(engine, SCALE, listed, 100, Progress()) == [sound[i] for i in front]
    assert len(choose_members(engine, SCALE, listed, 3, Progress())) == 3


def test_what_lies_beyond_the_reference_point_is_no_member_but_a_reference_may_be(engine, listed):
    costs, _ = pooled(engine, listed[:-1])
    shallow = min(listed[:-1], key=lambda one: one.candidate.depth)
    assert costs[listed.index(shallow)].max() >= REFERENCE
    assert shallow not in choose_members(engine, SCALE, listed, 100, Progress())
    assert choose_members(engine, SCALE, [Listed(shallow.candidate, "expert", "e")], 100, Progress())


def test_the_shortlist_holds_whole_and_sound_candidates_inside_the_reference_point(engine, listed):
    rows = [
        {"candidate": one.candidate.to_json(), "kind": "edit", "items": 20, "failed": None} | one.means()
        for one in engine.scored([one.candidate for one in listed[:-1]], "search")
    ]
    rows[5]["items"], rows[6]["failed"] = 19, "failed"
    archive = pd.DataFrame(rows).astype({"failed": "string"})
    archive["layers"] = [one.candidate.depth / LAYERS for one in listed[:-1]]
    costs = SCALE.relative(archive[list(SCALE.names)].to_numpy(dtype=float))
    inside = [listed[i].candidate for i in np.flatnonzero((costs < REFERENCE).all(axis=1)) if i not in (5, 6)]
    assert 5 < len(inside) < len(rows) - 2
    assert {one.candidate for one in shortlist(archive, SCALE, engine, [], 100)} == set(inside)
    known = [Listed(inside[0], "expert", "known")]
    assert {one.candidate for one in shortlist(archive, SCALE, engine, known, 100)} == set(inside[1:])
    assert len(shortlist(archive, SCALE, engine, [], 4)) == 4
    assert shortlist(archive.assign(items=0), SCALE, engine, [], 4) == []


def test_standard_error_of_a_mean():
    assert standard_error([0.0, 1.0, 1.0, 0.0]) == pytest.approx(0.25)
