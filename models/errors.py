"""The two ways in which hm3 stops: the caller can mend the input, or the work itself failed."""

from models.text import line


class BadInput(ValueError):
    """Something that the user gave can't be used.

    The message is one line that names the file, the field and the remedy. The command line prints it and exits with 2.
    """


class Failed(RuntimeError):
    """The work could not be finished though the input was sound. One line; the command line exits with 1."""


class Unavailable(Failed):
    """It failed because a disk, a network or a server did not answer: another try may help."""


class Lost(RuntimeError):
    """Work over which process after process was lost."""


def one_line(text: object, most: int | None = None) -> str:
    """What an error says, or any text, as one line of at most so many characters, none of which acts on a terminal."""
    return line(str(text))[:most]
