"""The online search: what it chooses, promotes and credited, and that it goes on to the end of its budget."""

import math
from collections import Counter
from dataclasses import replace
from itertools import islice, permutations

import numpy as np
import pytest

from models.agent.actor import new_actor
from models.agent.judge import complete_best
from models.agent.online import SearchSettings, _Search, search
from models.agent.phases import new_judge
from models.candidate import Candidate
from models.front import hypervolume, utility
from models.preferences import preferences
from models.search.environment import PathSpace
from tests.models.agent.small import SEARCH
from tests.models.lab import EXPERTS, FULL, every_path, new_trial, recipe_space

WANTED = preferences(4, 8, np.random.default_rng(0))


def begun(candidates=60, settings=SEARCH, wanted=WANTED, pool=EXPERTS, **changes):
    """A search whose trial has scored a few recipes, and some paths on a part of the items."""
    trial, space, rng = new_trial(candidates, uneven=True, **changes), recipe_space(), np.random.default_rng(0)
    trial.spend_on([trial.add(space.recipe(point)) for point in space.sample(6, rng)], "recipe")
    paths = PathSpace(pool, trial.lab.layers)
    some = list(dict.fromkeys(paths.random_path(rng) for _ in range(20)))
    trial.spend_on([one for one in some if one not in trial.archive], "random", 10)
    run = _Search(trial, new_judge(trial, space), space, paths, wanted, settings, rng, None, new_actor(trial, space))
    run.judge.learn(trial.archive, rng)
    return run


def test_a_round_is_cut_to_what_the_budget_pays_for():
    run = begun()
    trial = run.trial
    each = trial.archive.cost(0, 10) + SEARCH.keep * trial.archive.cost(10, FULL)
    for budget, size in ((10**6, SEARCH.batch), (math.ceil(5 * each), 5), (int(each), 0)):
        trial.budget = trial.spent + budget
        assert run.affordable() == size


def test_offers_are_new_each_once_and_of_their_kind():
    run = begun()
    offers = run.offers(WANTED[:3])
    assert tuple(offers) == SEARCH.kinds
    every = [one for some in offers.values() for one in some]
    assert len(set(every)) == len(every)
    assert not set(every) & {entry.candidate for entry in run.trial.archive.entries}
    assert all(offers.values())
    assert set(every) == {one for one in every if one in run.judge.describer}


def test_a_batch_holds_each_candidate_once_and_fills_the_shares_of_the_kinds():
    run = begun()
    offers = run.offers(WANTED[:3])
    for size in (1, 3, 8):
        chosen = run.choose(offers, size)
        assert len(chosen) == len({one for one, _ in chosen}) == size
        assert all(one in offers[kind] for one, kind in chosen)


@pytest.mark.parametrize("size", [1, 8])
def test_places_of_a_kind_without_offers_go_to_the_others(size):
    run = begun()
    offers = {"actor": [], "recipe": [], "layered": [], "edit": run.offers(WANTED[:3])["edit"]}
    for _ in range(8):
        chosen = run.choose(offers, size)
        assert len(chosen) == size
        assert {kind for _, kind in chosen} == {"edit"}
    few = {"actor": [], "recipe": [], "layered": [], "edit": offers["edit"][:2]}
    assert len(run.choose(few, 8)) == 2
    assert run.choose({kind: [] for kind in offers}, 8) == []


@pytest.mark.parametrize("wanted", [WANTED, np.array([[0.3, 0.2, 0.2, 0.3]])], ids=["several", "one"])
def test_later_kinds_are_chosen_for_what_they_add_to_the_picks_of_earlier_ones(wanted):
    """Under one drawn sample, in which the second kind's are the better ones, whatever is expected in the mean."""
    run = begun(settings=replace(SEARCH, kinds=("recipe", "edit")), wanted=wanted)
    offers = run.offers(wanted[:1])
    rng = np.random.default_rng(0)
    drawn = {"recipe": rng.uniform(0.5, 0.9, (len(offers["recipe"]), 4))}
    drawn["edit"] = rng.uniform(0.02, 0.3, (len(offers["edit"]), 4))
    run.judge.draw = lambda candidates, count, rng: np.concatenate([drawn["recipe"], drawn["edit"]])[None]
    run.shares.places = lambda size, rng: {"recipe": 1, "edit": 1}
    best = complete_best(run.judge, run.trial.archive, run.trial.complete(), run.targets)
    expected = []
    for kind in ("recipe", "edit"):
        depths = np.array([one.depth for one in offers[kind]])
        values = run.targets.values(drawn[kind], depths)
        hope = run.targets.values(run.judge.costs(offers[kind]), depths).mean(axis=1)
        gain = np.maximum(values - best, 0).mean(axis=1)
        pick = int(gain.argmax()) if gain.max() > 0 else int(hope.argmax())
        expected.append((offers[kind][pick], kind))
        best = np.maximum(best, values[pick])
    assert gain.max() > 0
    assert hope.argmax() != pick  # or the mean would do
    assert run.choose(offers, 2) == expected


