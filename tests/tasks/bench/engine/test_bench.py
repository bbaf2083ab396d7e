"""The benchmarks: both sides give the same on small input, and rows, resuming, verdicts and page do what they say."""

import platform
import re
import sys
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd
import pytest
import torch

from models.errors import BadInput, Failed
from tasks.bench.engine import candidate, memory, merge, prefix, ray, scale
from tasks.bench.engine.families import SMALL, write_family
from tasks.bench.engine.page import write_engine
from tasks.bench.engine.registry import BENCHMARKS, Bench, Measure, benchmark, benchmarks, find_benchmark
from tasks.bench.engine.rows import COLUMNS, Raw, Row
from tasks.bench.engine.run import run_benchmark
from tasks.bench.engine.summary import summarise, verdict_data, verdict_table
from tasks.bench.process import run_measured, timed
from tasks.bench.setup import Setup, describe_setup
from tasks.project.progress import Progress
from tests.small_tasks import make_family_project

pytestmark = pytest.mark.lab

NAMES = ["merge", "candidate", "prefix", "memory", "scale", "ray", "load"]
SETUP = Setup(0, "abc1234+", "0.1.0", "2.9", "mergekit 0.1.4; lm-eval 0.4.13", 2, 2, "a processor")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, make_family):
    """A project with a random family of three layers that answers about half of its items."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HM3_STATE", raising=False)
        yield make_family_project(tmp_path_factory.mktemp("bench") / "project", make_family)


@pytest.fixture
def measure(workspace, tmp_path):
    """Measures cases of a benchmark on small input; returns their rows by case and quantity."""

    def run(name, *cases):
        bench = Bench(workspace, tmp_path, tmp_path / "kept", True, 0, Progress())
        groups = list(find_benchmark(name).run(bench, ((case, 0) for case in cases)))
        assert [group[0].case for group in groups] == list(cases)
        return {case: list(group) for case, group in zip(cases, groups, strict=True)}

    return run


@pytest.fixture
def counted(monkeypatch):
    """A registered benchmark whose sides count comparisons, and the repetitions that it was asked for."""
    asked = []
    benchmarks()  # a module that is imported later would register in the copy alone
    monkeypatch.setattr("tasks.bench.engine.registry.BENCHMARKS", dict(BENCHMARKS))

    @benchmark(
        "counted",
        "steps of a binary search against a linear one",
        "≥ 30×",
        "both find the same place",
        cases=["first", "last"],
        measures=[Measure("*", "steps", bound=30.0)],
        repetitions=2,
    )
    def run(bench, todo):
        assert bench.folder.is_dir()
        for case, repetition in todo:
            asked.append((case, repetition))
            place = 100 if case == "first" else 1000
            yield [Row(case, repetition, "steps", "", 10, place), Row(case, repetition, "other", "", 1, 1)]

    return asked


def frame(rows, folder):
    """Rows as they are read from a file."""
    raw = Raw(folder / "raw.csv", 1)
    raw.append(rows, SETUP)
    return raw.read()


# the five, on small input


def checked(rows):
    assert all(row.checked for row in rows), rows
    assert all(np.isfinite(row.ours) and row.ours > 0 for row in rows)
    return {row.quantity: row for row in rows}


@pytest.mark.slow  # tests/parity holds every method against mergekit
def test_merge_gives_what_mergekit_gives(measure):
    found = checked(measure("merge", "TIES")["TIES"])
    assert set(found) == {"wall", "memory", "cpu"}
    assert 100 < found["memory"].ours < found["memory"].theirs < 2000
    assert found["wall"].theirs > 0


@pytest.mark.slow
def test_random_merges_have_the_same_norm(measure):
    (note,) = {row.note for row in measure("merge", "DARE-TIES")["DARE-TIES"] if row.checked}
    assert re.fullmatch(r"L1 norms 0\.\d+% apart", note)


def test_a_merge_that_differs_is_seen(tmp_path):
    family = write_family(tmp_path, 2, SMALL, 0)
    assert merge.compare("ties", family["base"], family["base"], family)[0]
    assert not merge.compare("ties", family["base"], family["expert-1"], family)[0]
    assert merge.compare("dare_ties", family["expert-1"], family["expert-2"], family)[0]
    larger = write_family(tmp_path / "seed", 1, SMALL, 1)
    assert not merge.compare("dare_ties", family["expert-1"], larger["expert-1"], family)[0]


@pytest.mark.slow  # tests/tasks/scoring shows that Ray workers give the same scores
def test_ray_workers_score_as_one_process_does(measure):
    found = measure("ray", "2 workers", "7B modelled, 64 workers")
    assert set(checked(found["2 workers"])) == {"wall", "driver's cpu a chunk", "weights into the store"}
    assert len(found["7B modelled, 64 workers"]) == 2


@pytest.mark.slow  # tests/tasks/report bounds the work
def test_a_large_front_and_a_long_journal_are_shown(measure):
    for rows in measure("load", "front", "report", "journal").values():
        assert set(checked(rows)) <= {"wall", "memory", "cpu"}


def test_a_larger_cluster_is_reckoned_from_what_the_driver_takes():
    rows = ray.modelled("7B modelled, 64 workers", 0, (0.02, 0.001))
    assert [row.quantity for row in rows] == ["wall, rounds of 16", "wall, rounds of two a worker"]
    for row in rows:
        assert row.ours < row.theirs
        assert "workers busy" in row.note


@pytest.mark.slow  # tests/parity/test_lm_eval.py holds scores in memory against lm-eval
def test_candidates_score_the_same_in_memory_and_by_the_tools(measure):
    found = checked(measure("candidate", "without start-up, 32 items")["without start-up, 32 items"])
    assert found["wall a candidate"].ours < found["wall a candidate"].theirs


@pytest.mark.slow
def test_candidates_score_the_same_by_the_tools_commands(measure):
    found = checked(measure("candidate", "with start-up, 32 items")["with start-up, 32 items"])
    assert found["wall a candidate"].theirs > 20 * found["wall a candidate"].ours


def test_other_scores_are_seen():
    assert candidate.equal([{"a": 0.25}], [{"a": 0.25 + 1e-12}])
    assert not candidate.equal([{"a": 0.25}], [{"a": 0.26}])
    assert not candidate.equal([{"a": 0.25}], [{"b": 0.25}])


def test_shared_prefixes_change_no_score(measure):
    found = {case: checked(rows) for case, rows in measure("prefix", *prefix.cases([3])).items()}
    forwards = {case: (rows["layer forwards"].ours, rows["layer forwards"].theirs) for case, rows in found.items()}
    assert all(ours < theirs for ours, theirs in forwards.values())
    assert all(rows["wall"].note == "8 paths" for rows in found.values())


def test_another_score_is_seen():
    one, other = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.bool)
    assert prefix.identical([(one, other)], [(one.clone(), other.clone())])
    assert not prefix.identical([(one, other)], [(one + 1e-15, other)])
    assert not prefix.identical([(one, other)], [(one, ~other)])
    assert prefix.greatest_difference([(one + 0.5, other)], [(one, other)]) == 0.5
    assert prefix.greatest_difference([(one - 101, other)], [(one - 100, other)]) == pytest.approx(0.01)


@pytest.mark.parametrize("alone", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_pool_keeps_its_bound_while_anchors_are_added(measure, monkeypatch, alone):
    if not alone:  # of a process in which everything is imported already
        monkeypatch.setattr("tasks.bench.engine.memory.looks", memory.grow)
    rows = measure("memory", "anchors")["anchors"]
    checked(rows)
    held = [row for row in rows if row.quantity == "held"]
    assert [row.x for row in held] == [1, 2, 3, 4]
    assert held[1].ours == pytest.approx(held[1].theirs)  # two anchors fit, three don't
    assert held[2].ours <= memory.HELD * held[0].theirs < held[2].theirs
    assert all(row.ours > 100 for row in rows if row.quantity == "resident memory")


def test_every_size_of_a_candidate_is_timed(measure):
    for case, rows in measure("scale", *scale.GRID).items():
        checked(rows)
        sizes = {quantity: [row.x for row in rows if row.quantity == quantity] for quantity in ("wall", "cpu")}
        assert sizes["wall"] == sizes["cpu"] == sorted(sizes["wall"]), case
        if case != "width":  # whose x is the number of parameters
            assert sizes["wall"] == [getattr(problem, case) for problem in scale.SMALL_GRID[case]]


# rows and resuming


def test_what_is_measured_is_not_measured_again(workspace, counted):
    raw = Raw(workspace.root / "docs" / "results" / "raw" / "counted.csv", 1)
    whole = [("first", 0), ("last", 0), ("first", 1), ("last", 1)]
    run_benchmark(workspace, "counted", Progress(), repetitions=1)
    first = raw.read()
    assert counted == whole[:2]
    outcome = run_benchmark(workspace, "counted", Progress())
    assert counted == whole
    assert len(raw.read()) == 8
    pd.testing.assert_frame_equal(raw.read()[:4], first)
    run_benchmark(workspace, "counted", Progress())
    assert counted == whole
    assert [(one.case, one.value, one.repetitions) for one in outcome.verdicts] == [("first", 10, 2), ("last", 100, 2)]
    run_benchmark(workspace, "counted", Progress(), fresh=True)
    assert counted == whole * 2
    assert len(raw.read()) == 8
    assert not (workspace.state / "bench" / "work" / "counted").exists()


def test_an_interrupted_run_keeps_what_it_measured(workspace, counted, tmp_path):
    one = find_benchmark("counted")
    raw = Raw(tmp_path / "counted.csv", 1)
    bench = Bench(workspace, tmp_path, tmp_path / "kept", True, 0, Progress())
    rows = one.run(bench, iter([("first", 0), ("last", 0)]))
    raw.append(next(rows), SETUP)  # and here the machine goes away
    assert raw.done() == {("first", 0)}


def test_small_runs_leave_no_result(workspace, counted):
    before = sorted((workspace.root / "docs").rglob("*")) if (workspace.root / "docs").is_dir() else []
    outcome = run_benchmark(workspace, "counted", Progress(), small=True)
    run_benchmark(workspace, "counted", Progress(), small=True)
    assert counted == [("first", 0), ("last", 0)] * 2
    assert outcome.page.is_relative_to(workspace.state)
    assert (sorted((workspace.root / "docs").rglob("*")) if before else []) == before


def test_rows_of_another_version_do_not_count(tmp_path):
    old, new = Raw(tmp_path / "a.csv", 1), Raw(tmp_path / "a.csv", 2)
    old.append([Row("case", 0, "wall", "s", 1.0, 2.0)], SETUP)
    assert new.done() == set()
    new.append([Row("case", 1, "wall", "s", 1.0, None, 4.0, False, "a, b")], SETUP)
    assert new.done() == {("case", 1)}
    (row,) = new.read().to_dict("records")
    assert list(row) == COLUMNS
    assert (row["checked"], row["note"], row["x"], row["commit"]) == (False, "a, b", 4.0, "abc1234+")
    assert np.isnan(row["theirs"])


def test_a_damaged_file_of_rows_is_bad_input(tmp_path):
    raw = Raw(tmp_path / "a.csv", 1)
    raw.path.write_text("version,case\n1,a\n")
    with pytest.raises(
        BadInput, match=r"^a\.csv: has other columns than .*; restore it, or measure again with --fresh$"
    ):
        raw.read()
    raw.path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"^a\.csv: not readable .*--fresh$"):
        raw.read()


def test_rows_name_no_machine_and_no_folder(workspace):
    described = describe_setup(workspace.root, 3, 2)
    assert described.seed == 3
    assert described.torch == torch.__version__
    assert "mergekit 0." in described.tools
    assert platform.node() not in repr(described)
    assert str(workspace.root) not in repr(described)


# what is said of them


def sorting(*measures):
    """A benchmark with these measures."""
    one = find_benchmark("merge")
    return type(one)(**{**vars(one), "measures": measures})


def test_a_ratio_is_that_of_the_medians(tmp_path):
    pairs = [(1.0, 4.0), (2.0, 5.0), (10.0, 6.0)]
    rows = frame([Row("TIES", n, "wall", "s", ours, theirs) for n, (ours, theirs) in enumerate(pairs)], tmp_path)
    (one,) = summarise(sorting(Measure("T*", "wall", bound=3.0), Measure("D*", "wall")), rows)
    assert (one.value, one.low, one.high, one.repetitions) == (2.5, 0.6, 4.0, 3)
    assert (one.reached, one.outcome, one.target) == (False, "not reached", "≥ 3×")
    (one,) = summarise(sorting(Measure("*", "wall", bound=2.5)), rows)
    assert one.outcome == "reached"
    (one,) = summarise(sorting(Measure("*", "wall")), rows)
    assert (one.reached, one.outcome) == (None, "")


def test_results_that_differ_reach_nothing(tmp_path):
    rows = frame([Row("TIES", n, "wall", "s", 1.0, 9.0, checked=n != 1) for n in range(3)], tmp_path)
    (one,) = summarise(sorting(Measure("*", "wall", bound=3.0)), rows)
    assert (one.reached, one.outcome) == (False, "results differ")


@pytest.mark.parametrize(("exponent", "outcome"), [(0.9, "reached"), (1.3, "not reached")])
def test_a_slope_is_the_exponent(tmp_path, exponent, outcome):
    rows = [Row("layers", n, "wall", "s", (1 + n) * x**exponent, x=x) for n in range(2) for x in (4, 8, 16, 32)]
    (one,) = summarise(sorting(Measure("*", "wall", "slope", bound=1.1)), frame(rows, tmp_path))
    assert one.value == pytest.approx(exponent, abs=1e-4)
    assert one.error < 1e-4
    assert (one.outcome, one.ours) == (outcome, None)


def test_growth_counts_from_the_third_on(tmp_path):
    resident = {1: 100.0, 2: 140.0, 3: 180.0, 8: 190.0, 12: 198.0}
    rows = [Row("anchors", 0, "rss", "MB", value, 40.0 * x, x) for x, value in resident.items()]
    (one,) = summarise(sorting(Measure("*", "rss", "growth", bound=0.1)), frame(rows, tmp_path))
    assert one.value == pytest.approx(18 / 360)
    assert one.outcome == "reached"


def test_the_table_says_what_is_not_reached(workspace, counted, capsys):
    from rich.console import Console

    outcome = run_benchmark(workspace, "counted", Progress(), small=True)
    Console(width=160).print(verdict_table(outcome.benchmark, outcome.verdicts))
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"first +steps +10 +100 +10\.0× +10\.0× – 10\.0× +1 +≥ 30× +not reached", "\n".join(lines))
    assert re.search(r"last +steps +10 +1e\+03 +100× +100× – 100× +1 +≥ 30× +reached", "\n".join(lines))
    data = verdict_data(outcome.benchmark, outcome.verdicts, outcome.steps)
    assert [one["outcome"] for one in data["measures"]] == ["not reached", "reached"]


def test_the_page_shows_every_benchmark_that_has_rows(tmp_path):
    def add(name, *rows):
        one = find_benchmark(name)
        Raw(tmp_path / "raw" / f"{name}.csv", one.version).append(rows, SETUP)

    add("merge", *(Row("TIES", n, "wall", "s", 10.0, 58.0 + n) for n in range(3)), Row("TIES", 0, "memory", "MB", 3, 4))
    add("scale", *(Row("layers", 0, "wall", "s", 0.1 * x, x=x) for x in (4, 8, 16, 32)))
    add("memory", *(Row("anchors", 0, "resident memory", "MB", 500.0, 40.0 * x, x, False) for x in (1, 3, 12)))
    page = write_engine(tmp_path)
    text = page.read_text()
    assert "| TIES | wall | 10 s | 59 s | **5.90×** | 5.80× – 6.00× | 3 | ≥ 3× | reached |" in text
    assert "Not reached: TIES, memory (1.33×, target ≥ 2×)." in text
    assert "| layers | wall |  |  | **1.00** | 1.00 – 1.00, s.e. 0.00 | 1 | ≤ 1.1 | reached |" in text
    assert "| case | x | wall |\n|---|---:|---:|\n| layers | 4 | 0.4 s |\n| layers | 8 | 0.8 s |\n" in text
    assert "| anchors | 12 | 500 MB |\n\nMeasured on" in text
    assert "**3 of 3 measurements have results that differ.**" in text
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == ["merge", "memory", "scale"]
    assert text.count("Measured on a processor with 2 cores, 2 threads; commit abc1234+") == 3
    assert "\n\n\n" not in text
    assert (tmp_path / "engine.png").read_bytes().startswith(b"\x89PNG")
    before = text
    assert write_engine(tmp_path).read_text() == before


def test_a_page_without_rows_says_so(tmp_path):
    assert "Nothing has been measured yet." in write_engine(tmp_path).read_text()
    assert not (tmp_path / "engine.png").exists()


# what work costs

HOLD = "import time; held = bytearray(b'x') * {size}; time.sleep({seconds})"


def test_memory_is_that_of_the_process_and_its_children(tmp_path):
    inside = HOLD.format(size=150_000_000, seconds=0.5)
    call = f"subprocess.run([sys.executable, '-c', {inside!r}])"
    code = f"import subprocess, sys; held = bytearray(b'x') * 100_000_000; {call}"
    assert 250 < run_measured([sys.executable, "-c", code], tmp_path, {}).memory < 330


def test_memory_of_the_caller_does_not_count(tmp_path):
    held = bytearray(b"x") * 300_000_000
    assert 10 < run_measured([sys.executable, "-c", "import time; time.sleep(1)"], tmp_path, {}).memory < 100
    assert len(held) == 300_000_000


def test_wall_and_processor_time_are_told_apart(tmp_path):
    idle = run_measured([sys.executable, "-c", "import time; time.sleep(0.6)"], tmp_path, {})
    assert idle.wall > 0.6
    assert idle.cpu < 0.4
    busy, usage = timed(sum, range(3_000_000))
    assert busy == sum(range(3_000_000))
    assert usage.cpu > 0.01


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(Failed, match=r"^python.*: ended with 3: no luck$"):
        run_measured([sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"], tmp_path, {})
    with pytest.raises(Failed, match="yes"):
        run_measured(
            [sys.executable, "-c", "import os, sys; sys.exit(os.environ['HM3_TEST'])"], tmp_path, {"HM3_TEST": "yes"}
        )


# the registry


def test_every_case_has_a_target():
    assert [one.name for one in benchmarks()] == NAMES
    for one in benchmarks():
        for case in (*one.cases, *one.small_cases):
            targets = [measure.target for measure in one.measures if fnmatchcase(case, measure.cases)]
            assert any(targets) or ("modelled" in case and targets), case


def test_no_repetition_is_bad_input(workspace):
    with pytest.raises(BadInput, match="--repetitions 0: must be 1 or more"):
        run_benchmark(workspace, "scale", Progress(), repetitions=0)
