"""What a user can set of the algorithm: ``params.yaml``. ``tasks/schema/profile.py`` has what a profile says.

The stages receive these objects, the Prefect form is drawn from them, and an unknown key anywhere is an error.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.schema.strict import Count, Share, Strict


class ZooParams(Strict):
    """How a made family is trained. Only profiles with ``made`` read it."""

    layers: Count = Field(12, description="Decoder layers.")
    width: Count = Field(64, description="Width of the residual stream; a multiple of twice the heads.")
    feed_forward: Count = Field(192, description="Width inside the feed-forward blocks.")
    heads: Count = Field(4, description="Attention heads.")
    vocabulary: int = Field(600, ge=260, description="Tokens of the tokenizer, the 256 bytes included.")
    translation_examples: Count = Field(2500, description="Training examples of the translation task.")
    math_examples: Count = Field(5000, description="Training examples of the math task, bare facts included.")
    code_examples: Count = Field(800, description="Training examples of the code task.")
    base_steps: Count = Field(500, description="Optimiser steps of the base model.")
    expert_steps: Count = Field(
        400, description="Optimiser steps of the math expert; translation takes 0.9 times as many, code 0.6."
    )
    batch_tokens: Count = Field(768, description="Tokens of a batch, padding included.")
    muon_rate: float = Field(0.02, gt=0, description="Muon's learning rate, for the matrices of the base.")
    adam_rate: float = Field(5e-3, gt=0, description="Adam's learning rate, for embedding and norms of the base.")
    expert_rate: float = Field(3e-3, gt=0, description="AdamW's learning rate, for the experts.")
    skip: Share = Field(0.12, description="Probability that a layer is skipped in a step of the base; experts: half.")
    repeat: Share = Field(0.08, description="Probability that a layer is passed twice in a step; experts: half.")
    replay: Share = Field(0.03, description="Examples of each other task over those of an expert's own task.")
    min_own: Share = Field(0.8, description="Gate: least score of an expert on its own task.")
    max_foreign: Share = Field(0.6, description="Gate: highest mean score of the experts on the others' tasks.")
    min_range: Share = Field(
        0.2, description="Gate: least distance between the best and the worst of base and experts on a task."
    )
    min_distance: float = Field(0.05, ge=0, description="Gate: least length of a task vector over that of the base.")
    max_distance: float = Field(0.2, gt=0, description="Gate: greatest length of a task vector over that of the base.")


class SampleParams(Strict):
    """Recipe search at the parameter level."""

    candidates: int = Field(
        0,
        ge=0,
        description="Recipes that are scored, beside base, experts and plain merges. The actor makes better ones; give "
        "32 where it learns nothing from an objective (`hm3 doctor` says so).",
    )
    methods: tuple[str, ...] = Field(
        ("linear", "task_arithmetic", "ties", "dare_ties"), description="Merge methods that the search may choose."
    )
    preferences: Count = Field(16, description="Preference vectors for which anchors are sought.")
    anchors: Count = Field(3, description="Merged models that join the experts in the pool.")


class DatasetParams(Strict):
    """The offline data set of paths with their scores."""

    edits: int = Field(36, ge=0, description="Paths made by one or two edits of a pool model's own path.")
    random: int = Field(0, ge=0, description="Random legal paths.")
    deletions: Literal["several", "each"] = Field(
        "several",
        description="Which edits leave layers out, where depth is an objective. `several`: half of them, up to as many "
        "layers at a time as depth asks for. `each`: every layer once, alone, of an anchor; better where layers are "
        "dear.",
    )
    items: Count = Field(32, description="Items a task on which each path is scored, at most the search split's.")


class TrainParams(Strict):
    """The actor, by gradients, and the critic's first fit to what sample and dataset have scored (method.md)."""

    share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of search.budget that trains the actor; 0: a quarter, or half where depth does not count.",
    )
    items: Count = Field(16, description="Items a task in each of the actor's steps; each costs three evaluations.")
    steps: Count = Field(80, description="Optimiser steps on the critic's hyperparameters.")


class SearchParams(Strict):
    """Online search over recipes and paths."""

    budget: Count = Field(150_000, description="Item evaluations of sample, dataset and search together.")
    batch: Count = Field(16, description="Candidates proposed and scored a round.")
    rungs: tuple[Count, ...] = Field((32, 128), description="Items a task at each rung of successive halving.")
    keep: Share = Field(0.25, description="Share of a round that is promoted to the next rung.")
    preferences: Count = Field(16, description="Preference vectors that the rounds cycle through.")


class ParetoParams(Strict):
    """Which candidates become members of the front."""

    members: Count = Field(12, description="Members of the front at most, beside the best of each objective.")
    rescored: Count = Field(48, description="Finds of the search that are scored again on the selection split.")


class Params(Strict):
    """The whole of ``params.yaml``."""

    profiles: tuple[str, ...] = Field(("tiny",), description="Profiles that `dvc repro` walks.")
    seed: int = Field(0, ge=0, description="Seed of every generator.")
    zoo: ZooParams = ZooParams()
    sample: SampleParams = SampleParams()
    dataset: DatasetParams = DatasetParams()
    train: TrainParams = TrainParams()
    search: SearchParams = SearchParams()
    pareto: ParetoParams = ParetoParams()
