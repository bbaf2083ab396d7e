"""Choosing a member: by utility on `selection`, among those that meet the requirements."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BadInput
from models.front import choose, utility
from tasks.front.choice import SPLIT, choose_member, parse_requirement
from tasks.front.front import Front
from tests.fixtures_front import make_project


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    return Front.read(make_project(tmp_path_factory.mktemp("choice")).run)


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any))
def test_the_member_has_the_greatest_utility(front, weights):
    prefer = ",".join(f"{name}={weight}" for name, weight in zip(front.objectives, weights, strict=True))
    member = choose_member(front, prefer)
    preference = np.array(weights) / sum(weights)
    utilities = utility(front.costs(front.members, SPLIT), preference)
    assert utilities[front.members.index(member)] == utilities.max()


def test_without_a_preference_all_tasks_weigh_the_same_and_depth_is_ignored(front):
    balanced = choose_member(front, None)
    assert balanced == front.aliases()["balanced"] == choose_member(front, "translation=1,math=1,code=1")
    costs = front.costs(front.members, SPLIT)[:, :3]
    assert front.members.index(balanced) == utility(costs, np.full(3, 1 / 3)).argmax()


def test_balanced_n_is_the_balanced_member_of_at_most_n_layers(front):
    cut = {alias: one for alias, one in front.aliases().items() if alias.startswith("balanced-")}
    assert cut
    for alias, member in cut.items():
        most = int(alias.removeprefix("balanced-"))
        assert member == choose_member(front, None, max_layers=most) and member.layers == most
        assert most < front.aliases()["balanced"].layers


def test_of_many_depths_the_first_the_middle_and_the_last_have_an_alias(front):
    one = front.members[1]

    def of(layers, math):
        scores = {split: {**own, "math": math, "layers": layers / 12} for split, own in one.scores.items()}
        return replace(one, id=f"{layers:04x}", layers=layers, scores=scores)

    def named(*members):
        aliases = replace(front, members=members).aliases()
        return {alias: member.layers for alias, member in aliases.items() if alias.startswith("balanced")}

    members = [of(layers, layers / 20) for layers in (12, 11, 10, 9, 8, 7)]
    assert named(*members) == {"balanced": 12, "balanced-11": 11, "balanced-9": 9, "balanced-7": 7}
    assert named(*members[:3]) == {"balanced": 12, "balanced-11": 11, "balanced-10": 10}
    assert named(*members[:3], of(9, 0.52)) == {"balanced": 12, "balanced-11": 11, "balanced-9": 9}
    assert named(members[0]) == {"balanced": 12}


def test_a_front_without_depth_has_no_balanced_n(front):
    objectives = front.tasks
    alone = replace(front, objectives=objectives)
    assert set(alone.aliases()) == {"balanced", *(f"best-{name}" for name in objectives)}


def test_requirements_hold_for_the_member_and_leave_the_best_of_the_rest(front):
    member = choose_member(front, "code=1", ["math >= 0.7", "translation>0.62"], 4)
    fits = [
        one
        for one in front.members
        if one.scores[SPLIT]["math"] >= 0.7 and one.scores[SPLIT]["translation"] > 0.62 and one.layers <= 4
    ]
    assert member in fits
    assert member == fits[choose(front.costs(fits, SPLIT), np.array([0, 0, 1.0, 0]))]


def test_signs_mean_what_they_say(front):
    member = front.members[0]
    bound = member.scores[SPLIT]["math"]
    held = {
        sign for sign in (">=", "<=", ">", "<") if parse_requirement(f"math{sign}{bound}", front.tasks).holds(member)
    }
    assert held == {">=", "<="}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("math=0.6", "write it as objective>=number"),
        ("math>=", "write it as objective>=number"),
        ("math>=0.6, code>=0.5", "write it as objective>=number"),
        ("0.6<=math", "write it as objective>=number"),
        ("math>=high", "'high' is not a number"),
        ("math>=nan", "'nan' is not a number"),
        ("chess>=0.5", "unknown objective 'chess'; there are translation, math, code"),
        ("math==0.5", "write it as objective>=number"),
        ("layers<=3", "--max-layers N"),
    ],
)
def test_a_malformed_requirement_is_bad_input(front, text, message):
    with pytest.raises(BadInput, match=message):
        choose_member(front, None, [text])


def test_when_nobody_fits_the_best_values_are_named(front):
    with pytest.raises(BadInput, match=r"no member has math>=0.9 and at most 3 layers on selection; .*math 0.940"):
        choose_member(front, None, ["math>=0.9"], 3)
    with pytest.raises(BadInput, match="--max-layers 0"):
        choose_member(front, None, [], 0)
