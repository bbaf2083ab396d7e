"""Evaluates generated expressions in a separate, limited process and compares their values with the expected ones.

That is no sandbox and needs none: what is no plain expression isn't evaluated. A task of whole programs says
`unsafe_code: true` and names `tasks.code_metrics.pass_at_k` as its metric.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.families.tiny.expressions import run_expressions

Attempt = tuple[str, list[dict[str, Any]], list[Any]]
"""Program, inputs, expected values."""


def process_results(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, Attempt]:
    """What is to be run for one item. All items are run together, because each process takes time to start."""
    return {"pass@1": (results[0].strip(), json.loads(doc["inputs"]), json.loads(doc["outputs"]))}


def share_passed(attempts: Sequence[Attempt]) -> float:
    """Share of the programs that give the expected value on every input."""
    programs, inputs, expected = zip(*attempts, strict=True)
    values = run_expressions(programs, inputs, seconds=1.0)
    return sum(ours == theirs for ours, theirs in zip(values, expected, strict=True)) / len(expected)
