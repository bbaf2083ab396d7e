"""What params.yaml leaves alone is what the algorithms take by themselves."""

from dataclasses import asdict

import pytest

from models.agent.hm3 import HM3Settings
from models.agent.online import SearchSettings
from models.agent.phases import AgentSettings, DatasetSettings, SampleSettings
from tasks.schema.params import DatasetParams, SampleParams, SearchParams, TrainParams
from tasks.search import settings

ELSEWHERE = {"budget", "preferences", "preference", "paper"}
"""Parameters of the stage that are no hyperparameters of the search itself."""


@pytest.mark.parametrize(
    ("params", "own"),
    [
        (DatasetParams(), asdict(DatasetSettings())),
        (SampleParams(), asdict(SampleSettings()) | {"anchors": HM3Settings().anchors}),
        (TrainParams(), asdict(AgentSettings()) | asdict(AgentSettings().training)),
    ],
)
def test_defaults_of_the_schema_are_those_of_the_phases(params, own):
    given = params.model_dump(exclude={"methods", "preferences"})
    assert given.items() <= own.items()


def test_defaults_of_the_schema_are_those_of_the_search():
    assert settings(SearchParams()) == SearchSettings()
    assert SearchParams().preferences == SampleParams().preferences == HM3Settings().preferences


@pytest.mark.parametrize("name", sorted(SearchParams.model_fields.keys() - ELSEWHERE))
def test_every_parameter_of_the_search_reaches_it(name):
    value = getattr(SearchParams(), name)
    other = (5, 9) if name == "rungs" else value + 1 if isinstance(value, int) else value / 2
    assert settings(SearchParams(**{name: other})) != SearchSettings()
