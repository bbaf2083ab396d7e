"""A small project whose seams are repaired: deeper models, likelihoods as scores, and rows in no split."""

import yaml

from models.candidate import Candidate
from models.merge.recipe import Recipe
from tasks.objectives.calibration import calibration_of
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tasks.scoring.engine import Engine
from tasks.trials.repair import repairs_of
from tests.small_tasks import COUNTS, answered, make_family_project, prompts, write_items, write_profile, write_task

LAYERS = 7
ROWS = 64
"""Of each task, with 17 tokens each on average."""
METRIC = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
BOTH = ("one", "two")


def make_repair_project(root, make_family, layers=LAYERS, rows=ROWS, params=None, **changes):
    """The project of small_tasks with rows for training, which the tasks' models answer as they do the items."""
    make_family_project(root, lambda folder, **options: make_family(folder, layers=layers, **options))
    for seed, (name, model) in enumerate(zip(BOTH, "ab", strict=True)):
        texts = [" ".join(pair) for pair in zip(prompts(rows, 100 + seed), prompts(rows, 200 + seed), strict=True)]
        write_items(root / "data" / f"{name}.jsonl", answered(root / "runs/p/zoo" / model, texts))
        files = {split: f"runs/p/tasks/{name}.{split}.jsonl" for split in COUNTS} | {"train": f"data/{name}.jsonl"}
        write_task(root, name, training_split="train", dataset_kwargs={"data_files": files}, metric_list=[METRIC])
    objectives = [{"name": name, "task": name, "items": COUNTS, "metric": "perplexity"} for name in BOTH]
    write_profile(root, objectives, **{"threads": 1, "paths": {"repair": True}} | changes)
    if params:
        (root / "params.yaml").write_text(yaml.safe_dump(params))
    return open_workspace("p", root)


def repairing(workspace, layers=range(LAYERS - 1), anchors=("a", "b"), calibration=None, progress=None):
    """An engine that repairs behind some layers, as stage `sample` would have it."""
    engine = Engine(workspace)
    items = calibration or calibration_of(workspace, engine.tokenizer)
    engine.repairs = repairs_of(workspace, engine, items, layers, anchors, progress or Progress())
    return engine


def without(model, *gone, layers=LAYERS):
    """What is left of a model."""
    return Candidate(model, tuple((model, layer) for layer in range(layers) if layer not in gone))


def mixed(**weights):
    """A merge of the experts."""
    zoo = "runs/p/zoo/{}".format
    models = [{"model": zoo(name), "parameters": {"weight": weight}} for name, weight in weights.items()]
    return Recipe(merge_method="task_arithmetic", base_model=zoo("base"), models=models, dtype="float32")