@pytest.mark.parametrize("places", [(2, 2, 2, 2), (1, 1, 1, 5), (4, 4, 4, 4)])
def test_the_kinds_together_use_all_drawn_samples_alike(places):
    """Each kind has two candidates for each sample that are excellent under this one alone."""
    run = begun()
    samples, size = run.settings.samples, sum(places)
    paths = iter(dict.fromkeys(run.proposer.paths.random_path(run.rng) for _ in range(300)))
    offers = {kind: [next(paths) for _ in range(2 * samples)] for kind in SEARCH.kinds}
    excellent = {one: i % samples for some in offers.values() for i, one in enumerate(some)}
    draw = np.full((samples, len(excellent), 4), 1.1)
    for i, sample in enumerate(excellent.values()):
        draw[sample, i] = np.where(np.arange(4) == i // samples % 2, -10.0, 0.0)  # neither of the two dominates
    run.judge.draw = lambda candidates, count, rng: draw
    run.shares.places = lambda size, rng: dict(zip(SEARCH.kinds, places, strict=True))
    chosen = run.choose(offers, size)
    assert Counter(kind for _, kind in chosen) == dict(zip(SEARCH.kinds, places, strict=True))
    assert Counter(excellent[one] for one, _ in chosen) == dict.fromkeys(range(samples), size // samples)


def test_promotion_takes_what_is_expected_to_add_most_and_scores_the_rest_of_its_items():
    run = begun()
    archive = run.trial.archive
    partly, whole = archive.scored(1, FULL), archive.scored(FULL)
    best = complete_best(run.judge, archive, whole, run.targets)
    candidates = [archive.entries[i].candidate for i in partly]
    values = run.targets.values(run.judge.costs(candidates), archive.depths(partly))
    gain = np.maximum(values - best, 0).mean(axis=1)
    before = len(run.trial.lab.spans)
    run.promote(1, FULL, 1)
    assert run.trial.lab.spans[before:] == [(candidates[int(gain.argmax())], 10, FULL)]
    run.promote(1, FULL, 100)
    promoted = {one for one, _, _ in run.trial.lab.spans[before:]}
    assert promoted <= set(candidates)
    assert len(promoted) < len(candidates)  # what is expected to add nothing stays where it is
    assert all(archive[one].items == FULL for one in promoted)


def test_failed_candidates_are_never_parents_nor_promoted_nor_learnt_from():
    run = begun(fails=(3, "nan"))
    failed = {entry.candidate for entry in run.trial.archive.entries if entry.scores is None}
    assert len(failed) > 4
    parents = {one for some in run.proposer.parents(WANTED, 50) for one in some}
    assert not failed & parents
    assert len(parents) == len(run.trial.archive) - len(failed)
    assert len(run.judge.surrogate.target) == len(parents)
    before = len(run.trial.lab.spans)
    run.promote(1, FULL, 100)
    assert not failed & {one for one, _, _ in run.trial.lab.spans[before:]}
    run.trial.budget = 10**6
    while run.number < 2:
        run.round(8)
    again = [one for one, _, _ in run.trial.lab.spans[before:]]
    assert not failed & set(again)
    assert np.isfinite([row["hv"] for row in run.rows]).all()


def test_the_credit_of_a_round_is_what_it_cost_and_added_by_kind():
    run = begun()
    before, whole = {entry.candidate: entry.charged for entry in run.trial.archive.entries}, run.trial.complete()
    entries = run.trial.archive.entries
    known = run.judge.costs([entries[i].candidate for i in whole])
    offers = run.offers(WANTED[:3])
    recipe, *edits = (run.proposer.enter(one) for one in (offers["recipe"][0], *offers["edit"][:2]))
    run.trial.spend_on([recipe], "recipe")
    run.trial.spend_on(edits, "edit", 10)
    run.credit(before)
    assert run.shares.cost == {"actor": 0, "recipe": 60, "layered": 0, "edit": 60}
    grown = np.concatenate([known, run.judge.costs([recipe])])
    assert run.shares.gain["recipe"] == pytest.approx(hypervolume(grown) - hypervolume(known))
    assert run.shares.gain["edit"] == 0


def test_the_credit_of_a_kind_does_not_depend_on_the_order_in_which_kinds_are_listed():
    """All kinds find nearly the same gain. Who comes first must not take all of it."""
    found = None
    credited = []
    for order in islice(permutations(SEARCH.kinds), 0, None, 5):
        run = begun(settings=replace(SEARCH, kinds=order))
        before, whole = {one.candidate: one.charged for one in run.trial.archive.entries}, run.trial.complete()
        if found is None:
            known = run.judge.costs([run.trial.archive.entries[i].candidate for i in whole])
            edits = run.proposer.propose("edit", WANTED[:3], run.proposer.parents(WANTED[:3], 4), 60, run.rng)
            edits = [one for one in dict.fromkeys(edits) if one not in run.trial.archive]
            gains = [hypervolume(np.concatenate([known, run.judge.costs([one])])) for one in edits]
            best = [edits[i] for i in np.argsort(gains)[: -len(SEARCH.kinds) - 1 : -1]]
            found = dict(zip(SEARCH.kinds, best, strict=True))
            together = hypervolume(np.concatenate([known, run.judge.costs(best)])) - hypervolume(known)
            assert together < 0.9 * (sum(sorted(gains)[-4:]) - 4 * hypervolume(known))  # or the order would not matter
        for kind in order:
            run.trial.spend_on([found[kind]], kind)
        run.credit(before)
        credited.append([run.shares.gain[kind] for kind in SEARCH.kinds])
        assert sum(credited[-1]) == pytest.approx(together)
    np.testing.assert_allclose(credited, np.tile(credited[0], (len(credited), 1)), rtol=1e-6)
    assert min(credited[0]) > 0


def test_one_preference_alone_can_be_searched_and_gains_utility():
    wanted = np.array([[0.5, 0.2, 0.2, 0.1]])
    gains = []
    for seed in range(3):
        run = begun(50, wanted=wanted, seed=seed)
        trial = run.trial
        rows = search(trial, run.judge, recipe_space(), run.proposer.paths, wanted, SEARCH, np.random.default_rng(seed))
        assert trial.left < trial.whole
        whole = [trial.archive.entries[i].candidate for i in trial.complete()]
        assert rows[-1]["utility"] == pytest.approx(utility(trial.costs(whole), wanted[0]).max())
        gains.append(rows[-1]["utility"] - rows[0]["utility"])
    assert min(gains) >= 0
    assert np.median(gains) > 0.02


def test_a_search_over_a_space_that_is_exhausted_ends():
    """All paths over two layers of two experts are known but a few; there are no recipes to try."""
    trial, space = new_trial(500, layers=2), recipe_space()
    paths = PathSpace(("a", "b"), 2)
    every = [path for row in every_path(paths) if (path := paths.decode(row)) not in trial.archive]
    trial.spend_on(every[3:], "random")
    settings = replace(SearchSettings(), kinds=("edit",), rungs=(), offers=96, parents=20)
    rows = search(trial, new_judge(trial, space), space, paths, WANTED, settings, np.random.default_rng(0))
    assert trial.left > trial.whole
    assert rows[-1]["evaluations"] == trial.spent
    known = {entry.candidate for entry in trial.archive.entries}
    base = Candidate.identity("base", 2)
    assert {path for path in every if path in known} >= set(every[3:])
    assert base in known
    assert all(set(one.models) <= {"a", "b", "c", "base"} for one in known)


def test_the_rows_are_told_as_they_come():
    run = begun(20)
    seen = []
    run.on_round = seen.append
    run.begin()
    run.round(2)
    assert seen == run.rows
    assert len(seen) == 2
    assert np.isfinite(seen[-1]["surrogate_error"])
