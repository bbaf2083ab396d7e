"""The committed pages of results are those of the committed rows and notes, byte for byte."""

import re
from pathlib import Path

import pytest

from flows.bench import fault_page
from tasks.bench.engine import page as engine
from tasks.bench.hostile import page as hostile
from tasks.bench.repair import page as repair
from tasks.bench.searches import amortisation, headroom, page

pytestmark = pytest.mark.lab

RESULTS = Path(__file__).parents[3] / "docs" / "results"
WRITTEN = {"design.md", "paper.md"}
"""By people, as notes of what was tried."""


@pytest.fixture(scope="module")
def texts():
    """Every page by the name of its file, and nothing drawn."""
    found = page.texts(RESULTS, page.study_pages(RESULTS)) | engine.texts(engine.sections(RESULTS))
    for one in (headroom, amortisation, fault_page, hostile, repair):
        found |= one.texts(RESULTS)
    return found


def test_every_page_is_what_its_rows_say(texts):
    assert set(texts) == {path.name for path in RESULTS.glob("*.md")} - WRITTEN
    for name, text in texts.items():
        assert (RESULTS / name).read_text(encoding="utf-8") == text, f"{name}: not that of its rows; render it again"


def test_links_and_figures_of_the_pages_are_there(texts):
    figures = set()
    for name, text in texts.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            found = RESULTS / path
            assert found.exists(), f"{name}: {target}"
            figures |= {path} if path.endswith(".png") else set()
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in {one.lower().replace(" ", "-").replace(",", "") for one in headings}, target
    assert figures == {path.name for path in RESULTS.glob("*.png")}
