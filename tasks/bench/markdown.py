"""Pages of results: Markdown from templates, of our own words and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """The text of a template in ``tasks/templates``."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tasks"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (it is Markdown, of our own words and numbers)
    )
    return environment.get_template(template).render(**values)


def notes(results: Path, name: str) -> str:
    """What people have to say about a page, from ``notes/NAME.md`` in the folder of results, if anything."""
    path = results / "notes" / f"{name}.md"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
