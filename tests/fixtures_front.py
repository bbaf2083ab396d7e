"""A small project whose pipeline is done: real models, recipes and files, made-up scores."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.agent.actor import Actor
from models.agent.agent import Agent, AgentConfig
from models.agent.surrogate import Surrogate
from models.candidate import Candidate
from models.front import Scale, hypervolume
from models.merge.path_recipe import path_recipe
from models.merge.recipe import Recipe, dump_recipes, mergekit_level, recipe_name
from models.search.environment import PathRules
from tasks.project.records import Anchors, ScoredModel, write_table, write_text
from tasks.project.workspace import Workspace, open_workspace

LAYERS = 4
TASKS = ("translation", "math", "code")
SPLITS = ("search", "selection", "test")
ITEMS = 128
CORPUS = ["three plus four is seven", "drei plus vier ist sieben", "def add(a, b): return a + b", "0123456789"] * 20


def make_project(root: Path) -> Workspace:
    """A project with one profile ``tiny`` under ``root``, as all six stages leave it behind."""
    profile = {
        "description": "A family that is too small to be true",
        "made": "tiny",
        "experts": dict.fromkeys(TASKS),
        "objectives": [{"name": name, "task": f"tiny_{name}"} for name in TASKS],
    }
    write_text(root / "params.yaml", yaml.safe_dump({"profiles": ["tiny"], "seed": 0}))
    write_text(root / "profiles" / "tiny.yaml", yaml.safe_dump(profile, sort_keys=False))
    workspace = open_workspace("tiny", root)
    make_family(workspace)
    make_front(workspace)
    make_curves(workspace)
    make_lock(workspace)
    return workspace


def make_family(workspace: Workspace) -> None:
    """Base and experts as Hugging Face folders, and ``family.json``."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for name in ("base", *TASKS):
        if name != "base":
            with torch.no_grad():
                for tensor in model.parameters():
                    tensor.add_(0.02 * torch.randn_like(tensor))
        folder = workspace.zoo / name
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    folders = {name: f"runs/{workspace.name}/zoo/{name}" for name in ("base", *TASKS)}
    family = {
        "base": folders["base"],
        "experts": {name: folders[name] for name in TASKS},
        "digests": {name: sha256(workspace.root / folder / "model.safetensors") for name, folder in folders.items()},
        "gates": {"relative_length": {"translation": 0.11, "math": 0.09, "code": 0.1}},
    }
    write_text(workspace.zoo / "family.json", json.dumps(family, indent=1))
    for task in TASKS:
        for split in SPLITS:
            items = [
                {"id": f"{task}-{split}-{number}", "prompt": "three plus", "answer": " four"} for number in range(4)
            ]
            write_text(workspace.items / f"{task}.{split}.jsonl", "".join(json.dumps(one) + "\n" for one in items))


def merge(workspace: Workspace, method: str, weights: dict[str, float], **parameters: float) -> Recipe:
    """A recipe over the experts."""
    folder = f"runs/{workspace.name}/zoo"
    return Recipe.model_validate(
        {
            "merge_method": method,
            "base_model": f"{folder}/base",
            "models": [{"model": f"{folder}/{name}", "parameters": {"weight": one}} for name, one in weights.items()],
            "parameters": parameters,
            "dtype": "float32",
        }
    )


