"""The page on merge methods says what is registered."""

import runpy
from pathlib import Path

from models.merge.methods import METHODS

SCRIPT = runpy.run_path(str(Path(__file__).parents[3] / "docs" / "merge_methods.py"))
PAGE, render = SCRIPT["PAGE"], SCRIPT["render"]


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == render(), "run `python docs/merge_methods.py`"


def test_every_method_has_a_formula_a_reference_and_all_its_parameters():
    sections = {part.split("\n")[0]: part for part in render().split("\n## ")[1:]}
    assert list(sections) == list(METHODS)
    for name, method in METHODS.items():
        assert "Θ" in sections[name].split("\n")[2] or "W₀" in sections[name].split("\n")[2]
        assert method.reference in sections[name]
        assert all(f"| `{one.name}`" in sections[name] for one in method.parameters)
