"""Settings with which a whole search takes seconds."""

from models.agent.actor import ActorSettings
from models.agent.hm3 import HM3Settings
from models.agent.online import SearchSettings
from models.agent.phases import DatasetSettings, SampleSettings, TrainSettings

SEARCH = SearchSettings(batch=8, rungs=(10,), offers=48, acted=4, samples=4, directions=64)
SMALL = HM3Settings(
    preferences=8,
    sample=SampleSettings(10),
    dataset=DatasetSettings(edits=12, random=3, items=10),
    actor=ActorSettings(share=0.2, items=4),
    train=TrainSettings(steps=30),
    search=SEARCH,
)
