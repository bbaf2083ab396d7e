"""Indicators and statistics of `hm3 bench front` against pymoo, moocore, scipy and numbers reckoned by hand."""

import itertools
from dataclasses import replace

import moocore
import numpy as np
import pandas as pd
import pytest
from pymoo.indicators.igd_plus import IGDPlus
from scipy import stats

from models.front import RHO, hypervolume
from tasks.bench.searches.cuts import deepest
from tasks.bench.searches.metrics import (
    additive_epsilon,
    depth_limits,
    expected_loss,
    hypervolume_by_depth,
    igd_plus,
    uniform_preferences,
    union_front,
)
from tasks.bench.searches.rows import KEY
from tasks.bench.searches.sheets import cut_sheet, cuts_overview_sheet, overview_sheet, sheets
from tasks.bench.searches.statistics import compare, effect, holm, median_interval, noninferior, signed_rank
from tasks.bench.searches.summary import Study

pytestmark = pytest.mark.lab

# indicators

POINTS = np.array([[0.2, 0.8], [0.6, 0.3]])
REFERENCE = np.array([[0.1, 0.7], [0.5, 0.2], [0.3, 0.4]])


def test_igd_plus_is_pymoos_and_that_of_hand():
    by_hand = np.mean([np.hypot(0.1, 0.1), np.hypot(0.1, 0.1), min(np.hypot(0, 0.4), np.hypot(0.3, 0))])
    assert igd_plus(POINTS, REFERENCE) == pytest.approx(by_hand)
    assert igd_plus(POINTS, REFERENCE) == pytest.approx(IGDPlus(REFERENCE)(POINTS))
    rng = np.random.default_rng(0)
    for _ in range(5):
        points, reference = rng.random((6, 4)), rng.random((9, 4))
        assert igd_plus(points, reference) == pytest.approx(IGDPlus(reference)(points))


def test_additive_epsilon_is_what_all_costs_must_fall_by():
    # (0.3, 0.4) needs 0.3 from (0.6, 0.3), and 0.4 from (0.2, 0.8)
    assert additive_epsilon(POINTS, REFERENCE) == pytest.approx(0.3)
    assert additive_epsilon(POINTS, POINTS) == 0
    rng = np.random.default_rng(1)
    points, reference = rng.random((5, 3)), rng.random((4, 3))
    needed = max(min(max(p - r) for p in points) for r in reference)
    assert additive_epsilon(points, reference) == pytest.approx(needed)


def test_r2_is_the_mean_loss_of_the_best_member_over_uniform_preferences():
    preferences = uniform_preferences(2)
    losses = [
        min(max(w * c for w, c in zip(one, p, strict=True)) + RHO * float(one @ p) for p in POINTS)
        for one in preferences
    ]
    assert expected_loss(POINTS) == pytest.approx(np.mean(losses))
    # a single member at (1, 1): E max(w, 1 - w) + ρ = 3/4 + ρ
    assert expected_loss(np.ones((1, 2))) == pytest.approx(0.75 + RHO, abs=1e-3)
    assert expected_loss(np.concatenate([POINTS, REFERENCE])) < expected_loss(POINTS)


@pytest.mark.parametrize("objectives", [2, 4])
def test_preferences_fill_the_simplex_evenly(objectives):
    preferences = uniform_preferences(objectives)
    np.testing.assert_allclose(preferences.sum(axis=1), 1)
    np.testing.assert_allclose(preferences.mean(axis=0), 1 / objectives, atol=2e-3)
    variance = (objectives - 1) / (objectives**2 * (objectives + 1))  # of a uniform Dirichlet
    np.testing.assert_allclose(preferences.var(axis=0), variance, rtol=0.02)


def test_the_union_holds_what_no_arm_dominates_once():
    union = union_front([POINTS, REFERENCE, REFERENCE])
    np.testing.assert_allclose(np.sort(union, axis=0), np.sort(REFERENCE, axis=0))
    assert len(union) == moocore.is_nondominated(np.unique(np.concatenate([POINTS, REFERENCE]), axis=0)).sum()


def test_hypervolume_by_depth_counts_members_that_are_shallow_enough():
    found = hypervolume_by_depth(POINTS, np.array([12, 9]), [12, 10, 8])
    assert found == {12: hypervolume(POINTS), 10: hypervolume(POINTS[1:]), 8: 0.0}
    assert found[10] == pytest.approx(0.5 * 0.8 / 1.21)
    assert depth_limits(12) == [12, 10, 9, 8, 7, 6]
    assert depth_limits(30) == [30, 27, 24, 21, 18, 15]
    assert depth_limits(3) == [3, 2, 1]


# statistics

OURS = np.array([0.50, 0.52, 0.47, 0.55, 0.61, 0.49, 0.53, 0.58])
THEIRS = np.array([0.45, 0.50, 0.48, 0.49, 0.55, 0.46, 0.50, 0.54])


