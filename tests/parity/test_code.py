"""Verdicts equal those of the executor that lm-eval itself brings, which runs programs unconfined."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.objectives.code_metrics import pass_at_k
from tasks.sandbox.sandbox import Limits, Sandbox
from tests.bubblewrap import require_bubblewrap

# harmless ones alone: the other side runs them as this user
PROGRAMS = [
    "x = 1",
    "assert False",
    "assert 1 == 2, 'never'",
    "def f(:",
    "1 / 0",
    "print('x' * 10**5)",
    "assert input() == ''",
    "import sys\nsys.exit()",
    "exit()",
    "raise KeyboardInterrupt",
    "raise SystemExit(0)",
    "if __name__ == '__main__':\n    raise ValueError",
    "assert '__file__' not in globals()",
    "while True:\n    pass",
    "import time\ntime.sleep(60)",
    "def f(n):\n    return f(n + 1)\nf(0)",
    "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 3\nassert A().x == 3",
    "import math, re, collections, itertools, functools, heapq, string, random, typing, datetime",
    "import numpy_that_is_not_there",
    "def f():\n    yield 1\nassert list(f()) == [1]",
    "global x\nx = 2\nassert x == 2",
    "class E(BaseException):\n    pass\nraise E",
    "assert eval('1 + 1') == 2 and exec('y = 3') is None and y == 3",
    "from __future__ import annotations\ndef f(x: Unknown): pass",
    "import asyncio\nasync def f():\n    return 1\nassert asyncio.run(f()) == 1",
    "\tx = 1",
    "x = '\\ud800'",
    "return 1",
    "",
]

# in a process of its own, because it disables half of the os module where it runs
THEIRS = """
import importlib.util, json, sys
from pathlib import Path
import lm_eval
spec = importlib.util.spec_from_file_location("theirs", Path(lm_eval.__file__).parent / "tasks/cruxeval/utils.py")
theirs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(theirs)
tries = json.load(sys.stdin)
print(json.dumps([theirs.pass_at_k([""], [one], [1, 2] if len(one) > 1 else [1]) for one in tries]))
"""


def real_programs():
    """Right and broken solutions of HumanEval, where it is there."""
    path = Path(os.environ.get("HM3_SHARED", "/nowhere")) / "data" / "humaneval.jsonl.gz"
    if not path.is_file():
        return []
    with gzip.open(path, "rt") as file:
        items = [json.loads(line) for line in file][::16]
    ends = [("canonical_solution", "check({entry_point})"), ("canonical_solution", "check(len)")]
    return [one["prompt"] + one[body] + one["test"] + "\n" + end.format(**one) for one in items for body, end in ends]


@pytest.mark.timeout(300)
def test_verdicts_equal_those_of_lm_evals_executor():
    require_bubblewrap()
    programs = [*PROGRAMS, *real_programs()]
    tries = [*([one] for one in programs), programs[:5], programs[5:12], programs[-4:]]
    command = [sys.executable, "-c", THEIRS]
    done = subprocess.run(command, input=json.dumps(tries), capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout)
    with Sandbox("bubblewrap", Limits(wall_seconds=4)) as sandbox:
        ours = [pass_at_k([""], [one], [1, 2] if len(one) > 1 else [1], sandbox) for one in tries]
    differing = [(one, a, b) for one, a, b in zip(tries, ours, theirs, strict=True) if a != pytest.approx(b, abs=1e-12)]
    assert not differing
    assert {0.0, 1.0} < {one["pass@1"] for one in ours}
