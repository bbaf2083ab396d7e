"""A member of a front as a folder that ``mlflow.pyfunc`` loads without hm3: code, safetensors, tokenizer."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.front.checkpoint import write_member
from tasks.front.composition import recipe_text
from tasks.front.front import Member
from tasks.project.progress import Progress
from tasks.project.workspace import Workspace
from tasks.registry.versions import MEMBER, RECORD

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

REQUIREMENTS = ("mlflow", "torch", "transformers", "safetensors")
"""What any member needs to be loaded, pinned to what is installed here."""

SUMS = "SHA256SUMS"
"""Checksums of the package's files, as `sha256sum --check` reads them."""


@dataclass(frozen=True)
class Serving:
    """How members of a family answer."""

    code: Path
    """What MLflow loads; it imports nothing of hm3."""
    requirements: tuple[str, ...]
    inputs: Any
    """Schema of what is asked."""
    outputs: Any
    params: tuple[Any, ...]
    """Specifications of the settings."""
    example: Any


def text_serving() -> Serving:
    """Prompts in, text out."""
    from mlflow.types import ColSpec, DataType, ParamSpec, Schema

    text = Schema([ColSpec(DataType.string)])
    settings = (
        ParamSpec("max_new_tokens", DataType.long, 64),
        ParamSpec("stop", DataType.string, [], (-1,)),
        # What chat clients send: without a place here MLflow's server would take it for the input.
        ParamSpec("max_tokens", DataType.long, None),
        ParamSpec("model", DataType.string, None),
        ParamSpec("temperature", DataType.double, 0.0),
        ParamSpec("stream", DataType.boolean, False),
    )
    code = Path(__file__).with_name("served_model.py")
    return Serving(code, (*REQUIREMENTS, "tokenizers"), text, text, settings, (["2 + 3 ="], {"max_new_tokens": 8}))


def image_serving(tasks: Sequence[str]) -> Serving:
    """Images in, a label for each task out."""
    from mlflow.types import ColSpec, DataType, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    image, labels = Schema([ColSpec(AnyType(), "image")]), Schema([ColSpec(AnyType(), task) for task in tasks])
    settings = (ParamSpec("task", DataType.string, None), ParamSpec("scores", DataType.boolean, False))
    code = Path(__file__).with_name("served_images.py")
    example = {"image": [[[0, 128], [255, 64]]]}
    return Serving(code, (*REQUIREMENTS, "pillow"), image, labels, settings, (example, {"scores": False}))


@contextmanager
def packed(
    workspace: Workspace, member: Member, logged: LoggedModel, record: Mapping[str, Any], *, with_weights: bool
) -> Iterator[Path]:
    """The folder, for the time of the block.

    Args:
        workspace: project and profile.
        member: a member of its front, or found beside it.
        logged: the entry in MLflow that the folder is for.
        record: what ``member.json`` is to hold.
        with_weights: build the checkpoint; else the recipe is all there is.

    Raises:
        BadInput: a model of the recipe is missing or damaged.
    """
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ParamSchema

    pictured = [one.name for one in workspace.profile.objectives if one.images]
    serving = image_serving(pictured) if pictured else text_serving()
    described = Model(
        artifact_path=logged.artifact_location,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
        run_id=logged.source_run_id,
    )
    with tempfile.TemporaryDirectory(dir=workspace.state / "mlflow", prefix="member-") as scratch:
        alone, folder = Path(scratch) / member.id, Path(scratch) / "model"
        alone.mkdir()
        (alone / "recipe.yaml").write_text(recipe_text(workspace.run, member), encoding="utf-8")
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(serving.code),
            artifacts={MEMBER: str(alone)},
            mlflow_model=described,
            signature=ModelSignature(serving.inputs, serving.outputs, ParamSchema(list(serving.params))),
            input_example=serving.example,
            pip_requirements=[f"{one}=={version(one).split('+')[0]}" for one in serving.requirements],
        )
        if with_weights:
            # Merged right where it is uploaded from: handed over as an artifact, MLflow would copy it once more.
            checkpoint = folder / "artifacts" / member.id
            shutil.rmtree(checkpoint)
            write_member(workspace, member, checkpoint, Progress())
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        flavour = described.flavors["python_function"]
        flavour["model_code_path"] = serving.code.name  # MLflow notes where on this machine they came from
        flavour["artifacts"][MEMBER]["uri"] = flavour["artifacts"][MEMBER]["path"]
        described.model_size_bytes = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
        described.save(str(folder / "MLmodel"))
        (folder / SUMS).write_text("".join(f"{one}  {name}\n" for name, one in sums(folder).items()), encoding="utf-8")
        yield folder


def sums(folder: Path) -> dict[str, str]:
    """Files below a folder, the list of checksums left out, and their sha256."""
    found = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file() and one.name != SUMS):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def damaged(folder: Path) -> list[str] | None:
    """Files of a package that are missing or differ from its checksums; None where it has no checksums."""
    if not (folder / SUMS).is_file():
        return None
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    there = sums(folder)
    return [name for line in lines for one, _, name in [line.partition("  ")] if there.get(name) != one]