def make_front(workspace: Workspace) -> None:
    """``anchors.json``, ``archive.parquet``, ``front.json``, ``members/`` and ``metrics.json``."""
    recipes = [
        merge(workspace, "task_arithmetic", {"translation": 0.4, "math": 0.4, "code": 0.5}),
        merge(workspace, "ties", {"translation": 0.7, "math": 0.3, "code": 0.2}, density=0.4),
        merge(workspace, "dare_ties", {"translation": 0.1, "math": 0.5, "code": 0.8}, density=0.6, seed=0),
    ]
    arithmetic, ties, dare = (recipe_name(one) for one in recipes)
    known = {recipe_name(one): one.model_copy(update={"name": recipe_name(one)}) for one in recipes}
    candidates = [
        Candidate.identity("math", LAYERS),
        Candidate.identity(arithmetic, LAYERS),
        Candidate.identity(ties, LAYERS),
        Candidate(arithmetic, ((arithmetic, 0), (arithmetic, 1), (arithmetic, 3))),
        Candidate(ties, (("code", 0), (ties, 1), ("math", 3))),
        Candidate(dare, ((dare, 0), (dare, 1), (dare, 2), ("code", 1), ("math", 2))),
    ]
    on_selection = [
        (0.41, 0.94, 0.39),
        (0.66, 0.75, 0.71),
        (0.83, 0.55, 0.58),
        (0.55, 0.68, 0.52),
        (0.47, 0.58, 0.66),
        (0.61, 0.82, 0.85),
    ]
    references = [
        ("base", "base", (0.34, 0.46, 0.31)),
        ("translation", "expert", (0.86, 0.35, 0.37)),
        ("math", "expert", on_selection[0]),
        ("code", "expert", (0.36, 0.41, 0.93)),
        ("uniform average", "baseline", (0.51, 0.64, 0.55)),
        ("task arithmetic", "baseline", (0.56, 0.66, 0.6)),
        ("TIES", "baseline", (0.6, 0.58, 0.52)),
        ("DARE-TIES", "baseline", (0.54, 0.69, 0.57)),
    ]
    objectives = (*TASKS, "layers")
    scale = Scale(objectives, (0.86, 0.94, 0.93, 0.5), (0.34, 0.35, 0.31, 1.0))
    rng = np.random.default_rng(0)

    def scores(values: tuple[float, ...], layers: int) -> dict[str, dict[str, float]]:
        return {
            split: {
                **{
                    name: round(float(np.clip(value + shift * rng.random(), 0, 1)), 4)
                    for name, value in zip(TASKS, values, strict=True)
                },
                "layers": layers / LAYERS,
            }
            for split, shift in zip(SPLITS, (0.05, 0.0, -0.04), strict=True)
        }

    def locate(model: str) -> str:
        return f"runs/{workspace.name}/zoo/{model}" if model in ("base", *TASKS) else model

    members = []
    for candidate, values in zip(candidates, on_selection, strict=True):
        documents = path_recipe(candidate, known, locate, LAYERS)
        write_text(workspace.run / "members" / candidate.id / "recipe.yaml", dump_recipes(documents))
        weights = np.array([*values, 1.3 - candidate.depth / LAYERS])
        members.append(
            {
                "name": "math" if candidate.host == "math" else candidate.id,
                "kind": "expert" if candidate.host == "math" else "edit",
                "scores": scores(values, candidate.depth),
                "id": candidate.id,
                "layers": candidate.depth,
                "path": [list(step) for step in candidate.path],
                "host": candidate.host,
                "recipe": f"members/{candidate.id}/recipe.yaml",
                "serves": dict(zip(objectives, np.round(weights / weights.sum(), 4).tolist(), strict=True)),
                "mergekit": mergekit_level(documents),
                "reported": {"code_pass@1": 0.5, "translation_chrf": round(60 + 30 * values[0], 2)},
            }
        )
    held_against = [{"name": name, "kind": kind, "scores": scores(values, LAYERS)} for name, kind, values in references]

    def fraction(rows: list[dict], split: str) -> float:
        return hypervolume(scale.costs([[row["scores"][split][name] for name in objectives] for row in rows]))

    front = {
        "profile": workspace.name,
        "objectives": list(objectives),
        "ideal": dict(zip(objectives, scale.ideal, strict=True)),
        "nadir": dict(zip(objectives, scale.nadir, strict=True)),
        "hv": {split: fraction(members, split) for split in SPLITS},
        "members": members,
        "references": held_against,
    }
    metrics = {
        "hv": front["hv"],
        "hv_references": {split: fraction(held_against, split) for split in SPLITS},
        "members": len(members),
        "item_evaluations": 43_200,
    }
    write_text(workspace.run / "front.json", json.dumps(front, indent=1) + "\n")
    write_text(workspace.run / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    Anchors(
        objectives=list(TASKS),
        ideal=dict(zip(TASKS, scale.ideal[:3], strict=True)),
        nadir=dict(zip(TASKS, scale.nadir[:3], strict=True)),
        spent=12_000,
        anchors=list(known),
        scored=[
            *(
                ScoredModel(name, kind, name, None, dict(zip(TASKS, one, strict=True)))
                for name, kind, one in references[:4]
            ),
            *(
                ScoredModel(name, "recipe", name, dump_recipes([recipe]), dict(zip(TASKS, one, strict=True)))
                for (name, recipe), one in zip(known.items(), on_selection[1:], strict=False)
            ),
        ],
    ).write(workspace.run)
    tried = [random_path(rng, [*TASKS, *known]) for _ in range(160)]
    table = pd.DataFrame(
        {
            "candidate": [one.to_json() for one in tried],
            "id": [one.id for one in tried],
            "kind": rng.choice(["edit", "recipe", "layered", "random"], len(tried)),
            "round": np.arange(len(tried)) // 32,
            "items": np.where(rng.random(len(tried)) < 0.6, ITEMS, 32),
            "charged": ITEMS * len(TASKS),
            "failed": pd.array([None] * len(tried), dtype="string"),
            **{name: np.clip(rng.beta(4, 4, len(tried)) * 0.9, 0, 1) for name in TASKS},
            "layers": [one.depth / LAYERS for one in tried],
        }
    )
    write_table(workspace.run / "archive.parquet", table)
    write_table(workspace.run / "offline.parquet", table.head(60))
    write_table(workspace.run / "plots" / "front.csv", pd.DataFrame([one["scores"]["test"] for one in members]))


def random_path(rng: np.random.Generator, pool: list[str]) -> Candidate:
    """Some path that moves forward."""
    layers = sorted(rng.choice(LAYERS, size=int(rng.integers(2, LAYERS + 1)), replace=False).tolist())
    return Candidate(str(rng.choice(pool)), tuple((str(rng.choice(pool)), layer) for layer in layers))


def make_curves(workspace: Workspace) -> None:
    """``train.csv``, ``search.csv`` and ``agent/``."""
    steps = np.arange(8, 88, 8)
    loss = 0.3 * np.exp(-steps / 40) + 0.02
    rows = {"network": "surrogate", "step": steps, "loss": loss, "held_out": 1.2 * loss}
    write_table(workspace.run / "train.csv", pd.DataFrame(rows))
    evaluations = np.arange(20_000, 43_201, 1_600)
    share = np.linspace(0, 1, len(evaluations))
    curve = pd.DataFrame(
        {
            "round": np.arange(len(evaluations)),
            "evaluations": evaluations,
            "hv": 0.31 + 0.16 * share**0.5,
            "utility": -0.3 + 0.1 * share,
            "surrogate_error": np.where(share > 0, 0.1 - 0.05 * share, np.nan),
        }
    )
    write_table(workspace.run / "search.csv", curve)
    make_agent().save(workspace.run / "agent")


def make_agent() -> Agent:
    """An agent whose surrogate knows made-up scores."""
    rng = np.random.default_rng(0)
    surrogate = Surrogate(np.zeros(2, dtype=np.int64))
    surrogate.fit(rng.random((6, 2)), rng.random((6, len(TASKS))), np.full(6, ITEMS), 1, rng)
    scale = Scale(TASKS, (0.9,) * len(TASKS), (0.3,) * len(TASKS))
    actor = Actor.untrained(TASKS, LAYERS, len(TASKS), range(len(TASKS)))
    return Agent(AgentConfig(TASKS, LAYERS, PathRules(), scale, TASKS, spent=0), actor, surrogate)


def make_lock(workspace: Workspace) -> None:
    """``dvc.lock`` with the hash of every out."""
    run = f"runs/{workspace.name}"
    reads = {
        "zoo": (["params.yaml"], [f"{run}/zoo", f"{run}/tasks"]),
        "sample": ([f"{run}/zoo", f"{run}/tasks"], [f"{run}/anchors.json"]),
        "dataset": ([f"{run}/zoo", f"{run}/tasks", f"{run}/anchors.json"], [f"{run}/offline.parquet"]),
        "train": ([f"{run}/offline.parquet"], [f"{run}/agent", f"{run}/train.csv"]),
        "search": ([f"{run}/agent", f"{run}/tasks"], [f"{run}/archive.parquet", f"{run}/search.csv"]),
        "pareto": ([f"{run}/archive.parquet", f"{run}/tasks"], [f"{run}/front.json", f"{run}/metrics.json"]),
    }

    def entry(path: str) -> dict[str, str]:
        full = workspace.root / path
        return {
            "path": path,
            "hash": "md5",
            "md5": md5(full) if full.is_file() else f"{md5(*sorted(full.rglob('*')))}.dir",
        }

    stages = {
        f"{stage}@{workspace.name}": {
            "cmd": f"hm3 stage {stage}",
            "deps": [*map(entry, deps)],
            "outs": [*map(entry, outs)],
        }
        for stage, (deps, outs) in reads.items()
    }
    write_text(workspace.root / "dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))


def md5(*paths: Path) -> str:
    """Hash of the contents of files."""
    digest = hashlib.md5()
    for path in paths:
        digest.update(path.read_bytes() if path.is_file() else path.name.encode())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
