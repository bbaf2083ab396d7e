"""The actor finds what is best by slopes, whatever the order of experts, and its merges are plain recipes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.agent.actor import (
    Actor,
    ActorSettings,
    Deck,
    draw_preference,
    new_actor,
    own_tasks,
    smooth_tchebycheff,
    steps_of,
    train_actor,
)
from models.front import hypervolume
from models.merge.recipe import Recipe, mergekit_level
from models.merge.space import RecipeSpace
from models.preferences import preferences
from tests.models.lab import COUNTS, EXPERTS, new_trial, recipe_space

SETTINGS = ActorSettings(items=8)


def trained(seed=0, settings=SETTINGS, space=None, **changes):
    trial = new_trial(depth=False, uneven=True, **changes)
    actor = new_actor(trial, space or recipe_space())
    rows = train_actor(actor, trial, settings, steps_of(trial, settings), np.random.default_rng(seed))
    return trial, actor, rows


def front(trial, weights):
    """Costs of merges with these coefficients, from the formula itself."""
    every = [range(count) for count in COUNTS]
    scores = [[one.real for one in trial.lab.slopes(one, every)] for one in weights]
    return trial.reward.costs(np.array(scores), np.full(len(scores), trial.lab.layers))


WANTED = preferences(3, 24, np.random.default_rng(0))


def test_a_merge_for_every_preference_beats_what_the_actor_began_with_and_what_many_random_merges_reach():
    trial, actor, rows = trained()
    began = new_actor(trial, recipe_space())
    drawn = np.random.default_rng(1).uniform(0, 1.2, (300, 3, 6))
    ours = hypervolume(front(trial, [actor.weights(one) for one in WANTED]))
    assert ours > hypervolume(front(trial, [began.weights(one) for one in WANTED])) + 0.05
    assert ours > hypervolume(front(trial, drawn)) + 0.05
    assert np.mean([row["loss"] for row in rows[-10:]]) < np.mean([row["loss"] for row in rows[:10]])


def test_the_best_model_of_all_is_found():
    """Sums that are best in every layer and task are the optimum of all preferences at once."""
    trial = new_trial(depth=False, uneven=False, candidates=2000)
    actor = new_actor(trial, recipe_space())
    settings = ActorSettings(items=30)
    train_actor(actor, trial, settings, steps_of(trial, settings), np.random.default_rng(0))
    scores = [one.real for one in trial.lab.slopes(actor.weights(np.ones(3)), [range(one) for one in COUNTS])]
    best = 2.05 - 0.4 * (2.05 - 0.8) ** 2
    assert scores == pytest.approx([best * row.sum() for row in trial.lab.weight], abs=0.02)


def test_the_budget_s_share_is_spent_three_evaluations_an_item():
    for share in (None, 0.5):
        trial, _, rows = trained(settings=ActorSettings(share=share, items=8))
        cost = 3 * 8 * 3
        assert trial.spent == len(rows) * cost
        assert len(rows) == int((share or 0.5) * trial.budget / cost)


def test_a_quarter_of_what_is_left_stays_for_scoring_its_merges():
    trial = new_trial(depth=False, uneven=True)
    trial.spent = trial.budget // 2
    before, actor, settings = trial.left, new_actor(trial, recipe_space()), replace(SETTINGS, share=0.75)
    train_actor(actor, trial, settings, steps_of(trial, settings), np.random.default_rng(0))
    assert 0.25 * before <= trial.left < 0.25 * before + 3 * 8 * 3


def test_the_same_seed_gives_the_same_actor_and_another_one_another():
    (_, one, rows), (_, same, again), (_, other, _) = trained(3), trained(3), trained(4)
    assert one.matrix.equal(same.matrix)
    assert rows == again
    assert not one.matrix.equal(other.matrix)


def test_the_order_of_experts_does_not_matter():
    order = ("c", "a", "b")
    turned = RecipeSpace(("task_arithmetic",), "base", {name: name for name in order})
    trial = new_trial(depth=False, uneven=True)
    straight = trial.lab.slopes
    places = [order.index(name) for name in EXPERTS]

    def slopes(weights, items):
        found = straight(weights[places], items)
        back = [EXPERTS.index(name) for name in order]
        return [type(one)(one.soft, one.real, one.slopes[back]) for one in found]

    trial.lab.slopes = slopes
    actor = new_actor(trial, turned)
    train_actor(actor, trial, SETTINGS, steps_of(trial, SETTINGS), np.random.default_rng(0))
    _, expected, _ = trained()
    np.testing.assert_allclose(actor.matrix[:, places], expected.matrix, atol=1e-9)


def test_one_coefficient_an_expert_is_the_same_in_all_layers():
    trial, actor, _ = trained(settings=ActorSettings(items=8, layered=False))
    weights = actor.weights(WANTED[0])
    assert np.ptp(weights, axis=1).max() < 1e-12
    recipe = actor.recipe(recipe_space(), WANTED[0])
    assert all(isinstance(one.parameters["weight"], float) for one in recipe.models)
    assert trial.spent > 0


def test_members_are_recipes_that_mergekit_has_with_a_weight_for_each_layer():
    _, actor, _ = trained()
    recipe = actor.recipe(recipe_space(), np.array([0.2, 0.5, 0.3]))
    assert isinstance(recipe, Recipe)
    assert recipe.merge_method == "task_arithmetic"
    assert mergekit_level([recipe]) == "exact"
    weights = [one.parameters["weight"] for one in recipe.models]
    np.testing.assert_allclose(weights, actor.weights(np.array([0.2, 0.5, 0.3])), atol=6e-5)


def test_tasks_without_right_answers_are_left_out_and_cost_nothing():
    trial = new_trial(depth=False, uneven=True)
    straight, asked = trial.lab.slopes, []

    def slopes(weights, items):
        asked.append([len(one) for one in items])
        found = straight(weights, [one or [0] for one in items])
        return [found[0], None, found[2]]

    trial.lab.slopes = slopes
    type(trial.lab).answered = property(lambda _: (20, 0, 10))
    try:
        actor = new_actor(trial, recipe_space())
        rows = train_actor(actor, trial, SETTINGS, steps_of(trial, SETTINGS), np.random.default_rng(0))
    finally:
        type(trial.lab).answered = property(lambda _: COUNTS)
    assert rows
    assert set(map(tuple, asked)) == {(8, 0, 8)}
    assert trial.spent == len(rows) * 3 * 16


@pytest.mark.parametrize("count", [3, 8, 20])
def test_a_deck_deals_every_item_before_any_comes_again(count):
    deck, dealt = Deck(20, count, np.random.default_rng(0)), []
    while len(dealt) < 100:
        hand = deck.deal()
        assert len(set(hand)) == count
        dealt += hand
    assert max(dealt.count(item) for item in range(20)) - min(dealt.count(item) for item in range(20)) <= 2


def test_preferences_are_drawn_from_all_over_and_often_equal_or_nearly_at_a_corner():
    drawn = np.array([draw_preference(3, rng) for rng in [np.random.default_rng(0)] for _ in range(2000)])
    np.testing.assert_allclose(drawn.sum(axis=1), 1)
    assert 0.1 < np.isclose(drawn, 1 / 3).all(axis=1).mean() < 0.2
    assert (drawn.max(axis=1) > 0.9).mean() > 0.15


def test_the_smooth_maximum_is_near_the_maximum_and_has_its_slope():
    costs, preference = torch.tensor([0.2, 0.9, 0.4]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    loss, slope = smooth_tchebycheff(costs, preference, 0.01)
    weighed = 3 * preference * costs
    assert float(loss) == pytest.approx(float(weighed.max() + 0.05 * weighed.sum()), abs=0.01)
    for k in range(3):
        step = torch.zeros(3).double()
        step[k] = 1e-6
        high, low = (smooth_tchebycheff(costs + sign * step, preference, 0.3)[0] for sign in (1, -1))
        assert float(smooth_tchebycheff(costs, preference, 0.3)[1][k]) == pytest.approx(float(high - low) / 2e-6, 1e-5)
    assert float(slope[1]) == pytest.approx(1.5 * 1.05, abs=0.01)


def test_an_expert_is_for_the_task_in_which_it_leads():
    assert own_tasks(np.array([[0.9, 0.0, 0.8], [0.1, 0.9, 0.9], [0.8, 0.9, 0.2]])) == [1, 0, 2]


def test_an_untrained_actor_weighs_the_wanted_task_s_expert_more():
    actor = Actor.untrained(("a", "b"), 4, 2, [1, 0])
    np.testing.assert_allclose(actor.weights(np.array([1.0, 0.0])), [[0.15] * 4, [0.65] * 4])
    np.testing.assert_allclose(actor.weights(np.array([1.0, 1.0])), [[0.4] * 4, [0.4] * 4])
