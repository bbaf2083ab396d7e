"""The two ways in which hm3 stops: the caller can mend the input, or the work itself failed."""

from __future__ import annotations

import re

from models.text import line

SECRET_VALUE = re.compile(
    r"([?&;](?:[\w.-]{0,40}[-_.])?(?:access_?key|api_?key|auth|credential|key|passw(?:or)?d|pwd|secret|sig|signature|token)=)"
    r"[^&;#\s]+",
    re.IGNORECASE,
)
"""A parameter of an address that lets in whoever has it, as in links that a bucket signed."""

NAME = re.compile(r"[^,;/?#]*")
"""What stands between two ``://`` and is no address with the next one's scheme: a user, whose password begins so."""


class OneLine(Exception):
    """An error whose message is for people: no password of an address is in it."""

    def __init__(self, message: object = ""):
        super().__init__(without_secrets(str(message)))


class BadInput(OneLine, ValueError):
    """Something that the user gave can't be used.

    The message is one line that names the file, the field and the remedy. The command line prints it and exits with 2.
    """


class Failed(OneLine, RuntimeError):
    """The work could not be finished though the input was sound. One line; the command line exits with 1."""


class Unavailable(Failed):
    """It failed because a disk, a network or a server did not answer: another try may help."""


class Lost(OneLine, RuntimeError):
    """Work over which process after process was lost."""


def one_line(text: object, most: int | None = None) -> str:
    """What an error says, or any text, as one line of at most so many characters.

    No password of an address is in it, and no character that acts on a terminal.
    """
    return line(without_secrets(str(text)))[:most]


def without_secrets(text: str) -> str:
    """Text with every address in it as one may show it: no user, no password, no parameter that lets one in.

    Where a password holds what an address may not hold, more is left out rather than less.
    """
    if "://" not in text:
        return text
    return re.sub(r"\S+", lambda word: _shown(word[0]) if "://" in word[0] else word[0], text)


def _shown(word: str) -> str:
    """A word of a text that holds addresses."""
    scheme, *rest = word.split("://")
    addresses: list[str] = []
    for part in rest:
        if addresses and NAME.fullmatch(addresses[-1]):
            addresses[-1] += f"://{part}"
        else:
            addresses.append(part)
    return SECRET_VALUE.sub(r"\1***", "://".join([scheme, *map(_without_user, addresses)]))


def _without_user(address: str) -> str:
    """What follows ``://``. An ``@`` in a path ends no login, unless a colon comes before the path."""
    end, path, colon = address.rfind("@"), re.search(r"[/?#]", address), address.find(":")
    if path is None or end < path.start() or 0 <= colon < path.start():
        return address[end + 1 :]
    return address[address.rfind("@", 0, path.start()) + 1 :]
