"""Text of strangers as text: names, tokens and messages of others must neither move a cursor nor become markup."""

from __future__ import annotations

import re

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for tab and line feed, what turns the direction of writing, and halves of characters."""

_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {one: f"\\{one}" for one in "\\`*|"})

_LINK = re.compile(r"\](?=[(\[:])")
"""Where a bracket makes a link of the words before it; any other one stays as it is."""


def plain(text: str) -> str:
    """A text without the characters that act on a terminal or hide what is written."""
    return text if text.isprintable() else _UNSEEN.sub("", text)


def line(text: str) -> str:
    """A text as one line, without what :func:`plain` takes away."""
    return " ".join(plain(text).split())


def markdown(text: str) -> str:
    """A text as one line of Markdown that shows just this text, in a table too."""
    return _LINK.sub(r"\\]", line(text).translate(_MARKUP))


def code(text: str) -> str:
    """A text as code in Markdown; as words where it holds markup, for nothing in code can be escaped."""
    shown = line(text)
    return f"`{shown}`" if shown and shown == markdown(text) else markdown(text)