def test_a_comparison_is_scipys():
    one = compare("theirs", OURS, THEIRS)
    assert one.pairs == 8
    assert one.difference == pytest.approx(np.median(OURS - THEIRS))
    assert one.p == pytest.approx(stats.wilcoxon(OURS, THEIRS).pvalue)
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(OURS, THEIRS)]
    assert one.a12 == pytest.approx(np.mean(wins))
    assert one.low < one.difference < one.high
    assert -0.01 <= one.low <= one.high <= 0.06


def test_signed_rank_is_that_of_all_signs():
    """The exact distribution: every choice of signs is as likely."""
    difference = np.array([0.05, 0.02, -0.01, 0.06, 0.055, 0.03])
    ranks = stats.rankdata(abs(difference))
    seen = ranks[difference > 0].sum()
    sums = [np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(ranks))]
    assert signed_rank(difference, "greater") == pytest.approx(np.mean([one >= seen for one in sums]))
    assert signed_rank(difference) == pytest.approx(min(1, 2 * np.mean([one >= seen for one in sums])))


def test_nothing_differs():
    one = compare("same", OURS, OURS)
    assert (one.p, one.difference, one.low, one.high, one.a12) == (1, 0, 0, 0, 0.5)
    assert not holm([one])[0].significant


def test_effect_counts_ties_half():
    assert effect(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == (0.5 + 0.5 + 1 + 1) / 4


def test_the_interval_is_reproducible_and_holds_the_median():
    low, high = median_interval(OURS - THEIRS)
    assert (low, high) == median_interval(OURS - THEIRS)
    draws = np.random.default_rng(5).choice(OURS - THEIRS, size=(20_000, 8))
    np.testing.assert_allclose([low, high], np.quantile(np.median(draws, axis=1), [0.025, 0.975]), atol=0.0051)


def test_holm_multiplies_the_least_by_their_number():
    made = [compare(str(shift), OURS, THEIRS + shift) for shift in (0, 0.02, 0.08)]
    p = sorted(one.p for one in made)
    stepped = np.minimum(np.maximum.accumulate([3 * p[0], 2 * p[1], p[2]]), 1)
    by_p = {one.p: one.corrected for one in holm(made)}
    np.testing.assert_allclose([by_p[one] for one in p], stepped)


def test_non_inferiority_is_judged_against_the_best_baseline():
    close = noninferior(3, OURS, {"weak": THEIRS - 0.2, "best": OURS + 0.002}, 0.01)
    assert (close.arm, close.holds, close.better) == ("best", True, False)
    assert close.difference == pytest.approx(-0.002)
    assert close.p == pytest.approx(stats.wilcoxon(np.full(8, 0.008), alternative="greater").pvalue)
    assert not noninferior(3, OURS, {"best": OURS + 0.02}, 0.01).holds
    assert noninferior(3, OURS, {"weak": THEIRS - 0.2}, 0.01).better
    alone = noninferior(3, OURS[:1], {"weak": THEIRS[:1] - 0.2}, 0.01)
    assert (alone.low > 0, alone.holds, alone.better) == (True, False, False)


# a study of made rows


def made_study():
    """Three arms on two families with four seeds: ``hm3`` gains 0.1 a tenth, the others 0.05 and 0.04."""
    rows, members = [], []
    speeds = {"hm3": ("hm3", 0.1), "nsga2-recipes": ("baseline", 0.05), "half": ("ablation", 0.04)}
    for family, seed, arm in itertools.product((1, 2), range(4), speeds):
        group, speed = speeds[arm]
        key = dict(zip(KEY, (family, f"i{family}", seed, arm, 1, 1000), strict=True))
        for tenth in range(1, 11):
            hv = min(0.7, speed * tenth) + 0.003 * seed
            spent = {"evaluations": 100.0 * tenth, "forwards": 900.0 * tenth, "shared_forwards": 600.0 * tenth}
            times = {"computed": 50.0 * tenth, "evaluating_seconds": 5.0 * tenth, "outside_seconds": 2.5 * tenth}
            point = {"tenth": tenth, "at": 100.0 * tenth, "hv": hv, "hv_tasks": hv, "members": 2, "scored": tenth}
            rows.append(key | point | spent | times | {"group": group, "commit": "one"})
        for one, (score, layers) in enumerate(((0.9, 12), (0.6, 9))):
            name = f"{arm}-{one}"
            scores = {"a": score, "b": 1.4 - score}
            members.append(key | {"id": name, "depth_layers": layers, "tenths": "1" * 10} | scores)
    families = [
        {"family": family, "instance": f"i{family}", "layers": 12, "objective": name, "ideal": ideal, "nadir": nadir}
        for family in (1, 2)
        for name, ideal, nadir in (("a", 1.0, 0.0), ("b", 1.0, 0.0), ("layers", 0.5, 1.0))
    ]
    none = pd.DataFrame()
    return Study("p", True, pd.DataFrame(rows), pd.DataFrame(members), pd.DataFrame(families), none, none, none)


def test_a_study_pairs_runs_and_counts_what_the_target_takes():
    study = made_study()
    assert study.arms == ["hm3", "nsga2-recipes", "half"]
    found = study.comparisons
    assert {title: [one.arm for one in made] for title, made in found.items()} == {
        "baselines": ["nsga2-recipes"],
        "ablations": ["half"],
    }
    (one,) = found["baselines"]
    assert (one.pairs, one.significant) == (8, True)
    assert one.difference == pytest.approx(0.2)
    reached = study.reach.groupby("arm")[["share", "evaluations", "forwards"]].median()
    assert reached.loc["hm3"].tolist() == [0.5, 500, 4500]
    assert reached.loc["nsga2-recipes"].tolist() == [1, 1000, 9000]
    assert np.isinf(reached.loc["half", "share"])
    assert [one.better for one in study.noninferiority] == [True] * 10


def test_a_study_reckons_time_as_if_nothing_had_been_known():
    study = made_study()
    assert study.seconds_per_item.unique() == pytest.approx([0.1])
    own = study.wall
    assert own["seconds"].unique() == pytest.approx([25 + 1000 * 0.1])
    assert own["share"].unique() == pytest.approx([0.2])


def test_time_of_scoring_is_that_of_the_machine_on_which_an_arm_ran():
    study = made_study()
    faster = study.rows["arm"] != "hm3"
    study.rows.loc[faster, "commit"] = "another"
    study.rows.loc[faster, "evaluating_seconds"] /= 4
    own = study.wall.set_index("arm")["seconds"]
    assert own["hm3"].unique() == pytest.approx([25 + 1000 * 0.1])
    assert own.drop("hm3").unique() == pytest.approx([25 + 1000 * 0.025])


def test_runs_have_the_indicators_of_their_members():
    study = made_study()
    point = study.final.iloc[0]
    costs = np.array([[0.1, 0.5, 1.0], [0.4, 0.2, 0.5]])
    assert point["igd_plus"] == pytest.approx(0)
    assert point["r2"] == pytest.approx(expected_loss(costs))
    assert (point["best a"], point["best b"]) == (0.9, pytest.approx(0.8))
    assert point["hv ≤ 12"] == pytest.approx(hypervolume(costs[:, :2]))
    assert point["hv ≤ 9"] == pytest.approx(hypervolume(costs[1:, :2]))
    assert point["hv ≤ 8"] == 0


def test_tables_say_it_in_words():
    tables = {one.title: one for one in sheets(made_study())}
    (row,) = tables["HM3 against the baselines"].rows
    assert row[0] == "nsga2-recipes"
    assert row[-1] == "better"
    by_arm = {row[0]: row for row in tables["What it takes to match nsga2-recipes"].rows}
    assert by_arm["hm3"][1:4] == ("8 of 8", "50%", "500")
    assert by_arm["half"][1:3] == ("0 of 8", "not reached")
    assert {row[-1] for row in tables["HM3 against the best baseline, by budget"].rows} == {"better"}


def test_the_overview_says_what_came_of_each_study():
    (row,) = overview_sheet({"with depth": made_study()}).rows
    assert row[:3] == ("with depth", "2 of 2", "8")
    assert row[4].startswith("nsga2-recipes 0.50")
    assert row[5].startswith("+0.200")
    assert row[6:] == ("1 of 1", "50%", "20%")
    alone = replace(made_study(), rows=made_study().rows.query("arm == 'hm3'"))
    assert overview_sheet({"no baseline": alone}).rows == ()


def test_cuts_count_the_layers_that_can_go_for_a_loss():
    study = made_study()
    rows = [
        {"family": 1, "seed": seed, "arm": "hm3", "left": left, "loss_search": loss, "loss_test": loss + 0.01}
        for seed, losses in enumerate(((0.01, 0.04, 0.2), (0.01, 0.06, 0.09)))
        for left, loss in zip((11, 10, 9), losses, strict=True)
    ]
    table = cut_sheet(replace(study, cuts=pd.DataFrame(rows)))
    assert table.rows == (("hm3", "1 (2.0%)", "1.5 (3.5%)", "2.5 (7.5%)"),)
    theirs = [row | {"arm": "nsga2-recipes", "loss_test": 0.0} for row in rows if row["left"] == 11]
    named = {"both": replace(study, cuts=pd.DataFrame(rows + theirs)), "ours": replace(study, cuts=pd.DataFrame(rows))}
    assert cuts_overview_sheet(named).rows == (("both", "2.50 (7.5%)", "nsga2-recipes 1.00 (0.0%)"),)
    assert cut_sheet(study).rows == ()
    assert deepest(pd.DataFrame(rows[:3]), 0.001) is None
