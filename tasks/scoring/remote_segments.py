"""Segments of a journal in a bucket: sent as they come, so that a machine that is taken away takes no score with it."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from models.errors import BadInput, Failed
from tasks.storage.s3 import connect, listing, parse_place, speaking

SEGMENT = re.compile(r"\d{8}-[0-9a-f]{8}\.jsonl", re.ASCII)
"""Name of a segment; whatever else lies in a folder is none."""

PAUSE_SECONDS = 60.0
"""How long a bucket that did not take a segment is left alone."""

_log = logging.getLogger(__name__)


class RemoteSegments:
    """A folder of immutable files in a bucket."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is asked yet.

        Args:
            url: ``s3://bucket/prefix``.
            clock: seconds.
        """
        self.place = parse_place(url)
        self._client = connect()
        self._clock = clock
        self._there: set[str] = set()
        self._waiting: dict[str, Path] = {}
        self._again = -float("inf")

    def fetch(self, folder: Path) -> None:
        """Bring the files that the folder lacks; each is whole there or absent.

        Raises:
            BadInput: the bucket can't be used, or a file there is damaged.
            Failed: the bucket does not answer.
        """
        with speaking(self.place, self._client):
            self._there = {name for name in listing(self._client, self.place) if SEGMENT.fullmatch(name)}
            for name in sorted(self._there):
                if not (folder / name).exists():
                    found = self._client.get_object(Bucket=self.place.bucket, Key=self.place.key(name))
                    content: bytes = found["Body"].read()
                    if hashlib.sha256(content).hexdigest() != found["Metadata"].get("sha256"):
                        raise BadInput(
                            f"{self.place}/{name}: not as it was written; remove it, and its scores are computed again"
                        )
                    beside = folder / f".{os.getpid()}.tmp"
                    beside.write_bytes(content)
                    beside.rename(folder / name)

    def send(self, files: Iterable[Path]) -> None:
        """Put files there that aren't yet. A bucket that does not answer gets them with one of the next calls."""
        self._waiting |= {one.name: one for one in files if one.name not in self._there}
        if not self._waiting or self._clock() < self._again:
            return
        try:
            with speaking(self.place, self._client):
                for name, path in list(self._waiting.items()):
                    content = path.read_bytes()
                    self._client.put_object(
                        Bucket=self.place.bucket,
                        Key=self.place.key(name),
                        Body=content,
                        ChecksumAlgorithm="SHA256",  # the server refuses what arrives damaged
                        Metadata={"sha256": hashlib.sha256(content).hexdigest()},
                    )
                    self._there.add(name)
                    del self._waiting[name]
        except (BadInput, Failed) as error:
            self._again = self._clock() + PAUSE_SECONDS
            _log.warning("%s; %d segments of the journal wait, scoring goes on", error, len(self._waiting))

    def set_aside(self, url: str) -> None:
        """Move all files to another folder, for a run that is to reuse none.

        Raises:
            BadInput: the bucket can't be used.
            Failed: the bucket does not answer.
        """
        place = parse_place(url)
        with speaking(self.place, self._client):
            for name in listing(self._client, self.place):
                source = {"Bucket": self.place.bucket, "Key": self.place.key(name)}
                self._client.copy_object(CopySource=source, Bucket=place.bucket, Key=place.key(name))
                self._client.delete_object(**source)
