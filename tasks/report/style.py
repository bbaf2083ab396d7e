"""The look of all figures.

Colours are Okabe and Ito's (2008), which people with any colour vision can tell apart. Text and lines use ``INK``,
``FAINT``, ``GRID`` and ``PAPER`` alone, so that a page can swap them for those of its own theme.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, FAINT, GRID, PAPER = "#20262d", "#8b949e", "#dfe3e8", "#fffffe"
BASE = "#999999"
EXPERTS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442")
KINDS = (*EXPERTS, BASE)
"""Of kinds of proposals, of which there are more."""
WIDTH = 10.0
"""Width of a figure in inches; a page scales it."""

STYLE = {
    "font.size": 9.0,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "hm3",
}


@contextmanager
def canvas(rows: int, columns: int, height: float) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure of ``rows × columns`` axes, ``height`` inches high; touches no global state of pyplot."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(rows, columns, squeeze=False)


def save_png(figure: Figure, path: Path) -> None:
    """On white, for programs that show images."""
    with mpl.rc_context(STYLE):
        figure.savefig(path, format="png", dpi=130, facecolor="white")


def inline_svg(figure: Figure, label: str) -> Markup:
    """An ``<svg>`` for a page that sets ``--ink``, ``--faint``, ``--grid``, ``--paper`` and ``--sans`` in its CSS."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)
    svg = svg.replace("'DejaVu Sans'", "var(--sans)").replace("DejaVu Sans", "var(--sans)")
    for colour, variable in ((INK, "ink"), (FAINT, "faint"), (GRID, "grid"), (PAPER, "paper")):
        svg = svg.replace(colour, f"var(--{variable})")
    return Markup(svg)  # noqa: S704 (made here, its texts escaped by matplotlib)


def on(colour: Any) -> str:
    """Black or white, whichever reads better on a colour."""
    red, green, blue = mpl.colors.to_rgb(colour)
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"


def expert_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour an expert, and grey for the base."""
    return {"base": BASE, **{name: EXPERTS[index % len(EXPERTS)] for index, name in enumerate(names)}}
