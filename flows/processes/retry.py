"""What is worth another try: disks and networks that did not answer. Bad input and failed work are not."""

from __future__ import annotations

import errno
import os

from models.errors import BadInput, Failed, Unavailable

TRY_AGAIN = os.EX_TEMPFAIL
"""Exit status of a stage that stopped for such a reason."""

WAITS = (10.0, 60.0)
"""Seconds before the second and the third try."""

LASTING = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""Answers of a file system that will be the same next time."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Disk full, quota reached, file system read-only."""


def is_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that nothing more can be written. Libraries have errors of their own."""
    link: BaseException | None = error
    while link is not None:
        if (isinstance(link, OSError) and link.errno in FULL) or "No space left on device" in str(link):
            return True
        link = link.__cause__ or link.__context__
    return False


def may_pass(error: BaseException) -> bool:
    """Whether an error, or what caused it, is one of input and output that may be gone at the next try."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, Unavailable):
            return True
        if isinstance(link, BadInput | Failed):
            return False
        if isinstance(link, OSError) and not isinstance(link, LASTING) and link.errno not in FULL:
            return True
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return False
