"""The front as a table."""

import io

import pytest
from rich.console import Console

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
        for cell in (row.name, row.layers, *row.scores, row.serves, row.aliases):
            assert cell in shown
            assert cell in written
    assert len({line.count("|") for line in written.splitlines()[2:]}) == 1


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
