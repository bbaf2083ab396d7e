"""A small project whose pipeline has run, with a real archive, in seconds."""

import yaml

from tasks import dataset, pareto, sample, search, train
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tests.small_tasks import make_family_project

PARAMS = {
    "profiles": ["p"],
    "sample": {"candidates": 6, "preferences": 4, "anchors": 1},
    "dataset": {"edits": 6, "random": 2, "items": 6},
    "train": {"steps": 8},
    "search": {"budget": 500, "batch": 4, "rungs": [4, 12], "preferences": 4},
    "pareto": {"members": 3, "rescored": 3},
}


def make_finished_project(root, make_family):
    """The project of small_tasks after its stages, which were run in this process."""
    make_family_project(root, make_family)
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    workspace = open_workspace("p", root)
    for stage in (sample, dataset, train, search, pareto):
        stage.run(workspace, Progress())
    return workspace
