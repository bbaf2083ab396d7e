import numpy as np
import pytest

from models.candidate import Candidate
from models.search.archive import Archive, Entry

PATH = Candidate.identity("a", 3)


def test_means_over_parts_are_combined_by_item_count():
    archive = Archive([], [4, 8])
    archive.record(PATH, "edit", 1, 2, (0.5, 0.5))
    archive.record(PATH, "edit", 2, 8, (1.0, 0.0))  # two items of the first task, six of the second
    entry = archive[PATH]
    assert entry.scores == pytest.approx((0.75, 0.125))
    assert (entry.items, entry.round, entry.kind, entry.charged) == (8, 1, "edit", 4 + 8)


def test_a_task_that_has_no_more_items_keeps_its_mean():
    archive = Archive([], [4, 8])
    archive.record(PATH, "edit", 1, 4, (0.5, 0.5))
    archive.record(PATH, "edit", 1, 8, (float("nan"), 1.0))
    assert archive[PATH].scores == pytest.approx((0.5, 0.75))


def test_the_cost_counts_the_items_that_each_task_has():
    archive = Archive([], [4, 8])
    assert [archive.cost(0, 2), archive.cost(2, 8), archive.cost(0, 8), archive.full] == [4, 8, 12, 8]


def test_a_failure_stays_and_is_never_among_the_scored():
    archive = Archive([Entry(PATH, "edit", 0, 2, (0.5,), 2)], [8])
    archive.record(PATH, "edit", 1, 8, None)
    assert archive[PATH].scores is None
    assert archive[PATH].charged == 8
    assert PATH in archive and len(archive.scored(1)) == 0


def test_equal_candidates_are_there_once_and_the_first_stays():
    archive = Archive([Entry(PATH, "expert", 0, 8, (0.5,)), Entry(PATH, "identity", 0, 4, (0.1,))], [8])
    assert [entry.kind for entry in archive.entries] == ["expert"]


def test_entries_are_found_by_the_items_they_were_scored_on():
    paths = [Candidate.identity("a", depth) for depth in (1, 2, 3)]
    archive = Archive([Entry(p, "edit", 0, n, (n / 8,)) for p, n in zip(paths, (2, 4, 8), strict=True)], [8])
    assert archive.scored(8).tolist() == [2]
    assert archive.scored(2, below=8).tolist() == [0, 1]
    np.testing.assert_array_equal(archive.task_scores(archive.scored(2, below=8)), [[0.25], [0.5]])
    assert archive.depths(archive.scored(1)).tolist() == [1, 2, 3]


@pytest.mark.parametrize("scores", [(0.5, float("nan")), (float("inf"), 0.5), None])
def test_a_score_that_is_no_number_is_a_failure(scores):
    archive = Archive([], [4, 8])
    archive.record(PATH, "edit", 1, 2, scores)
    assert archive[PATH].scores is None
    archive.record(PATH, "edit", 2, 8, (1.0, 1.0))
    assert archive[PATH].scores is None
    assert archive[PATH].charged == 12
    assert len(archive.scored(1)) == 0
