"""The front as a table."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from models.front import choose
from tasks.front.front import Front
from tasks.front.table import by_member, front_table, markdown, member_table, preference, summary, table_rows
from tests.fixtures_front import make_project


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    return Front.read(make_project(tmp_path_factory.mktemp("table")).run)


def test_every_member_and_every_reference_is_a_row_with_its_scores(front):
    rows = table_rows(front, "test")
    assert len(rows) == len(front.members) + len(front.references)
    assert [row.kind for row in rows].count("member") == len(front.members)
    by_name = {row.name.split(" ")[0]: row for row in rows}
    for member in front.members:
        row = by_name[member.id]
        assert row.layers == str(member.layers)
        assert row.scores == tuple(f"{member.scores['test'][name]:.3f}" for name in front.tasks)
    assert {row.layers for row in rows if row.kind != "member"} == {"4"}


def test_aliases_stand_by_the_member_that_has_them(front):
    rows = {row.name.split(" ")[0]: row for row in table_rows(front, "test")}
    for alias, member in front.aliases().items():
        assert alias in rows[member.id].aliases.split(" ")


def test_the_terminal_and_the_page_show_the_same_cells(front):
    console = Console(file=io.StringIO(), width=200)
    console.print(front_table(front, "selection"))
    shown, written = console.file.getvalue(), markdown(front, "selection")
    for row in table_rows(front, "selection"):
        for cell in (row.name, row.layers, *row.scores, row.gives_up, row.serves, row.aliases):
            assert cell in shown
            assert cell in written
    assert len({line.count("|") for line in written.splitlines()[2:]}) == 1


def test_what_a_member_gives_up_is_its_worst_loss_against_the_balanced_model_of_full_depth(front):
    uncut = [one for one in front.members if one.layers == 4]
    whole = uncut[choose(front.costs(uncut, "selection"), np.array([1, 1, 1, 0]) / 3)]
    assert front.whole == whole
    rows = {row.name.split(" ")[0]: row for row in table_rows(front, "test")}
    said = {one["id"]: one["gives_up"]["test"] for one in summary(front)["members"]}
    for member in front.members:
        losses = {task: 1 - member.scores["test"][task] / whole.scores["test"][task] for task in front.tasks}
        task = max(losses, key=losses.get)
        assert said[member.id] == {"task": task, "share": pytest.approx(losses[task])}
        shown = "" if member == whole else f"{100 * losses[task]:.0f}%" if losses[task] > 0.005 else "0%"
        assert rows[member.id].gives_up == shown
    assert all(rows[one.name.split(" ")[0]].gives_up for one in front.references if one.name != "math")


def test_where_all_members_lack_layers_the_best_reference_is_what_they_are_held_against(front):
    short = replace(front, members=tuple(one for one in front.members if one.layers < 4))
    kinds = {one.name: one for one in front.references}
    assert front.layers == short.layers == 4
    assert short.whole == kinds["task arithmetic"]


def test_the_best_of_one_objective_is_listed_as_a_corner(front):
    marked = replace(front, members=(replace(front.members[0], corner=True), *front.members[1:]))
    rows = {row.name.split(" ")[0]: row.kind for row in table_rows(marked, "test")}
    assert [kind for kind in rows.values() if kind in ("member", "corner")].count("corner") == 1
    assert rows[front.members[0].id] == "corner"
    assert [one["corner"] for one in summary(marked)["members"]] == [True] + [False] * (len(front.members) - 1)


def test_the_greatest_weights_come_first(front):
    weights = [float(word) for word in preference(front.members[0], 4).split(" ")[1::2]]
    assert weights == sorted(weights, reverse=True)


def test_one_member_shows_every_split(front):
    console = Console(file=io.StringIO(), width=200)
    member = front.members[1]
    console.print(member_table(front, member))
    for split in front.splits:
        assert f"{member.scores[split]['math']:.3f}" in console.file.getvalue()
    assert member.recipe in console.file.getvalue()


def test_the_summary_holds_the_hypervolume_of_the_references(front):
    said = summary(front)
    assert said["hv"]["test"] > said["hv_references"]["test"] > 0
    assert {one["id"] for one in said["members"]} == {one.id for one in front.members}


def test_the_aliases_of_all_members_are_computed_once(front, monkeypatch):
    asked, aliases = [], Front.aliases
    monkeypatch.setattr(Front, "aliases", lambda self: asked.append(self) or aliases(self))
    for show in (by_member, summary, lambda one: front_table(one, "test")):
        show(front)
        assert len(asked) == 1
        asked.clear()
