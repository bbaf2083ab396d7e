"""Members of a front: looked at on `search`, chosen by the items of two splits together."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from models.candidate import Candidate
from models.front import REFERENCE, Scale, utility
from tasks.project.progress import Progress
from tasks.scoring.engine import Scored
from tasks.trials.chosen import ItemTable, choose, chosen_by
from tasks.trials.members import Listed, choose_members, shortlist, standard_error

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
    """What the rule is to be given: the items of both splits, one after the other."""
    scored = [engine.scored([one.candidate for one in listed], split) for split in ITEMS]
    items = {
        name: np.array([[*a.items[name], *b.items[name]] for a, b in zip(*scored, strict=True)]) for name in ("x", "y")
    }
    return ItemTable(SCALE, items, np.array([one.candidate.depth for one in listed]), LAYERS)


@pytest.mark.parametrize("count", [2, 6, 100])
def test_members_are_chosen_by_the_items_of_search_and_selection_together(engine, listed, count):
    sound = listed[:-1]
    chosen = choose(pooled(engine, sound), [0, 1], count)
    found = choose_members(engine, SCALE, listed, count, Progress())
    assert found.members == tuple(sound[i] for i in chosen.members)
    assert found.corners == tuple(sound[i] for i in chosen.corners)
    assert found.all == [*found.members, *found.corners]
    assert 1 <= len(found.members) <= count


def test_what_lies_beyond_the_reference_point_is_no_member_but_a_reference_may_be(engine, listed):
    costs = pooled(engine, listed[:-1]).costs
    shallow = min(listed[:-1], key=lambda one: one.candidate.depth)
    assert costs[listed.index(shallow)].max() >= REFERENCE
    assert shallow not in choose_members(engine, SCALE, listed, 100, Progress()).all
    assert choose_members(engine, SCALE, [Listed(shallow.candidate, "expert", "e")], 100, Progress()).all


def test_it_is_said_where_plain_merges_need_more_places():
    class Steady(DrawnEngine):
        def drawn(self, candidate, split):
            angle = int(candidate.host[1:]) * np.pi / 12
            scores = {"x": 0.3 + 0.6 * np.sin(angle), "y": 0.3 + 0.6 * np.cos(angle)}
            return Scored(candidate, {name: (score,) * ITEMS[split] for name, score in scores.items()})

    plain = [Listed(Candidate.identity(f"m{i}", LAYERS), "baseline", f"m{i}") for i in range(7)]
    for count, told in ((3, 1), (7, 0)):
        progress, said = Progress(None), []
        progress.message = said.append
        assert len(choose_members(Steady(), SCALE, plain, count, progress).all) == 7
        assert len(said) == told


@pytest.fixture
def archive(engine, listed):
    """All sound candidates as the search leaves them, scored on the search split."""
    rows = [
        {"candidate": one.candidate.to_json(), "kind": one.kind, "items": 20, "failed": None} | one_scored.means()
        for one, one_scored in zip(
            listed[:-1], engine.scored([one.candidate for one in listed[:-1]], "search"), strict=True
        )
    ]
    table = pd.DataFrame(rows).astype({"failed": "string"})
    table["layers"] = [one.candidate.depth / LAYERS for one in listed[:-1]]
    return table


def test_the_shortlist_holds_whole_and_sound_candidates_inside_the_reference_point(engine, listed, archive):
    archive.loc[5, "items"], archive.loc[6, "failed"] = 19, "failed"
    costs = SCALE.relative(archive[list(SCALE.names)].to_numpy(dtype=float))
    inside = [listed[i].candidate for i in np.flatnonzero((costs < REFERENCE).all(axis=1)) if i not in (0, 1, 5, 6)]
    known = listed[:2]
    assert 5 < len(inside) < len(archive) - 4
    assert {one.candidate for one in shortlist(archive, SCALE, engine, known, 100)} == set(inside)
    assert len(shortlist(archive, SCALE, engine, known, 4)) == 4
    assert shortlist(archive.assign(items=0), SCALE, engine, known, 4) == []


def test_experts_and_plain_merges_are_looked_at_in_any_case(engine, listed, archive):
    archive.loc[9, "kind"] = "baseline"
    always = [listed[i].candidate for i in (0, 1, 9)]
    assert [one.candidate for one in shortlist(archive, SCALE, engine, [], 0)] == always
    found = shortlist(archive, SCALE, engine, listed[1:2], 3)
    assert [one.candidate for one in found[:2]] == [always[0], always[2]] and len(found) == 5


def test_the_shortlist_serves_who_ignores_depth_as_well_as_who_does_not(engine, listed, archive):
    """The best of each preference over tasks alone, full depth or not, is looked at before second bests."""
    found = {one.candidate for one in shortlist(archive, SCALE, engine, listed[:2], 100)}
    first = shortlist(archive, SCALE, engine, listed[:2], 12)
    costs = SCALE.relative(archive[list(SCALE.names)].to_numpy(dtype=float))
    u = utility(costs, chosen_by(SCALE.names))
    place = {listed[i].candidate: i for i in range(len(archive))}

    def worth(candidates):
        return u[[0, 1, *(place[one] for one in candidates)]].max(axis=0)

    for half in (slice(0, None, 2), slice(1, None, 2)):
        everything, few = worth(found)[half], worth(one.candidate for one in first)[half]
        assert (few - worth([])[half]).sum() >= 0.9 * (everything - worth([])[half]).sum()


def test_standard_error_of_a_mean():
    assert standard_error([0.0, 1.0, 1.0, 0.0]) == pytest.approx(0.25)
