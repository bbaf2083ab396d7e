"""Settings with which a whole search takes seconds."""

from models.agent.hm3 import HM3Settings
from models.agent.offline import TrainSettings
from models.agent.online import SearchSettings
from models.agent.phases import AgentSettings, DatasetSettings, SampleSettings
from models.agent.player import PlayerSettings
from models.agent.ppo import PPOSettings

SEARCH = SearchSettings(
    batch=8,
    rungs=(10,),
    offers=24,
    samples=4,
    directions=64,
    player=PlayerSettings(beam=4, updates=1, ppo=PPOSettings(rollouts=24, epochs=1)),
)
SMALL = HM3Settings(
    preferences=8,
    sample=SampleSettings(10),
    dataset=DatasetSettings(edits=12, random=3, items=10),
    agent=AgentSettings(hidden=16, training=TrainSettings(steps=30)),
    search=SEARCH,
)
