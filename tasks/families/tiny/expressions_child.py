"""The process in which generated expressions run: standard library alone, JSON in, JSON out.

``expressions`` starts it as ``python -I -S``. It confines itself, reads the job from standard input, and writes one
line for each program as soon as that is done.
"""

from __future__ import annotations

import ast
import ctypes
import json
import math
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any, NoReturn

LONGEST_PROGRAM = 4096
LONGEST_ANSWER = 2**16
"""Characters."""

SYNTAX = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Store, ast.Attribute, ast.Subscript, ast.Slice),
    *(ast.Call, ast.keyword, ast.Starred, ast.Lambda, ast.arguments, ast.arg, ast.IfExp),
    *(ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.unaryop, ast.operator, ast.boolop, ast.cmpop),
    *(ast.List, ast.Tuple, ast.Set, ast.Dict, ast.JoinedStr, ast.FormattedValue),
    *(ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension),
)

BUILTINS: dict[str, Any] = {
    function.__name__: function
    for function in (
        *(abs, all, any, bin, bool, chr, dict, divmod, enumerate, filter, float, hex, int, len, list, map, max, min),
        *(ord, pow, range, reversed, round, set, sorted, str, sum, tuple, zip),
    )
}

METHODS = {
    *("bit_length", "copy", "count", "difference", "get", "index", "intersection", "issubset", "issuperset", "items"),
    *("keys", "symmetric_difference", "union", "values"),
    *("capitalize", "center", "endswith", "find", "isalnum", "isalpha", "isdigit", "islower", "isspace", "isupper"),
    *("join", "ljust", "lower", "lstrip", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust"),
    *("rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "zfill"),
}
"""Of numbers, strings and collections; ``format`` is none of them, because it reads attributes."""


class RefusedError(Exception):
    """The program uses what is not allowed."""


def compile_expression(program: str) -> CodeType:
    """The code of an expression that uses allowed syntax, functions and methods alone.

    Raises:
        RefusedError: it doesn't.
        SyntaxError: it is no expression.
    """
    if len(program) > LONGEST_PROGRAM:
        raise RefusedError("too long")
    tree = ast.parse(program.strip(), mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, SYNTAX):
            raise RefusedError(type(node).__name__)
        if isinstance(node, ast.Attribute) and node.attr not in METHODS:
            raise RefusedError(node.attr)
        if isinstance(node, ast.Name) and node.id.startswith("__"):
            raise RefusedError(node.id)
    return compile(tree, "<program>", "eval")


def evaluate(code: CodeType, variables: Mapping[str, Any]) -> Any:
    """The value of an expression as JSON holds it, or ``None``."""
    try:
        value = eval(code, {"__builtins__": {}, **BUILTINS, **variables})  # noqa: S307 # checked, in a confined process
        text = json.dumps(value, allow_nan=False)
        return json.loads(text) if len(text) <= LONGEST_ANSWER else None
    except TimeoutError:
        raise
    except Exception:  # noqa: BLE001 # whatever a program raises, it has failed and the next one runs
        return None


def answer(program: str, cases: Sequence[Mapping[str, Any]], seconds: float) -> list[Any]:
    """Values of a program on its inputs; those that it doesn't reach in time are ``None``."""
    values: list[Any] = []
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        code = compile_expression(program)
        for variables in cases:
            values.append(evaluate(code, variables))
    except (RefusedError, SyntaxError, ValueError, RecursionError, MemoryError, TimeoutError):
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return values + [None] * (len(cases) - len(values))


def confine(memory_bytes: int, seconds: float) -> None:
    """Give up what this process could do beyond computing."""
    new_user, new_network = 0x10000000, 0x40000000
    libc = ctypes.CDLL(None)
    if hasattr(libc, "unshare"):
        libc.unshare(new_user | new_network)
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: math.ceil(seconds),
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 3,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def overdue(*_: object) -> NoReturn:
    """The alarm."""
    raise TimeoutError


def main() -> None:
    """Read the job, answer each program with a line."""
    job = json.load(sys.stdin)
    signal.signal(signal.SIGALRM, overdue)
    confine(job["memory_bytes"], 1 + job["seconds"] * len(job["programs"]))
    print("ready", flush=True)  # noqa: T201
    for program, cases in job["programs"]:
        print(json.dumps(answer(program, cases, job["seconds"])), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
