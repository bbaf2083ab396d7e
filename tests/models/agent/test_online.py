"""The online search: what it chooses, promotes and credited, and that it goes on to the end of its budget."""

import math
from dataclasses import replace

import numpy as np
import pytest

from models.agent.actor import new_actor
from models.agent.judge import complete_best
from models.agent.online import Search, SearchSettings
from models.agent.phases import new_judge
from models.candidate import Candidate
from models.front import utility
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
    run = Search(trial, new_judge(trial, space), space, paths, wanted, settings, rng, new_actor(trial, space))
    run.judge.learn(trial.archive, rng)
    return run


def test_a_round_is_cut_to_what_the_budget_pays_for():
    run = begun()
    trial = run.trial
    each = trial.archive.cost(0, 10) + SEARCH.keep * trial.archive.cost(10, FULL)
    for budget, size in ((10**6, SEARCH.batch), (math.ceil(5 * each), 5), (int(each), 0)):
        trial.budget = trial.spent + budget
        assert run.affordable() == size


def test_offers_are_new_each_once_and_vary_recipe_and_path():
    run = begun()
    offers = run.offers(WANTED[:3])
    assert len(set(offers)) == len(offers) > SEARCH.offers / 2
    assert not set(offers) & {entry.candidate for entry in run.trial.archive.entries}
    assert all(one in run.judge.describer for one in offers)
    assert {run.kind(one) for one in offers} == {"recipe", "path"}
    assert {one.models[0] in run.proposer.made for one in offers} == {True, False}


@pytest.mark.parametrize(("level", "kind"), [("recipe", "recipe"), ("path", "path")])
def test_one_level_alone_can_vary(level, kind):
    run = begun(settings=replace(SEARCH, levels=(level,)), wanted=WANTED)
    known = {tuple(layer for _, layer in one.candidate.path) for one in run.trial.archive.entries}
    for one in run.offers(WANTED[:3]):
        layers = tuple(layer for _, layer in one.path)
        if level == "recipe":
            assert layers in known
        else:
            assert not set(one.models) & set(run.proposer.made)


def test_a_batch_holds_each_candidate_once_and_is_empty_without_offers():
    run = begun()
    offers = run.offers(WANTED[:3])
    for size in (1, 3, 8):
        chosen = run.choose(offers, size)
        assert len(chosen) == len(set(chosen)) == size
        assert set(chosen) <= set(offers)
    assert run.choose(offers[:2], 8) == run.choose(offers[:2], 2)
    assert run.choose([], 8) == []


@pytest.mark.parametrize("wanted", [WANTED, np.array([[0.3, 0.2, 0.2, 0.3]])], ids=["several", "one"])
def test_the_first_pick_is_what_adds_most_under_the_drawn_sample_whatever_is_expected_in_the_mean(wanted):
    run = begun(wanted=wanted)
    offers = run.offers(wanted[:1])
    drawn = np.random.default_rng(0).uniform(0.02, 0.9, (len(offers), 4))
    run.judge.draw = lambda candidates, count, rng: drawn[None]
    best = complete_best(run.judge, run.trial.archive, run.trial.complete(), run.targets)
    depths = np.array([one.depth for one in offers])
    gain = np.maximum(run.targets.values(drawn, depths) - best, 0).mean(axis=1)
    hope = run.targets.values(run.judge.costs(offers), depths).mean(axis=1)
    assert gain.max() > 0
    assert hope.argmax() != gain.argmax()  # or the mean would do
    assert run.choose(offers, 1) == [offers[int(gain.argmax())]]


def test_a_look_scores_the_actors_merges_then_cuts_of_the_best_for_equal_weights():
    run = begun(200)
    before = len(run.trial.archive)
    run.look(4)
    found = [one for one in run.trial.archive.entries[before:] if one.kind in ("actor", "deletion")]
    acted = [one for one in found if one.kind == "actor"]
    assert 1 < len(acted) <= 4
    assert all(one.items == FULL and one.candidate.is_identity(6) for one in acted)
    assert found[: len(acted)] == acted
    cut = [one.candidate for one in found[len(acted) :]]
    assert min(one.depth for one in cut) == run.trial.reward.shortest
    assert run.proposer.are_legal(cut).all()
    assert len({one.host for one in cut}) == 1
    again = len(run.trial.archive)
    run.actor = None
    run.settings = replace(SEARCH, levels=("recipe",))
    run.look(4)
    assert len(run.trial.archive) == again


def test_where_depth_weighs_nothing_no_layer_is_left_out_to_begin_with():
    run = begun(200, wanted=np.array([[0.5, 0.25, 0.25, 0.0]]))
    run.look(4)
    kinds = [one.kind for one in run.trial.archive.entries]
    assert "deletion" not in kinds
    assert kinds.count("actor") == 1


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


def test_one_preference_alone_can_be_searched_and_gains_utility():
    wanted = np.array([[0.5, 0.2, 0.2, 0.1]])
    gains = []
    for seed in range(3):
        run = begun(50, wanted=wanted, seed=seed)
        trial = run.trial
        known = [trial.archive.entries[i].candidate for i in trial.complete()]
        before = utility(trial.costs(known), wanted[0]).max()
        rows = run.run()
        assert trial.left < trial.whole
        whole = [trial.archive.entries[i].candidate for i in trial.complete()]
        assert rows[-1]["utility"] == pytest.approx(utility(trial.costs(whole), wanted[0]).max())
        gains.append(rows[-1]["utility"] - before)
    assert min(gains) >= 0
    assert np.median(gains) > 0.02


def test_a_search_over_a_space_that_is_exhausted_ends():
    """All paths over two layers of two experts are known but a few; there are no recipes to try."""
    trial, space = new_trial(500, layers=2), recipe_space()
    paths = PathSpace(("a", "b"), 2)
    every = [path for row in every_path(paths) if (path := paths.decode(row)) not in trial.archive]
    trial.spend_on(every[3:], "random")
    settings = replace(SearchSettings(), levels=("path",), rungs=(), offers=96, parents=20)
    rows = Search(trial, new_judge(trial, space), space, paths, WANTED, settings, np.random.default_rng(0)).run()
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
    run.report({})
    run.round(2)
    assert seen == run.rows
    assert len(seen) == 2
    assert np.isfinite(seen[-1]["surrogate_error"])
