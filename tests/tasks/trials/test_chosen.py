"""The choice of members as a pure function of item scores: what it guarantees, whatever the scores."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.front import REFERENCE, RHO, Scale, nondominated, utility
from tasks.trials.chosen import ItemTable, choose, chosen_by, missing
from tasks.trials.members import standard_error

LAYERS = 8
NAMES = ("x", "y", "z", "layers")
SCALE = Scale(NAMES, (0.9, 0.8, -0.1, 0.5), (0.3, 0.3, -0.9, 1.0))


def drawn(seed, finds, plain, depths, spread, scale=SCALE):
    """Item scores of some finds and then plain models, right or wrong on every item; references are the last ones."""
    rng = np.random.default_rng(seed)
    count = finds + plain
    hard = {name: rng.random(size) for name, size in zip("xyz", (24, 30, 17), strict=True)}
    skill = rng.uniform(0.5 - spread, 0.5 + spread, (count, 3))
    skill[finds:] = rng.uniform(0.35, 0.75, (plain, 3))
    items = {
        name: (hard[name] + 0.15 * rng.standard_normal((count, len(hard[name]))) < skill[:, [k]]).astype(float)
        for k, name in enumerate("xyz")
    }
    items["z"] -= 1
    layers = rng.integers(LAYERS - depths, LAYERS + 1, count) if depths else np.full(count, LAYERS)
    layers[finds:] = LAYERS
    items = {name: values for name, values in items.items() if name in scale.names}
    return ItemTable(scale, items, layers, LAYERS), list(range(finds, count))


ARCHIVES = st.builds(
    drawn,
    seed=st.integers(0, 10**6),
    finds=st.integers(0, 25),
    plain=st.integers(1, 9),
    depths=st.integers(0, 5),
    spread=st.sampled_from([0.1, 0.3, 0.5]),
)


def grid(steps=20):
    """Every preference over three tasks alone in steps of a twentieth: 231."""
    found = [(a, b, steps - a - b, 0) for a in range(steps + 1) for b in range(steps + 1 - a)]
    return np.array(found) / steps


def own_utility(table, i, preference):
    """The utility of one candidate, by the book."""
    costs = [
        (ideal - mean) / (ideal - nadir)
        for ideal, nadir, mean in zip(
            table.scale.ideal,
            table.scale.nadir,
            [*(table.items[name][i].mean() for name in "xyz"), table.layers[i] / LAYERS],
            strict=True,
        )
    ]
    weighted = [weight * cost for weight, cost in zip(preference, costs, strict=True)]
    worst = max((value, k) for k, value in enumerate(weighted) if preference[k] > 0)
    return -worst[0] - RHO * sum(weighted), worst[1]


def own_noise(table, i, j, preference):
    """The standard error of the difference of two utilities, from item to item, task by task."""
    (_, worst_i), (_, worst_j) = own_utility(table, i, preference), own_utility(table, j, preference)
    squares = 0.0
    for k, name in enumerate("xyz"):
        width = table.scale.ideal[k] - table.scale.nadir[k]
        mine, its = (preference[k] * ((k == worst) + RHO) / width for worst in (worst_i, worst_j))
        squares += standard_error(mine * table.items[name][i] - its * table.items[name][j]) ** 2
    return squares**0.5


def test_for_three_tasks_every_twentieth_of_the_simplex_is_asked_for():
    wanted = chosen_by(NAMES)
    over_tasks = {tuple(row.round(9)) for row in wanted[wanted[:, 3] == 0]}
    assert {tuple(row.round(9)) for row in grid()} <= over_tasks
    assert len(over_tasks) == 232 == len(wanted) / 2


@settings(max_examples=60, deadline=None)
@given(ARCHIVES, st.integers(1, 12))
def test_nobody_who_weighs_tasks_alone_is_better_served_by_a_plain_model(archive, count):
    table, references = archive
    chosen = choose(table, references, count)
    members = [*chosen.members, *chosen.corners]
    wanted = grid()
    u = utility(table.costs, wanted)
    for one in references:
        shallow = [i for i in members if table.layers[i] <= table.layers[one]]
        assert shallow
        best = np.array(shallow)[u[shallow].argmax(axis=0)]
        for j in np.flatnonzero(u[one] > u[best, np.arange(len(wanted))]):
            assert u[one, j] - u[best[j], j] <= own_noise(table, one, best[j], wanted[j]) + 1e-9


@settings(max_examples=40, deadline=None)
@given(ARCHIVES, st.integers(1, 12))
def test_no_more_members_than_places_unless_plain_models_need_them(archive, count):
    table, references = archive
    chosen = choose(table, references, count)
    assert not set(chosen.members) & set(chosen.corners)
    more = set(chosen.members) - set(references)
    assert len(more) <= count
    if len(chosen.members) > count:  # then no place is left for what nobody needs
        assert not more
    inside = (table.costs < REFERENCE).all(axis=1)
    assert all(inside[i] for i in more | (set(chosen.corners) - set(references)))


@settings(max_examples=40, deadline=None)
@given(ARCHIVES)
def test_corners_are_the_best_of_each_objective_and_take_no_place(archive):
    table, references = archive
    chosen = choose(table, references, 3)
    open_ = [i for i in range(len(table.layers)) if i in references or (table.costs[i] < REFERENCE).all()]
    for k in range(4):
        best = table.costs[open_, k].min()
        assert any(table.costs[i, k] == best for i in chosen.corners)
    assert len(chosen.corners) <= 4
    everything = choose(table, references, 100)
    assert chosen.corners == everything.corners


@settings(max_examples=25, deadline=None)
@given(ARCHIVES)
def test_the_noise_is_that_of_the_paired_difference(archive):
    table, _ = archive
    count, wanted = len(table.layers), chosen_by(NAMES)[::29]
    for one in range(min(4, count)):
        others = np.arange(len(wanted)) % count
        found = table.noise(one, others, wanted)
        naive = [own_noise(table, one, other, preference) for other, preference in zip(others, wanted, strict=True)]
        np.testing.assert_allclose(found, naive, atol=1e-9)
    assert table.noise(0, np.zeros(len(wanted), dtype=int), wanted) == pytest.approx(0, abs=1e-7)


def test_a_small_lead_that_is_the_same_on_every_item_counts_where_one_that_is_luck_does_not():
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.3, 0.9, 40)
    sure, luck = hard + 0.01, rng.permutation(hard) + 0.01
    items = {name: np.stack([hard, sure, luck]) for name in "xyz"}
    items["z"] = items["z"] - 1
    table = ItemTable(SCALE, items, np.full(3, LAYERS), LAYERS)
    assert (missing(table, [1], [0]) > 0).all()
    assert (missing(table, [2], [0]) == 0).all()
    assert (missing(table, [0], [1, 2]) == 0).all()


def test_a_plain_merge_that_is_best_for_somebody_becomes_a_member_in_the_place_of_whom_one_misses_least():
    base = [0.35, 0.35, -0.85]
    scores = np.array([[0.85, 0.4, -0.6], [0.4, 0.75, -0.6], [0.4, 0.4, -0.15], base, [0.55, 0.5, -0.5]])
    items = {name: np.repeat(scores[:, [k]], 20, axis=1) for k, name in enumerate("xyz")}
    table = ItemTable(SCALE, items, np.full(5, LAYERS), LAYERS)
    chosen = choose(table, [3, 4], 1)
    assert chosen.corners == (0, 1, 2) and chosen.members == (4,)  # the merge is best for who wants all three


@settings(max_examples=40, deadline=None)
@given(ARCHIVES, st.integers(1, 12))
def test_members_do_not_dominate_each_other(archive, count):
    table, references = archive
    chosen = choose(table, references, count)
    members = np.unique(table.costs[[*chosen.members, *chosen.corners]], axis=0)
    assert len(nondominated(members)) == len(members)


def test_as_many_plain_merges_as_somebody_needs_are_members_whatever_the_places():
    angles = np.linspace(0, np.pi / 2, 7)
    scores = np.stack([0.3 + 0.55 * np.sin(angles), 0.3 + 0.45 * np.cos(angles), np.full(7, -0.5)], axis=1)
    items = {name: np.repeat(scores[:, [k]], 20, axis=1) for k, name in enumerate("xyz")}
    chosen = choose(ItemTable(SCALE, items, np.full(7, LAYERS), LAYERS), list(range(7)), 1)
    assert sorted([*chosen.members, *chosen.corners]) == list(range(7)) and len(chosen.members) > 1


def test_a_shallow_find_does_not_stand_in_for_a_plain_merge_that_is_better():
    scores = np.array([[0.5, 0.5, -0.5], [0.6, 0.55, -0.4]])
    items = {name: np.repeat(scores[:, [k]], 20, axis=1) for k, name in enumerate("xyz")}
    table = ItemTable(SCALE, items, np.array([4, LAYERS]), LAYERS)
    chosen = choose(table, [1], 12)
    assert sorted([*chosen.members, *chosen.corners]) == [0, 1]
    deeper = ItemTable(SCALE, {name: values[::-1] for name, values in items.items()}, np.array([10, LAYERS]), LAYERS)
    assert 1 in [*choose(deeper, [1], 12).members, *choose(deeper, [1], 12).corners]  # none of at most its layers else


@settings(max_examples=25, deadline=None)
@given(ARCHIVES, st.integers(1, 3))
def test_members_are_worth_nearly_what_the_best_set_of_as_many_is(archive, count):
    """Greedy on a submodular gain reaches 1 - 1/e of it, over what the corners give."""
    table, references = archive
    chosen = choose(table, references, count)
    if len(chosen.members) > count or set(chosen.members) & set(references):
        return  # a reference was needed, or not: see the other tests
    u = utility(table.costs, chosen_by(NAMES))
    have = u[list(chosen.corners)].max(axis=0)
    open_ = [i for i in np.flatnonzero((table.costs < REFERENCE).all(axis=1)) if i not in chosen.corners]

    def gain(kept):
        return np.maximum(have, u[list(kept)].max(axis=0)).mean() - have.mean() if len(kept) else 0.0

    best = max((gain(kept) for kept in itertools.combinations(open_[:12], min(count, len(open_[:12])))), default=0.0)
    assert gain(chosen.members) >= (1 - 1 / np.e) * best - 1e-9


def test_without_depth_and_with_one_task_there_is_one_best():
    scale = Scale(("x",), (0.9,), (0.3,))
    items = {"x": np.array([[0.5] * 9, [0.7] * 9, [0.6] * 9])}
    chosen = choose(ItemTable(scale, items, np.full(3, LAYERS), LAYERS), [0, 2], 12)
    assert (chosen.members, chosen.corners) == ((), (1,))
    assert choose(ItemTable(scale, {"x": np.empty((0, 9))}, np.empty(0, dtype=int), LAYERS), [], 12).members == ()
