"""The page of what was tried on real runs."""

import pandas as pd
import pytest

from flows.bench.fault_page import rows_path, texts
from tasks.project.records import write_table

pytestmark = pytest.mark.lab

SETUP = {"commit": "abc", "hm3": "1", "torch": "2", "cores": 2, "threads": 2, "cpu": "a CPU"}


def test_the_page_counts_what_was_survived_and_says_what_was_not(tmp_path):
    seen = [
        ("stage killed", 7, "search", True, ""),
        ("stage killed", 7, "start", True, ""),
        ("stage killed", 8, "search", False, "3 items were scored twice"),
        ("run killed", 8, "train", False, "3 items were scored twice"),
    ]
    rows = [
        {"kind": kind, "seed": seed, "stage": stage, "survived": survived, "why": why} | SETUP
        for kind, seed, stage, survived, why in seen
    ]
    write_table(rows_path(tmp_path), pd.DataFrame(rows))
    (text,) = texts(tmp_path).values()
    assert "**2 of 4** faults were survived, in 2 trials with seeds 7 to 8." in text
    assert (
        "| stage killed | SIGKILL of the stage that is under way, or the next one. | 2 | 3 | 1 | 0 | 0 | 0 | 2 | 0 |"
        in text
    )
    assert "| run killed | SIGKILL of the process that the user started. | 0 | 1 | 0 | 0 | 0 | 1 | 0 | 0 |" in text
    assert text.count("- seed 8: 3 items were scored twice") == 1
    assert "bucket" not in text.partition("| fault |")[2]
    assert "\n\n\n" not in text
