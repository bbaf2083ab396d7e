"""A place in an S3 bucket, a client for it, and what went wrong in a line that says what to do about it.

Endpoint, region and credentials come from AWS's own environment (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``,
``AWS_PROFILE``, …).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)

from models.errors import BadInput, Failed, one_line

SCHEME = "s3://"
ATTEMPTS = 6
"""Tries of a request: about a quarter of a minute of waiting between them in all."""
CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
DENIED = ("AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden")
UNKNOWN = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "InvalidClientTokenId")


@dataclass(frozen=True)
class Place:
    """A folder in a bucket."""

    bucket: str
    prefix: str
    """Without slashes around it; empty for the bucket itself."""

    def key(self, name: str) -> str:
        """Key of a file in it."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")


def is_remote(target: str) -> bool:
    """Whether a target is in a bucket and not on this machine."""
    return target.startswith(SCHEME)


def parse_place(url: str) -> Place:
    """The place of ``s3://bucket/prefix``; raises BadInput if it names no bucket."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
        raise BadInput(f"{url}: no folder in a bucket; write it as s3://bucket/prefix")
    return Place(parts.netloc, parts.path.strip("/"))


def connect(
    attempts: int = ATTEMPTS, session: Mapping[str, Any] | None = None, endpoint_url: str | None = None, **options: Any
) -> Any:
    """An S3 client.

    Args:
        attempts: tries of a request that meets a server error, a limit, or a broken connection.
        session: arguments of ``boto3.Session`` where they differ from AWS's environment.
        endpoint_url: as ``session``.
        options: as ``session``, for the client.

    Raises:
        BadInput: AWS's own files or variables contradict each other.
    """
    config = Config(retries={"mode": "standard", "total_max_attempts": attempts}, connect_timeout=10)
    try:
        return boto3.Session(**(session or {})).client("s3", config=config, endpoint_url=endpoint_url, **options)
    except (BotoCoreError, ValueError) as error:
        raise BadInput(f"S3: {error}; mend the AWS_… variables or ~/.aws/config") from error


@contextmanager
def speaking(place: Place, client: Any) -> Iterator[None]:
    """Errors of S3 in the block become BadInput or Failed, with what to do about them."""
    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise explain(str(place), client.meta.endpoint_url, error) from error


def probe(place: Place, client: Any) -> None:
    """Write a small object, read it, and delete it.

    Raises:
        BadInput: there are no credentials, no such bucket, or no right to do one of the three.
        Failed: the server does not answer, or gives back something else.
    """
    content = uuid4().hex.encode()
    key = place.key(f".hm3-probe-{content.decode()}")
    with speaking(place, client):
        client.put_object(Bucket=place.bucket, Key=key, Body=content)
        try:
            read = client.get_object(Bucket=place.bucket, Key=key)["Body"].read()
        finally:
            client.delete_object(Bucket=place.bucket, Key=key)
    if read != content:
        raise Failed(f"{place}: what was written came back as something else; do not use this server")


def listing(client: Any, place: Place) -> dict[str, int]:
    """Files below a place and their bytes."""
    start = place.key("")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=start)
    return {one["Key"].removeprefix(start): one["Size"] for page in pages for one in page.get("Contents", [])}


def explain(place: str, endpoint: str, error: Exception) -> BadInput | Failed:
    """What boto3 raised as one of our errors."""
    cause = error.__context__ if isinstance(error.__context__, ClientError | BotoCoreError) else error
    if isinstance(cause, NoCredentialsError | PartialCredentialsError):
        return BadInput(f"{place}: no credentials for {endpoint}; {CREDENTIALS}")
    if isinstance(cause, TokenRetrievalError | UnauthorizedSSOTokenError):
        return BadInput(f"{place}: {cause}; log in again")
    if isinstance(cause, ParamValidationError):
        return BadInput(f"{place}: no name of a bucket and folder: {one_line(cause, 300)}")
    if isinstance(cause, ClientError):
        code = str(cause.response.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket":
            return BadInput(f"{place}: no such bucket at {endpoint}; make it, or mend its name or AWS_ENDPOINT_URL")
        if code in UNKNOWN:
            return BadInput(f"{place}: {endpoint} does not take the credentials ({code}); {CREDENTIALS}")
        if code in DENIED:
            action = cause.operation_name
            return BadInput(f"{place}: {endpoint} denies {action} with these credentials; grant it, or use others")
        return Failed(f"{place}: {endpoint}: {one_line(cause, 300)}")
    said = f"does not answer as it should: {one_line(cause, 300)}"
    return Failed(f"{place}: {endpoint} {said}; check AWS_ENDPOINT_URL, try again")
