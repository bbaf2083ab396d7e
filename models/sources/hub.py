"""Models on the Hugging Face hub: ``hub:ORG/NAME@REVISION``, fetched once into the hub's own cache.

Only safetensors, configuration and tokenizer are fetched. What lies in the cache is used without asking the hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import BadInput
from models.files import find_inside, read_object
from models.sources.checkpoint import INDEX, WEIGHTS
from models.sources.companions import FILES as COMPANIONS
from models.sources.fields import Index

PREFIX = "hub:"
REFERENCE = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
SECONDS = 5.0
"""Longest wait for an answer of the hub."""

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
FILES = ["config.json", ADAPTER[0], "*.safetensors", INDEX, *COMPANIONS]
NOT = ["*/*", "consolidated*"]
"""Copies in other formats that some repositories hold beside."""

PICKLES = (".bin", ".pt", ".pth")


class Unreachable(BadInput):
    """The hub does not answer, and the model is not in its cache."""

    def __init__(self, model: object, reason: str) -> None:
        super().__init__(f"{model}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class HubModel:
    """A model of the hub, named and not opened."""

    repo: str
    revision: str

    @classmethod
    def parse(cls, reference: str) -> HubModel:
        """Read ``hub:ORG/NAME@REVISION``; without a revision it is ``main``.

        Raises:
            BadInput: it is spelled otherwise.
        """
        found = REFERENCE.fullmatch(reference)
        if not found:
            raise BadInput(f"{reference}: no model of the hub; write hub:ORG/NAME or hub:ORG/NAME@REVISION")
        return cls(found["repo"], found["revision"] or "main")

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}@{self.revision}"

    def cached(self) -> Path | None:
        """Its folder in the hub's cache, if all of it is there."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(
                snapshot_download(self.repo, revision=self.revision, local_files_only=True, allow_patterns=FILES)
            )
        except (LocalEntryNotFoundError, OSError, ValueError):
            return None
        return folder if _whole(folder) else None

    def held(self) -> int:
        """Bytes of it that lie in the hub's cache, downloads that go on included."""
        from huggingface_hub import constants

        blobs = Path(constants.HF_HUB_CACHE) / f"models--{self.repo.replace('/', '--')}" / "blobs"
        sizes = []
        for path in blobs.glob("*"):
            with suppress(FileNotFoundError):  # a download that has just ended is renamed
                sizes.append(path.stat().st_size)
        return sum(sizes)

    def bytes(self) -> int:
        """Bytes that fetching it takes.

        Raises:
            BadInput: there is no such model or revision, it is gated, or it holds pickled weights alone.
            Unreachable: the hub does not answer.
        """
        return sum(one.size or 0 for one in self._ask().siblings if one.rfilename.endswith(".safetensors"))

    def fetch(self) -> Path:
        """Its folder in the hub's cache, fetched if it isn't there.

        Raises:
            BadInput: see :meth:`bytes`.
        """
        folder = self.cached()
        if folder is not None:
            return folder
        self._ask()
        from huggingface_hub import snapshot_download

        with self._errors():
            return Path(
                snapshot_download(
                    self.repo, revision=self.revision, allow_patterns=FILES, ignore_patterns=NOT, etag_timeout=SECONDS
                )
            )

    def _ask(self) -> Any:
        """What the hub says of it."""
        from huggingface_hub import HfApi

        with self._errors():
            found = HfApi().model_info(self.repo, revision=self.revision, files_metadata=True, timeout=SECONDS)
        names = [one.rfilename for one in found.siblings or [] if "/" not in one.rfilename]
        if not any(name.endswith(".safetensors") for name in names):
            pickled = [name for name in names if name.endswith(PICKLES)]
            if not pickled:
                raise BadInput(f"{self}: holds no safetensors; name another revision or model")
            folder = f"models/{self.repo.split('/')[1]}"
            command = (
                'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
                f"[K.from_pretrained('{self.repo}', revision='{self.revision}', dtype='auto')"
                f".save_pretrained('{folder}') for K in (M, T)]\""
            )
            raise BadInput(
                f"{self}: {pickled[0]}: a pickled checkpoint can run code and is refused; if you trust it, run: "
                f"{command}, and name the folder {folder}"
            )
        return found

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of the hub as ours."""
        from huggingface_hub import constants, errors
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        place = constants.ENDPOINT
        transport: type[Exception] = vars(errors)["HTTPError"]  # of the client that it uses, httpx or its successor
        try:
            yield
        except GatedRepoError:
            raise BadInput(
                f"{self}: is gated; accept its licence at {place}/{self.repo}, then run `hf auth login`"
            ) from None
        except RevisionNotFoundError:
            raise BadInput(f"{self}: no such revision; look at {place}/{self.repo}/commits/main") from None
        except RepositoryNotFoundError:
            raise BadInput(f"{self}: no such model, or it is private; mend its name, or run `hf auth login`") from None
        except OfflineModeIsEnabled:
            reason = "not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch; unset it, or name a folder"
            raise Unreachable(self, reason) from None
        except (HfHubHTTPError, transport, OSError) as error:
            reason = f"{place} can't be reached ({type(error).__name__}); connect to it, or name a folder"
            raise Unreachable(self, reason) from None


def _whole(folder: Path) -> bool:
    """Whether a snapshot holds its config and all files of weights; it may be an adapter's."""
    try:
        if all(find_inside(folder, file) for file in ADAPTER):
            return True
        if not find_inside(folder, "config.json"):
            return False
        if not find_inside(folder, WEIGHTS) and find_inside(folder, INDEX):
            return all(find_inside(folder, file) for file in read_object(folder, INDEX, Index)["weight_map"].values())
        return find_inside(folder, WEIGHTS) is not None
    except BadInput:
        return False
