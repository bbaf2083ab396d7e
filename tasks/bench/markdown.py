"""Tables, and pages of results: Markdown from templates, of our own words and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table
from rich.text import Text

from models.text import line, plain
from tasks.project.records import write_text


@dataclass(frozen=True)
class Sheet:
    """A table with its title and what must be known to read it."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=Text(self.title), title_justify="left", box=None, pad_edge=False)
        for place, name in enumerate(self.columns):
            table.add_column(name, justify="left" if place == 0 else "right")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def render(template: str, **values: Any) -> str:
    """The text of a template in ``tasks/templates``."""

    def cell(value: object) -> str:
        return line(str(value)).replace("|", "\\|")

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tasks"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: plain(value) if isinstance(value, str) else value,
        autoescape=False,  # noqa: S701 (it is Markdown, of our own words and numbers)
    )
    environment.filters["cell"] = cell
    return environment.get_template(template).render(**values)


def notes(results: Path, name: str) -> str:
    """What people have to say about a page, from ``notes/NAME.md`` in the folder of results, if anything."""
    path = results / "notes" / f"{name}.md"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def write_pages(results: Path, texts: dict[str, str]) -> Path:
    """Write pages by the names of their files, and name the first."""
    for name, text in texts.items():
        write_text(results / name, text)
    return results / next(iter(texts))
