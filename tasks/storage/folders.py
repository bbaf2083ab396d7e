"""Folders in an S3 bucket: there as a whole or not at all, and checked byte by byte.

The files of a folder go up first, each with its SHA-256, by which the server refuses what arrives damaged, and
``manifest.json``, which names them all, goes last. A folder without one does not count: so one whose upload was cut off
is never taken for a whole one, and the next upload goes on from what is there.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from pydantic import Field

from models.errors import BadInput, Failed
from models.files import is_plain, parse_object, validate
from models.sources.checkpoint import require_new
from tasks.project.progress import Progress
from tasks.schema.strict import Strict
from tasks.storage.s3 import Place, connect, is_remote, listing, parse_place, probe, speaking

MANIFEST = "manifest.json"
NOTE = "sha256"
"""Name of an object's metadata."""
PART_BYTES = 32 * 2**20
"""Files of this size and more go up in parts of it: below 10,000 parts up to 312 GiB."""
TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4)


class Entry(Strict):
    """A file of a manifest."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(Strict):
    """``manifest.json``: the files of a folder by their paths in it."""

    files: dict[str, Entry]


@contextmanager
def destination(out: str, progress: Progress, scratch: Path | None = None) -> Iterator[Path]:
    """A folder to write, which still has to be made; one in a bucket is uploaded when the block ends well.

    Args:
        out: a folder of this machine, or ``s3://bucket/prefix``.
        progress: shows the bytes.
        scratch: where folders that are to be uploaded are put together; by default with temporary files.

    Raises:
        BadInput: ``out`` is there already, or the bucket can't be written to: known before the block begins.
        Failed: the upload failed.
    """
    if not is_remote(out):
        yield Path(out)
        return
    place = parse_place(out)
    client = connect()
    with speaking(place, client):
        require_free(place, listing(client, place))
    probe(place, client)
    with temporary(scratch) as folder:
        local = folder / (PurePosixPath(place.prefix).name or place.bucket)
        yield local
        upload(local, place, progress, client)


@contextmanager
def fetched(target: str, progress: Progress, scratch: Path | None = None) -> Iterator[str]:
    """The target itself, or for one in a bucket a copy of it for the time of the block.

    Raises:
        BadInput: the bucket has no whole folder of that name, or can't be read.
        Failed: the download failed, or a file is not as the manifest says.
    """
    if not is_remote(target):
        yield target
        return
    with temporary(scratch) as folder:
        download(parse_place(target), folder / "target", progress)
        yield str(folder / "target")


@contextmanager
def temporary(scratch: Path | None) -> Iterator[Path]:
    """A folder for the time of the block."""
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="s3-") as folder:
        yield Path(folder)


def upload(folder: Path, place: Place, progress: Progress, client: Any = None) -> None:
    """Put a folder into a bucket. Files that an interrupted upload left there are kept where they are the same.

    Raises:
        BadInput: a whole folder or foreign files are there, or the bucket can't be written to.
        Failed: the server fails.
    """
    client = client or connect()
    paths = {one.relative_to(folder).as_posix(): one for one in sorted(folder.rglob("*")) if one.is_file()}
    size = sum(one.stat().st_size for one in paths.values())
    with speaking(place, client):
        there = listing(client, place)
        require_free(place, there, set(paths))
        with progress.bar("checksums", size, "bytes") as bar:
            entries = {name: entry_of(path, bar.advance) for name, path in paths.items()}
        with progress.bar(f"uploading to {place}", size, "bytes") as bar:
            for name, path in paths.items():
                key, entry = place.key(name), entries[name]
                if there.get(name) == entry.bytes and noted(client, place.bucket, key) == entry.sha256:
                    bar.advance(entry.bytes)
                    continue
                checked = {"ChecksumAlgorithm": "SHA256", "Metadata": {NOTE: entry.sha256}}
                client.upload_file(str(path), place.bucket, key, checked, one_at_a_time(bar.advance), TRANSFER)
        content = Manifest(files=entries).model_dump_json(indent=1).encode()
        kinds = {"ChecksumAlgorithm": "SHA256", "ContentType": "application/json"}
        client.put_object(Bucket=place.bucket, Key=place.key(MANIFEST), Body=content, **kinds)


def download(place: Place, folder: Path, progress: Progress, client: Any = None) -> None:
    """Get a folder from a bucket; it appears under its name when every file is there and is what it was.

    Raises:
        BadInput: there is no whole folder, ``folder`` exists, or the bucket can't be read.
        Failed: the server fails, or a file is not as the manifest says.
    """
    require_new(folder)
    client = client or connect()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with speaking(place, client):
            files = read_manifest(client, place).files
            with progress.bar(f"downloading {place}", sum(one.bytes for one in files.values()), "bytes") as bar:
                for name, entry in files.items():
                    path = partial / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    step = one_at_a_time(bar.advance)
                    try:
                        client.download_file(place.bucket, place.key(name), str(path), Callback=step, Config=TRANSFER)
                    except ClientError as error:
                        if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                            raise
                        raise Failed(f"{place}/{name}: in {MANIFEST}, but not there; export the folder again") from None
                    if entry_of(path).sha256 != entry.sha256:
                        raise Failed(f"{place}/{name}: not what {MANIFEST} says (sha256); export the folder again")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_manifest(client: Any, place: Place) -> Manifest:
    """The manifest of a folder; raises BadInput if there is none, or if it would lead out of the folder."""
    try:
        content = client.get_object(Bucket=place.bucket, Key=place.key(MANIFEST))["Body"].read()
    except client.exceptions.NoSuchKey:
        raise BadInput(f"{place}: no {MANIFEST}, so no whole folder that `hm3 export` wrote; export it again") from None
    return parse_manifest(content, f"{place}/{MANIFEST}")


def parse_manifest(content: bytes, label: str) -> Manifest:
    """A manifest from its JSON; raises BadInput if it is none, or names what lies outside of the folder."""
    remedy = "no manifest that `hm3 export` wrote"
    found = parse_object(content, label)
    if found.keys() != {"files"}:
        raise BadInput(f"{label}: has other fields than `files`; {remedy}")
    for name in found["files"] if isinstance(found.get("files"), dict) else ():
        if not is_plain(name) or name == MANIFEST:
            raise BadInput(f"{label}: {name!r} leads out of the folder; {remedy}")
    return validate(Manifest, found, label, remedy=remedy)


def require_free(place: Place, there: Mapping[str, int], ours: set[str] | None = None) -> None:
    """Raises BadInput if something is there that an upload would mix with; ``ours``: names that may be there."""
    if MANIFEST in there:
        raise BadInput(f"{place}: exists; give another prefix, or delete it first")
    if foreign := sorted(set(there) - ours) if ours is not None else []:
        raise BadInput(f"{place}: holds {foreign[0]}, which is no part of this; give another prefix, or delete it")


def entry_of(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> Entry:
    """What a manifest says of a file; ``on_bytes`` is told its size when it is read."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        on_bytes(file.tell())
        return Entry(bytes=file.tell(), sha256=found)


def noted(client: Any, bucket: str, key: str) -> str | None:
    """The sha256 with which an object was sent."""
    found: str | None = client.head_object(Bucket=bucket, Key=key)["Metadata"].get(NOTE)
    return found


def one_at_a_time(step: Callable[[int], None]) -> Callable[[int], None]:
    """boto3 reports from several threads at once."""
    lock = threading.Lock()

    def call(amount: int) -> None:
        with lock:
            step(amount)

    return call
