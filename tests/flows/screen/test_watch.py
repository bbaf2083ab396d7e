"""What is shown of a stage's events."""

import io
import json
from functools import partial

import pytest
from rich.console import Console

from flows.screen.watch import Screen, Tail, duration, measure, percent, shown
from tasks.project.progress import Progress


def bar(completed, total=10, note="", description="scoring"):
    return {
        "event": "bar",
        "description": description,
        "completed": completed,
        "total": total,
        "unit": "paths",
        "note": note,
    }


@pytest.fixture
def screen():
    with Screen(Console(file=io.StringIO(), width=120)) as one:
        yield one


def lines(screen):
    return screen.console.file.getvalue().splitlines()


def test_a_line_that_is_still_being_written_is_left_for_later(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    whole, half = json.dumps(bar(1)), json.dumps(bar(2))
    path.write_text(whole + "\n" + half[:9])
    assert tail.read() == [bar(1)]
    path.write_text(whole + "\n" + half + "\n")
    assert tail.read() == [bar(2)]
    assert tail.read() == []


def test_without_a_terminal_a_bar_is_a_line_at_its_start_and_its_end(screen):
    for completed in (0, 1, 2, 9, 10, 10):
        screen.event("search@tiny", bar(completed))
    assert lines(screen) == ["  search@tiny: scoring 0/10 paths", "  search@tiny: scoring 10/10 paths"]


def test_messages_stay_and_go_to_the_log_too(screen):
    said = []
    screen.log = said.append
    screen.event("zoo@tiny", {"event": "message", "text": "made [3] experts"})
    assert lines(screen) == said == ["  zoo@tiny: made [3] experts"]


def test_work_in_this_process_reports_to_the_screen(screen):
    with Progress(tell=partial(screen.event, "publish")).bar("registering", 2, "members") as one:
        one.advance(2)
    assert lines(screen)[-1] == "  publish: registering 2/2 members"


def test_a_command_shows_bars_on_a_terminal_and_its_messages_anywhere(tmp_path):
    for terminal in (False, True):
        console = Console(file=io.StringIO(), width=120, force_terminal=terminal)
        with shown(console, tmp_path / "events.jsonl") as progress, progress.bar("sending", 3000, "bytes") as one:
            one.advance(2000)
            progress.message("[half] done")
        text = console.file.getvalue()
        assert "[half] done" in text
        assert ("sending" in text and "2.0 kB/3.0 kB" in text) == terminal
        assert len((tmp_path / "events.jsonl").read_text().splitlines()) >= 3


def test_a_terminal_shows_bars_and_takes_them_away_again():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with Screen(console) as screen:
        screen.of_all(1, 6, "stages")
        screen.spin("asking")
        screen.event("zoo", bar(4))
        assert [task.description for task in screen._bars.tasks] == ["pipeline", "asking", "zoo: scoring"]
        screen.clear()
        assert [task.description for task in screen._bars.tasks] == ["pipeline"]


def test_bars_in_words():
    assert measure(bar(3, note="hv 0.41")) == "3/10 paths, hv 0.41"
    assert measure(bar(3, total=None)) == "3 paths"
    assert percent(bar(3)) == 30
    assert percent(bar(12)) == 100
    assert percent(bar(3, total=None)) is None
    assert percent({"event": "message", "text": ""}) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.4, "8 s"), (59.6, "1:00 min"), (125, "2:05 min"), (3723, "1:02:03 h")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
