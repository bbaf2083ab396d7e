"""The phases before the online search: recipes, anchors, the offline data set, and training on it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.agent.actor import ActorSettings, new_actor
from models.agent.online import Search
from models.agent.phases import (
    HELD_OUT,
    DatasetSettings,
    SampleSettings,
    TrainSettings,
    anchors,
    new_judge,
    offline_paths,
    sample,
    split,
    teach,
    train,
)
from models.candidate import Candidate
from models.preferences import preferences
from models.search.anchors import choose_anchors
from models.search.environment import PathSpace
from tests.models.agent.small import SEARCH
from tests.models.lab import EXPERTS, FULL, new_trial, reached, recipe_space

WANTED = preferences(4, 8, np.random.default_rng(0))


def sampled(candidates=12, budget=60, **changes):
    trial = new_trial(budget, **changes)
    sample(trial, recipe_space(), WANTED, SampleSettings(candidates), np.random.default_rng(0))
    return trial


def test_sampling_scores_plain_merges_and_so_many_recipes_on_all_items():
    trial = sampled(12)
    kinds = Counter(entry.kind for entry in trial.archive.entries)
    assert kinds == {"base": 1, "expert": 3, "baseline": 4, "recipe": 12}
    assert all(entry.items == FULL and entry.candidate.is_identity(6) for entry in trial.archive.entries)
    assert trial.spent == 16 * trial.whole
    assert trial.budget == new_trial(60).budget
    plain = list(recipe_space().plain_merges().values())
    assert [trial.recipes[entry.candidate.host] for entry in trial.archive.entries[4:8]] == plain


def test_guided_recipes_gain_more_than_as_many_that_fill_the_space():
    gains = {0.5: [], 1.0: []}
    for seed in range(3):
        for spread, found in gains.items():
            trial = new_trial(40, depth=False, seed=seed)
            settings = SampleSettings(16, spread)
            sample(
                trial,
                recipe_space(),
                preferences(3, 8, np.random.default_rng(0)),
                settings,
                np.random.default_rng(seed),
            )
            assert trial.spent == 20 * trial.whole
            found.append(reached(trial))
    assert np.median(gains[0.5]) > np.median(gains[1.0])


@pytest.mark.parametrize("budget", [0, 2, 7])
def test_sampling_ends_with_the_budget(budget):
    trial = sampled(12, budget)
    assert trial.spent == budget * trial.whole
    assert len(trial.archive) == 4 + budget


def test_anchors_are_the_merges_that_serve_the_preferences_best_together():
    trial = sampled()
    found = anchors(trial, WANTED, 3)
    merges = [entry.candidate for entry in trial.archive.entries[4:]]
    assert found == [merges[i].host for i in choose_anchors(trial.costs(merges), WANTED, 3)]
    path = PathSpace((found[0],), 6).edits(Candidate.identity(found[0], 6), np.random.default_rng(0), 1)
    trial.spend_on(path, "edit")
    assert anchors(trial, WANTED, 3) == found


def test_without_a_sound_merge_there_are_no_anchors():
    trial = sampled(fails=(1, None))
    assert anchors(trial, WANTED, 3) == []


@pytest.mark.parametrize("spare", [3, 0])
def test_the_offline_data_set_holds_what_its_settings_say_identities_first(spare):
    paths = PathSpace(EXPERTS, 6)
    found = offline_paths(paths, DatasetSettings(edits=20, random=9), np.random.default_rng(0), spare)
    assert Counter(found.values()) == {"identity": 3, "edit": 20, "random": 9}
    assert list(found)[:3] == [paths.identity(model) for model in EXPERTS]
    assert all(paths.contains(path) for path in found)
    again = offline_paths(paths, DatasetSettings(edits=20, random=9), np.random.default_rng(0), spare)
    assert list(again.items()) == list(found.items())


def test_where_depth_counts_the_offline_data_set_knows_what_several_layers_cost():
    deep, short = (
        offline_paths(PathSpace(EXPERTS, 12), DatasetSettings(edits=36), np.random.default_rng(0), spare)
        for spare in (0, 6)
    )
    cut = [one for one in short if 6 <= one.depth <= 9 and len(one.models) == 1]
    assert len(cut) >= 6 > sum(one.depth <= 9 for one in deep)
    for one in cut:
        layers = [layer for _, layer in one.path]
        assert layers == sorted(set(layers))


def test_the_offline_data_set_leaves_out_as_many_layers_as_depth_asks_for():
    found = offline_paths(PathSpace(EXPERTS, 30), DatasetSettings(edits=60), np.random.default_rng(0), 4)
    depths = [path.depth for path, kind in found.items() if kind == "edit"]
    assert {26, 27, 28, 29} <= set(depths[:30]) <= {26, 27, 28, 29}  # these edits come first


def test_every_layer_can_be_left_out_once_and_alone_before_any_other_edit():
    paths, settings = PathSpace((*EXPERTS, "m", "n"), 12), DatasetSettings(edits=15, deletions="each")
    found = [
        path
        for path, kind in offline_paths(paths, settings, np.random.default_rng(0), 3, ("m", "n")).items()
        if kind == "edit"
    ]
    assert len(found) == 15
    lacking = [set(range(12)) - {layer for _, layer in path.path} for path in found[:12]]
    assert sorted(map(tuple, lacking)) == [(layer,) for layer in range(12)]
    assert [path.models for path in found[:12]] == [("m",), ("n",)] * 6
    few = offline_paths(paths, DatasetSettings(edits=4, deletions="each"), np.random.default_rng(0), 3)
    assert Counter(few.values()) == {"identity": 5, "edit": 4}


def trained(seed=0):
    trial, rng = sampled(), np.random.default_rng(0)
    paths = PathSpace((*EXPERTS, *anchors(trial, WANTED, 2)), 6)
    found = offline_paths(paths, DatasetSettings(edits=25), rng, 3)
    new = [path for path in found if path not in trial.archive]
    trial.spend_on(new, [found[path] for path in new], 10)
    judge, told = new_judge(trial, recipe_space()), []
    rows = train(trial, judge, TrainSettings(steps=20), np.random.default_rng(seed), told.append)
    return trial, judge, rows, told


def test_training_reports_its_progress_and_teaches_the_surrogate_all_that_was_scored():
    trial, judge, rows, told = trained()
    assert told == list(range(1, 21))
    assert [row["step"] for row in rows] == list(range(2, 21, 2))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert 0 < rows[-1]["held_out"] < 1  # the share of the variance on held-out candidates that it leaves unexplained
    assert len(judge.surrogate.target) == len(trial.archive)


def test_what_the_surrogate_leaves_unexplained_counts_its_bias_too():
    trial, judge, rows, _ = trained()
    archive, rng = trial.archive, np.random.default_rng(0)
    index = archive.scored(1)
    kept, held_out = split([archive.entries[i].candidate for i in index], HELD_OUT, rng)
    described = judge.describe([archive.entries[i].candidate for i in index])
    scores, items = archive.task_scores(index), np.array([archive.cost(0, archive.entries[i].items) for i in index])
    surrogate = new_judge(trial, recipe_space()).surrogate
    surrogate.fit(described[kept], scores[kept], items[kept], 20, rng)
    expected = 0.0
    for k, predicted in enumerate(surrogate.predict(described[held_out])[0].T):
        true = scores[held_out, k]
        expected += sum((a - b) ** 2 for a, b in zip(predicted, true, strict=True)) / len(true) / scores[:, k].var() / 3
    assert rows[-1]["held_out"] == pytest.approx(expected, rel=1e-6)


@given(st.integers(2, 30), st.floats(0, 1), st.integers(0, 99))
def test_a_candidate_is_fitted_or_held_out(count, share, seed):
    kept, held_out = split(
        [Candidate.identity("a", depth) for depth in range(1, count + 1)], share, np.random.default_rng(seed)
    )
    assert sorted([*kept, *held_out]) == list(range(count))
    assert len(kept) and len(held_out)


def test_the_same_seed_trains_the_same_bit_for_bit():
    first, second = trained(), trained()
    assert first[2] == second[2]
    for name, value in first[1].surrogate.state().items():
        assert torch.equal(value, second[1].surrogate.state()[name])


def test_teaching_trains_in_two_legs_with_a_look_between_them_and_keeps_to_what_the_budget_pays_for():
    trial, space, rng = new_trial(300, uneven=True), recipe_space(), np.random.default_rng(0)
    sample(trial, space, WANTED, SampleSettings(), rng)
    actor, paths, told = new_actor(trial, space), PathSpace(EXPERTS, 6), []
    online = Search(trial, new_judge(trial, space), space, paths, WANTED, SEARCH, rng, actor)
    before, settings = actor.matrix, ActorSettings(items=4, early=0.25)
    rows = teach(online, settings, 20, lambda: told.append(len(trial.lab.lessons)))
    assert told == list(range(1, 21))
    assert [row["step"] for row in rows] == told
    assert not actor.matrix.equal(before)
    looked = [one for one in trial.archive.entries if one.kind == "actor"]
    assert 1 <= len(looked) <= 2
    assert trial.recipes[looked[0].candidate.host] != actor.recipe(space, np.full(3, 1 / 3))  # it was half trained then
    assert any(one.kind == "deletion" for one in trial.archive.entries)
    poor = new_trial(20, uneven=True)
    online = replace(online, trial=poor, judge=new_judge(poor, space), actor=new_actor(poor, space))
    teach(online, settings, 1)
    assert poor.left >= 0.6 * poor.budget
    trial, settings = poor, replace(settings, share=0.9)
    trial.budget = trial.spent + 5 * settings.cost(trial.lab.answered)
    assert len(teach(online, settings, 20)) < 5
    assert trial.left >= 0
