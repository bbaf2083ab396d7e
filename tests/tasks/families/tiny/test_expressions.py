"""Generated expressions: whatever one does, it is scored as failed and the others are evaluated."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.errors import Failed
from tasks.families.tiny import expressions
from tasks.families.tiny.expressions import run_expressions

SOUND = "[v * 2 for v in xs if v > 1]"
CASES = [{"xs": [1, 2, 3]}, {"xs": []}]
EXPECTED = [[4, 6], []]


def among_sound_ones(program, **options):
    """What a program gives that runs between two sound ones."""
    first, found, last = run_expressions([SOUND, program, SOUND], [CASES] * 3, **options)
    assert first == last == EXPECTED
    return found


@pytest.mark.parametrize(
    ("program", "variables", "value"),
    [
        ("x ** 2 - 1", {"x": 7}, 48),
        ("s.upper()[::-1]", {"s": "abc"}, "CBA"),
        ("sorted(xs, key=lambda v: -v)[:2]", {"xs": [1, 3, 2]}, [3, 2]),
        ("{c: s.count(c) for c in sorted(set(s))}", {"s": "aba"}, {"a": 2, "b": 1}),
        ("divmod(x, 4)", {"x": 9}, [2, 1]),
        ("' '.join(w.title() for w in s.split())", {"s": "ab cd"}, "Ab Cd"),
        ("f'{x:03d}' if x > 1 else None", {"x": 5}, "005"),
        ("max(*xs, x) / 2", {"xs": [1, 2], "x": 5}, 2.5),
        ("list(map(str, xs)) == ['1'] and not x", {"xs": [1], "x": 0}, True),
        ("  x + 1\n", {"x": 1}, 2),
    ],
)
def test_an_expression_gives_its_value_as_json(program, variables, value):
    assert run_expressions([program], [[variables]]) == [[value]]


def test_an_expression_gets_each_of_its_inputs_afresh():
    assert run_expressions(["xs * 2"], [[{"xs": [1]}, {"xs": ["a"]}, {"x": 1}]]) == [[[1, 1], ["a", "a"], None]]


@pytest.mark.parametrize(
    "program",
    [
        "__import__('os').system('true')",
        "open('/etc/passwd').read()",
        "().__class__.__bases__[0].__subclasses__()",
        "xs.__class__",
        "__builtins__",
        "(lambda __x: __x)(1)",
        "'{0.__class__}'.format(xs)",
        "[].append.__self__",
        "f'{xs.__class__}'",
        "getattr(xs, 'clear')()",
        "eval('1')",
        "exec('1')",
        "type(xs)",
        "globals()",
        "xs.append(1)",
        "(y := 1)",
        "import os",
        "x = 1",
        "while True: pass",
        "",
        "(",
        "1 / 0",
        "unknown",
        "print(1)",
        "xs @ xs",
        "float('nan')",
        "1e999",
        "{1, 2}",
        "len",
        "'a' * 100000",
        "(" * 3000 + ")" * 3000,
        "1 +" * 2000 + "1",
        "\0",
        "(lambda f: f(f))(lambda f: f(f))",
        "await xs",
        "[v async for v in xs]",
        "yield",
    ],
)
def test_what_is_not_allowed_or_fails_gives_nothing(program):
    assert among_sound_ones(program) == [None, None]


@pytest.mark.parametrize(
    "program",
    [
        "sum(1 for v in range(10**12))",
        "10**10**10",
        "max(range(10**15))",
        "list(range(10**12))",
        "[0] * 10**11",
        "'a' * 10**12",
    ],
)
def test_endless_and_huge_programs_fail_alone(program):
    started = time.monotonic()
    assert among_sound_ones(program, seconds=0.5) == [None, None]
    assert time.monotonic() - started < 60


def test_many_endless_programs_take_a_bounded_time():
    endless = "sum(1 for v in range(10**12))"
    started = time.monotonic()
    found = run_expressions([endless, SOUND] * 4, [CASES] * 8, seconds=0.2)
    assert found == [[None, None], EXPECTED] * 4
    assert time.monotonic() - started < 60


def test_inputs_after_the_one_that_hangs_are_given_up():
    found = run_expressions(["sum(1 for v in range(x))"], [[{"x": 3}, {"x": 10**12}, {"x": 4}]], seconds=0.3)
    assert found == [[3, None, None]]


def test_a_program_that_kills_its_process_fails_alone(monkeypatch, tmp_path):
    # stands for a crash of the interpreter: no allowed program is known to bring one about
    line = "    if len(program) > LONGEST_PROGRAM:\n"
    source = Path(expressions.CHILD).read_text()
    assert line in source
    child = tmp_path / "child.py"
    child.write_text(
        source.replace(line, "    if program == 'die':\n        signal.raise_signal(signal.SIGKILL)\n" + line)
    )
    monkeypatch.setattr(expressions, "CHILD", child)
    assert among_sound_ones("die") == [None, None]
    assert run_expressions(["die", "die", SOUND, "die"], [CASES] * 4) == [[None] * 2, [None] * 2, EXPECTED, [None] * 2]


def test_an_interpreter_that_does_not_start_is_an_error_and_no_score(monkeypatch, tmp_path):
    monkeypatch.setattr(expressions, "CHILD", tmp_path / "absent.py")
    with pytest.raises(Failed, match="did not start"):
        run_expressions([SOUND], [CASES])


def test_nothing_to_run_starts_nothing():
    assert run_expressions([], []) == []
    assert run_expressions([SOUND], [[]]) == [[]]


def confined(code, before=""):
    """What becomes of a piece of Python inside a confined process."""
    lines = [
        "import os, resource, socket, sys",
        f"sys.path.insert(0, {str(expressions.CHILD.parent)!r})",
        "import expressions_child",
    ]
    script = "\n".join([*lines, before, "expressions_child.confine(2**29, 5)", code])
    command = [sys.executable, "-I", "-S", "-c", script]
    return subprocess.run(command, env={}, capture_output=True, text=True, timeout=60, check=False)


def test_the_process_cannot_open_files():
    done = confined("try:\n    open('/etc/passwd')\nexcept OSError as error:\n    print(error.errno == 24)")
    assert done.stdout.strip() == "True", done.stderr


def test_the_process_has_a_bound_on_memory():
    done = confined("try:\n    bytearray(2**30)\nexcept MemoryError:\n    print('refused')")
    assert done.stdout.strip() == "refused", done.stderr


def test_the_process_has_no_network_where_namespaces_are_allowed():
    probe = [sys.executable, "-c", "import ctypes; print(ctypes.CDLL(None).unshare(0x50000000))"]
    if subprocess.run(probe, capture_output=True, text=True, timeout=60, check=True).stdout.strip() != "0":
        pytest.skip("the kernel lets this user make no namespaces")
    with socket.create_server(("127.0.0.1", 0)) as server:
        # the limit on open files is lifted, so that it is the namespace that refuses
        before = "resource.setrlimit = lambda *_: None"
        done = confined(f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)", before)
    assert "Network is unreachable" in done.stderr
