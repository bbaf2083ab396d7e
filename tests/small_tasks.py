"""A small project with local lm-eval tasks, and items that its random models answer in part."""

import json

import numpy as np
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.project.workspace import open_workspace

TASK = {
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "loglikelihood",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{answer}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}
COUNTS = {"search": 14, "selection": 8, "test": 12}


def prompts(count, seed):
    generator = np.random.default_rng(seed)
    return [
        " ".join(f"w{one}" for one in generator.integers(3, 41, int(generator.integers(3, 12)))) for _ in range(count)
    ]


def answered(folder, texts, every=2, tokens=4):
    """Items of which about half, those with ``answered``, are what the model in the folder decodes greedily."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    items = []
    for number, text in enumerate(texts):
        ids, greedy = tokenizer(text, return_tensors="pt").input_ids, number % every == 0
        with torch.inference_mode():
            for _ in range(tokens):
                logits = model(ids).logits[0, -1]
                greedy = greedy and int(logits.argmax()) > 2
                logits[:3] = -torch.inf  # no special token in an answer
                ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
        words = tokenizer.convert_ids_to_tokens(ids[0, -tokens:].tolist())
        if number % every:
            words[-1] = "w3" if words[-1] != "w3" else "w4"
        items.append({"id": f"item-{number}", "prompt": text, "answer": " " + " ".join(words), "answered": greedy})
    return items


def write_items(path, items):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in items))


def write_task(root, name, **changes):
    """A task file in the project."""
    files = {split: f"runs/p/tasks/{name}.{split}.jsonl" for split in COUNTS}
    config = {"task": name, **TASK, "dataset_kwargs": {"data_files": files}, **changes}
    path = root / "profiles" / "p" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))


def write_profile(root, objectives, **changes):
    """Parameters and a profile with these objectives."""
    (root / "profiles").mkdir(parents=True, exist_ok=True)
    plain = {"made": "tiny", "experts": {"a": None, "b": None}, "paths": {"repair": False}}  # it has no rows to spare
    profile = {**plain, "objectives": objectives, **changes}
    (root / "params.yaml").write_text(yaml.safe_dump({"profiles": ["p"]}))
    (root / "profiles" / "p.yaml").write_text(yaml.safe_dump(profile))


def make_task_project(root, family):
    """Two objectives, ``one`` and ``two``: about half of the items are answered by model ``a``, or by model ``b``."""
    for seed, (name, model) in enumerate((("one", "a"), ("two", "b"))):
        for number, (split, count) in enumerate(COUNTS.items()):
            items = answered(family[model], prompts(count, 10 * seed + number))
            write_items(root / "runs" / "p" / "tasks" / f"{name}.{split}.jsonl", items)
        write_task(root, name)
    write_profile(root, [{"name": name, "task": name, "items": COUNTS} for name in ("one", "two")])
    return open_workspace("p", root)


def make_family_project(root, make_family):
    """The project of :func:`make_task_project` with its family under ``runs/p/zoo``, as stage `zoo` leaves it."""
    workspace = make_task_project(root, make_family(root / "runs" / "p" / "zoo", noise=0.2))
    family = {"base": "runs/p/zoo/base", "experts": {name: f"runs/p/zoo/{name}" for name in ("a", "b")}}
    (workspace.zoo / "family.json").write_text(json.dumps(family))
    return workspace
