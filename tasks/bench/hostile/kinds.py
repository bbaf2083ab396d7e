"""What is done with each kind of file, as a command does it, and whether what came of it can be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from models.agent.agent import load_agent
from models.errors import BadInput
from models.files import read_text
from models.learned.texts import read_texts
from models.merge.recipe import Recipe, dump_recipes, parse_recipes, read_recipes
from models.merge.write import merge_to_disk
from models.sources.heads import read_head
from models.sources.lora import open_model
from tasks.bench.hostile.made import PROFILE, RECIPE, TASKS
from tasks.bench.hostile.mutations import SENTINEL
from tasks.families.finetune import read_rows
from tasks.front.choice import parse_requirement
from tasks.front.composition import Composition
from tasks.front.front import Front
from tasks.front.table import summary, table_rows
from tasks.objectives.built_task import Wanted, build
from tasks.objectives.task_files import find
from tasks.project.family import load_family
from tasks.project.records import Anchors, read_archive, read_offline
from tasks.project.references import model_finder
from tasks.project.workspace import Workspace, open_workspace
from tasks.scoring.journal import Journal
from tasks.storage.folders import parse_manifest

OUT = "out"


class Unusable(Exception):
    """hm3 reported success, and what it made or read is of no use."""


@dataclass(frozen=True)
class Kind:
    """Files of strangers, and what a user does with them."""

    name: str
    files: tuple[str, ...]
    """Patterns of the files that are changed, in the project."""
    act: Callable[[Path], None]
    """Raises BadInput or Failed where it refuses, ``Unusable`` for a wrong success; anything else is a traceback."""


def merge(root: Path, recipes: list[Recipe]) -> None:
    """Merge as `hm3 merge` does, and load the result as its user would."""
    merge_to_disk(recipes, root / OUT, model_finder(root / ".hm3", root))
    check_model(root / OUT)


def check_model(out: Path) -> None:
    """Load a checkpoint with transformers, run it, and look that nothing of the user's came with it."""
    import transformers

    try:
        family = json.loads((out / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        model = getattr(transformers, family).from_pretrained(out, local_files_only=True)
        transformers.AutoConfig.from_pretrained(out, local_files_only=True)
        if (out / "generation_config.json").is_file():
            transformers.GenerationConfig.from_pretrained(out)
        text = torch.tensor([[1, 2, 3]])
        if any((out / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            read = transformers.AutoTokenizer.from_pretrained(out, local_files_only=True)("ab w1", return_tensors="pt")
            text = read.input_ids if read.input_ids.numel() else text  # it may know none of these words
        with torch.inference_mode():
            model(torch.zeros(1, 3, 8, 8) if family.startswith("ViT") else text)
        wrong = [name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    except Exception as error:
        raise Unusable(f"{type(error).__name__}: {error}") from error
    if wrong:
        raise Unusable(f"{wrong[0]} isn't finite")
    for path in out.rglob("*"):
        if path.is_symlink() or (path.is_file() and SENTINEL.encode() in path.read_bytes()):
            raise Unusable(f"{path.name} carries a file of the user's")


def pair(root: Path, first: str, second: str) -> None:
    """Merge a model of a stranger, whose config and tokenizer are taken, with another one."""
    models = [{"model": one, "parameters": {"weight": 0.5}} for one in (first, second)]
    merge(root, parse_recipes(json.dumps({"merge_method": "linear", "models": models}), "recipe"))


def of_model(root: Path) -> None:
    """A stranger's model among one's own."""
    merge(root, parse_recipes(_recipe("models/a"), "recipe"))


def of_shards(root: Path) -> None:
    """A stranger's model in several files, as the one that lends config and tokenizer."""
    pair(root, "models/b", "models/base")


def of_words(root: Path) -> None:
    """A stranger's model with a vocabulary of its own."""
    pair(root, "models/words", "models/base")


def of_gpt2(root: Path) -> None:
    """A stranger's GPT-2 with the old files of a tokenizer."""
    pair(root, "models/gpt2-a", "models/gpt2")


def of_encoder(root: Path) -> None:
    """A stranger's encoder of images."""
    pair(root, "models/vit-a", "models/vit")


def of_adapter(root: Path) -> None:
    """A stranger's adapter on one's own base."""
    merge(root, parse_recipes(_recipe("models/base+models/adapter"), "recipe"))


def of_ends(root: Path) -> None:
    """A stranger's adapter on the ends of a tied base."""
    merge(root, parse_recipes(_recipe("models/base+models/ends"), "recipe"))


def of_gguf(root: Path) -> None:
    """A stranger's GGUF file."""
    find = model_finder(root / ".hm3", root)
    open_model("models/small.gguf", find)
    check_model(find("models/small.gguf"))


def of_recipe(root: Path) -> None:
    """A stranger's recipes, of which one is changed."""
    for path in sorted(root.glob("*.yaml")):
        if path.name != "params.yaml":
            merge(root, read_recipes(path))
            shutil.rmtree(root / OUT)


def of_profile(root: Path) -> None:
    """Parameters and profile of a stranger's project, and the items of its tasks."""
    workspace = open_workspace(PROFILE, root, root / ".hm3")
    for objective in workspace.profile.objectives:
        label = f"profiles/{PROFILE}.yaml: objectives.{objective.name}"
        for part in objective.parts:
            for file in find(workspace, part.task, label):
                built = build(workspace, Wanted(file, part, "search", 1, label), None)
                if not built.requests:
                    raise Unusable("no requests")


def of_front(root: Path) -> None:
    """A front that was fetched: shown, described and chosen from."""
    front = Front.read(root / "runs" / PROFILE)
    workspace = _workspace(root)
    for split in front.splits:
        table_rows(front, split)
    summary(front)
    composition = Composition.read(workspace, front)
    for member in front.members:
        composition.describe(member)
        [composition.shares(model, layer) for model, layer in member.path]
    parse_requirement(f"{front.tasks[0]}>=0.5", front.tasks) if front.tasks else None
    front.hypervolume(front.members, "selection")
    merge(root, parse_recipes((root / "runs" / PROFILE / front.members[0].recipe).read_text(), "recipe"))


def of_outs(root: Path) -> None:
    """What earlier stages left, or `dvc pull` brought."""
    run = root / "runs" / PROFILE
    Anchors.read(run)
    load_family(_workspace(root))
    for table in (read_archive(run, TASKS), read_offline(run, TASKS)):
        from models.candidate import Candidate

        [Candidate.from_json(str(text)) for text in table["candidate"]]
    load_agent(run / "agent")


def of_journal(root: Path) -> None:
    """Segments that came with a state folder, or from a bucket."""
    journal = Journal(root / ".hm3" / "journal" / PROFILE)
    for key in sorted(journal.keys()):
        for entry in journal.find(key):
            for values in entry.scores.values():
                if not all(isinstance(one, float | int) and one == one and abs(one) < 1e300 for one in values):
                    raise Unusable("a score is none")
                if len(values) > entry.stop - entry.start:
                    raise Unusable("more scores than items")


def of_rows(root: Path) -> None:
    """Rows of data."""
    if not read_rows(root / "data.jsonl", "{prompt}", "{answer}") or not read_texts(root / "data.jsonl"):
        raise Unusable("no rows")


def of_manifest(root: Path) -> None:
    """The list of a folder in a bucket."""
    text = read_text(root / "manifest.json", "manifest.json")
    for name in parse_manifest(text.encode(), "s3://bucket/member").files:
        if not (root / name).resolve().is_relative_to(root.resolve()):
            raise Unusable(f"{name} leads out")


def of_heads(root: Path) -> None:
    """Heads of an encoder of images."""
    head = read_head(root / "heads.safetensors", "digits", 10, "heads")
    if not bool(torch.isfinite(head.logits(torch.zeros(1, head.weight.shape[1]))).all()):
        raise Unusable("logits aren't finite")


KINDS = (
    Kind("model", ("models/a/*",), of_model),
    Kind("shards", ("models/b/*",), of_shards),
    Kind("words", ("models/words/*",), of_words),
    Kind("gpt2", ("models/gpt2-a/*",), of_gpt2),
    Kind("encoder", ("models/vit-a/*",), of_encoder),
    Kind("adapter", ("models/adapter/*",), of_adapter),
    Kind("ends", ("models/ends/*",), of_ends),
    Kind("gguf", ("models/small.gguf",), of_gguf),
    Kind("recipe", ("plain.yaml", "settings.yaml", "tokens.yaml", "layers.yaml"), of_recipe),
    Kind("profile", ("params.yaml", "profiles/*.yaml", f"profiles/{PROFILE}/*.yaml"), of_profile),
    Kind("front", (f"runs/{PROFILE}/front.json", f"runs/{PROFILE}/members/*/recipe.yaml"), of_front),
    Kind("outs", tuple(f"runs/{PROFILE}/{one}" for one in ("anchors.json", "*.parquet", "zoo/*", "agent/*")), of_outs),
    Kind("journal", (f".hm3/journal/{PROFILE}/*.jsonl",), of_journal),
    Kind("rows", ("data.jsonl",), of_rows),
    Kind("manifest", ("manifest.json",), of_manifest),
    Kind("heads", ("heads.safetensors",), of_heads),
)


def _recipe(model: str) -> str:
    first, second = RECIPE["models"]
    return dump_recipes([Recipe.model_validate({**RECIPE, "models": [{**first, "model": model}, second]})])


def _workspace(root: Path) -> Workspace:
    try:
        return open_workspace(PROFILE, root, root / ".hm3")
    except BadInput as error:
        raise AssertionError(error) from error
