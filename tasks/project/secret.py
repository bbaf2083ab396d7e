"""The secret of a state folder: who holds it may talk to the servers that hm3 starts on this machine."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from base64 import urlsafe_b64encode
from pathlib import Path

from models.errors import BadInput, one_line

FILE = "secret"
USER = "hm3"
"""Name that goes with the secret where a client sends a name and a password; servers look at the password alone."""


def secret(state: Path) -> str:
    """The secret, made by whoever needs it first; a file that its owner alone can read.

    Raises:
        BadInput: others can read it, or there is none in it.
    """
    path = state / FILE
    remedy = "`hm3 down`, delete it, and the next `hm3 up` makes another"
    try:
        if not path.exists():
            _make(path)
        if path.stat().st_mode & 0o077:
            raise BadInput(f"{path}: other users may read it; {remedy}, or put HM3_STATE on a disk that keeps modes")
        if said := path.read_text(encoding="ascii").strip():
            return said
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {one_line(error, 100)}; {remedy}") from None
    raise BadInput(f"{path}: empty; {remedy}")


def _make(path: Path) -> None:
    """Whole or not at all, and once: the name is given to a file that is written and closed already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32))
        os.link(beside, path)
    except FileExistsError:
        pass  # another process was faster
    finally:
        Path(beside).unlink()


def derived(of: str, purpose: str) -> str:
    """What stands for a secret in one place; nothing else can be told from it."""
    digest = hmac.digest(of.encode(), purpose.encode(), hashlib.sha256)
    return urlsafe_b64encode(digest[:18]).decode()
