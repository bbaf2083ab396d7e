"""What params.yaml leaves alone is what the algorithms take by themselves, and what it sets arrives where it should."""

from dataclasses import asdict

import pytest

from models.agent.actor import ActorSettings
from models.agent.hm3 import HM3Settings
from models.agent.online import SearchSettings
from models.agent.phases import DatasetSettings, SampleSettings, TrainSettings
from models.search.environment import PathRules
from tasks.schema.params import DatasetParams, SampleParams, SearchParams, TrainParams
from tasks.schema.profile import Objective, Paths, Profile
from tasks.trials.pool import path_rules
from tasks.trials.settings import actor_settings, dataset_settings, sample_settings, search_settings, train_settings


def rules(paths):
    profile = Profile(made="tiny", experts={"a": None}, objectives=(Objective(name="a", task="a"),), paths=paths)
    return path_rules(profile, layers=12)


BLOCKS = {
    "sample": (SampleParams, sample_settings, SampleSettings, {"methods", "preferences", "anchors"}),
    "dataset": (DatasetParams, dataset_settings, DatasetSettings, set()),
    "actor": (TrainParams, actor_settings, ActorSettings, {"steps"}),
    "critic": (TrainParams, train_settings, TrainSettings, {"share", "items"}),
    "search": (SearchParams, search_settings, SearchSettings, {"budget", "preferences"}),
    "paths": (Paths, rules, PathRules, {"repair"}),
}
"""Blocks of the schema, what makes settings of them, their class, and which fields are no hyperparameters of these."""


def other(number, default):
    """A value of the default's type that no other number has, and that is no default."""
    match default:
        case "default":
            return "none"
        case "several":
            return "each"
        case tuple():
            return (900 + number, 950 + number)
        case float():
            return 0.5 + number / 64 + (default >= 1)
        case _:
            return 1000 + number


@pytest.mark.parametrize("block", BLOCKS)
def test_what_the_schema_leaves_alone_is_what_the_algorithm_takes_by_itself(block):
    params, make, settings, _ = BLOCKS[block]
    assert make(params()) == settings()


@pytest.mark.parametrize("block", BLOCKS)
def test_every_parameter_arrives_where_it_belongs_and_nowhere_else(block):
    params, make, settings, elsewhere = BLOCKS[block]
    names = params.model_fields.keys() - elsewhere
    given = {name: other(number, getattr(params(), name)) for number, name in enumerate(sorted(names))}
    assert len(set(given.values())) == len(given)
    assert asdict(make(params(**given))) == asdict(settings()) | given


def test_what_two_stages_share_has_one_default():
    assert SearchParams().preferences == SampleParams().preferences == HM3Settings().preferences
    assert SampleParams().anchors == HM3Settings().anchors
