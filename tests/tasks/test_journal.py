"""The journal keeps every score once, whole, through kills."""

import json
import os
import signal
import subprocess
import sys

import pytest

from models.errors import BadInput
from tasks.engine import missing
from tasks.journal import Entry, Journal, key_of


def entry(key="k", start=0, stop=2, values=(1.0, 0.0), failed=None):
    return Entry(key, start, stop, {"math": values}, failed)


def test_what_was_written_is_read_again(tmp_path):
    journal = Journal(tmp_path)
    journal.append([entry(), entry("other", failed="NaN")])
    journal.append([entry(start=2, stop=4)])
    again = Journal(tmp_path)
    assert again.find("k") == [entry(), entry(start=2, stop=4)]
    assert again.find("other")[0].failed == "NaN"
    assert [path.name for path in sorted(tmp_path.glob("*.jsonl"))] == ["00000001.jsonl", "00000002.jsonl"]


def test_a_segment_is_never_replaced(tmp_path):
    first, second = Journal(tmp_path), Journal(tmp_path)
    first.append([entry()])
    with pytest.raises(FileExistsError):
        second.append([entry("late")])
    assert Journal(tmp_path).find("k")


def test_a_journal_of_another_version_is_refused(tmp_path):
    (tmp_path / "00000001.jsonl").write_text(json.dumps({"format": 99}) + "\n")
    with pytest.raises(BadInput, match=r"00000001.jsonl: a journal of another version.*--fresh"):
        Journal(tmp_path)


def test_a_key_depends_on_every_part_and_not_on_their_order():
    assert key_of(a=1, b=2) == key_of(b=2, a=1) != key_of(a=1, b=3)


def test_a_killed_writer_leaves_whole_segments_only(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tasks.journal import *\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for i in range(10**6):\n"
        "    journal.append([Entry(f'{i}-{j}', 0, 2, {'math': (1.0, 0.0)}) for j in range(50)])\n"
        "    print(i, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) >= 20:
                os.kill(process.pid, signal.SIGKILL)
                break
    journal = Journal(tmp_path)
    assert len(journal) % 50 == 0
    assert len(journal) >= 20 * 50
    journal.append([entry()])
    assert Journal(tmp_path).find("k")


@pytest.mark.parametrize(
    ("entries", "span", "expected"),
    [
        ([], (0, 8), [(0, 8)]),
        ([(0, 8)], (0, 8), []),
        ([(0, 4)], (0, 8), [(4, 8)]),
        ([(2, 4)], (0, 8), [(0, 2), (4, 8)]),
        ([(0, 4), (4, 8)], (2, 6), []),
        ([(0, 2), (6, 9)], (4, 8), [(4, 6)]),
    ],
)
def test_only_what_is_missing_is_scored(entries, span, expected):
    assert missing([entry(start=low, stop=high) for low, high in entries], *span) == expected


def test_a_failed_candidate_is_not_tried_again():
    assert missing([entry(start=0, stop=4, failed="NaN")], 0, 8) == []
