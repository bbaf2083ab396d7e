from dataclasses import fields

from models.agent.networks import AgentConfig
from models.agent.offline import TrainSettings
from models.agent.online import SearchSettings
from tasks.schema import SearchParams, TrainParams


def test_defaults_of_the_schema_are_those_of_the_algorithms():
    own = {field.name: field.default for kind in (AgentConfig, TrainSettings) for field in fields(kind)}
    assert TrainParams().model_dump().items() <= own.items()
    own = {field.name: field.default for field in fields(SearchSettings)}
    given = SearchParams().model_dump(
        exclude={"budget", "preferences", "preference"}
    )  # the stage makes of these its own
    assert given.items() <= own.items()
