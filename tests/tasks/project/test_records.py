"""Tables and records that stages hand to each other, or that `dvc pull` brought from anyone."""

import json

import pandas as pd
import pytest

from models.errors import BadInput
from tasks.project.records import Anchors, read_table

GOOD = pd.DataFrame({"candidate": ["a", "b"], "items": [3, 4], "math": [0.5, None], "more": [None, "x"]})


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    return folder


def read(run, **more):
    return read_table(run, "archive.parquet", "search", ("candidate",), ("items", "math"), **more)


def test_a_table_is_read_with_its_columns(run):
    GOOD.to_parquet(run / "archive.parquet")
    pd.testing.assert_frame_equal(read(run), GOOD)
    assert list(read(run, only=True)) == ["candidate", "items", "math"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: GOOD.drop(columns="math").to_parquet(path), "math: no such column"),
        (lambda path: GOOD.assign(items=["3", "4"]).to_parquet(path), "items: holds something else than numbers"),
        (lambda path: GOOD.assign(candidate=[1, 2]).to_parquet(path), "candidate: holds something else than text"),
        (lambda path: GOOD.assign(candidate=["a", None]).to_parquet(path), "candidate: holds something else than text"),
        (lambda path: path.write_bytes(b"PAR1" * 9), "not readable"),
        (lambda path: path.symlink_to("/etc/passwd"), "is a link out of the folder"),
        (lambda path: None, "no such file; `hm3 run --profile p` or `dvc pull` makes it"),
    ],
)
def test_a_table_of_another_kind_is_refused_in_one_line(run, change, message):
    change(run / "archive.parquet")
    with pytest.raises(BadInput, match=message) as error:
        read(run)
    assert "\n" not in str(error.value)


ANCHORS = {
    "objectives": ["math"],
    "ideal": {"math": 1.0},
    "nadir": {"math": 0.0},
    "spent": 3,
    "anchors": [],
    "scored": [{"name": "base", "kind": "base", "title": "base", "recipe": None, "scores": {"math": 0.5}}],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spent": "many"}, "spent: "),
        ({"ideal": {}}, "ideal, nadir: "),
        ({"scored": [{**ANCHORS["scored"][0], "scores": {}}]}, "base: lacks scores"),
        ({"scored": [1]}, r"scored\.0"),
        ({"objectives": None}, "objectives"),
    ],
)
def test_anchors_of_another_kind_are_refused(run, changes, message):
    (run / "anchors.json").write_text(json.dumps(ANCHORS))
    assert Anchors.read(run).scored[0].scores == {"math": 0.5}
    (run / "anchors.json").write_text(json.dumps(ANCHORS | changes))
    with pytest.raises(BadInput, match=rf"^runs/p/anchors\.json: .*{message}.*run stage `sample` again$"):
        Anchors.read(run)
