"""Stage `train`: actor and critic (method.md, section 4).

The actor, a merge for every preference, is trained by the gradient of the merged model; the critic, a surrogate of the
scores, from all that was scored before the search.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.agent.actor import new_actor, steps_of
from models.agent.agent import Agent, AgentConfig
from models.agent.online import Search
from models.agent.phases import new_judge, teach, train
from models.candidate import Candidate
from models.preferences import preferences_for
from tasks.project.progress import Progress
from tasks.project.records import read_offline, write_table
from tasks.project.workspace import Workspace
from tasks.trials.lab import EngineLab
from tasks.trials.pool import open_pool, path_space
from tasks.trials.settings import actor_settings, search_settings, train_settings
from tasks.trials.trial import archive_table, failures_of, open_trial, recipe_space


def run(workspace: Workspace, progress: Progress) -> None:
    """Write ``agent/``, ``trained.parquet``, every candidate that was scored so far, and ``train.csv``."""
    params, seed = workspace.params, workspace.params.seed
    engine, anchors = open_pool(workspace, progress)
    paths, space = path_space(engine, anchors), recipe_space(engine)
    offline = read_offline(workspace.run, anchors.objectives)
    lab = EngineLab(engine)
    trial = open_trial(workspace, lab, anchors, offline, params.search.budget)
    judge = new_judge(trial, space)
    actor, settings = new_actor(trial, space), actor_settings(params.train)
    rng = np.random.default_rng([seed, 8])
    wanted = preferences_for(trial.reward.scale.names, params.search.preferences, rng)
    online = Search(trial, judge, space, paths, wanted, search_settings(params.search), rng, actor)
    steps, began = steps_of(trial, settings), trial.spent
    with progress.bar("training the actor", steps, "steps") as bar:
        rows = teach(online, settings, steps, lambda: bar.advance(1))
    spent = trial.spent - began
    with progress.bar("training the critic", params.train.steps, "steps") as bar:
        rng = np.random.default_rng([seed, 3])
        rows += train(trial, judge, train_settings(params.train), rng, lambda _: bar.advance(1))
    config = AgentConfig(paths.models, paths.layers, paths.rules, trial.reward.scale, actor.experts, trial.spent)
    Agent(config, actor, judge.surrogate).save(workspace.run / "agent")
    failed = {Candidate.identity(one.name, engine.layers): one.failed for one in anchors.scored if one.failed}
    failed |= failures_of(offline) | lab.failures
    write_table(workspace.run / "trained.parquet", archive_table(trial, anchors, failed))
    write_table(workspace.run / "train.csv", pd.DataFrame(rows))
    progress.message(f"actor: {steps} steps, {spent:,} item evaluations; it {lab.teaching.lessons}")
    progress.message(
        f"critic: from {len(trial.archive)} candidates, {len(trial.recipes)} of them recipes; "
        f"{rows[-1]['held_out']:.0%} of the variance on held-out ones is left unexplained"
    )
