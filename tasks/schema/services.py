"""What a profile says of the services around the search: the registry, promotion in it, and workers that score."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.schema.strict import Count, Strict


class Registry(Strict):
    """What goes to the MLflow registry."""

    weights: Literal["members", "champion", "none"] = Field(
        "members", description="Whose weights are uploaded; the others are registered by recipe alone."
    )


class Promotion(Strict):
    """What a member must hold on `selection` before an alias is promoted to it."""

    tolerance: float = Field(
        0.02,
        ge=0,
        description="How far a score may lie below that of the alias's present holder, in points of the score; "
        "of `layers` how far above it, in shares of the base's layers.",
    )
    floors: dict[str, float] = Field(
        default={}, description="Task objective → least score, in points of the score. Those left out have none."
    )
    reproduction: float = Field(
        1e-5,
        ge=0,
        description="How far a score that is computed again may lie from the recorded one, relative above 1. "
        "The default allows for rounding, but not for a single item with another answer.",
    )


class RayWorkers(Strict):
    """The workers that `--engine ray` scores with. They change no score."""

    address: str | None = Field(
        None,
        description="Address of a running cluster, such as `HOST:6379`; `RAY_ADDRESS` in the environment overrides it. "
        "Without either, a cluster is started on this machine.",
    )
    workers: Count | None = Field(
        None, description="Most workers, requested at once; as many as the cluster has room for if left out."
    )
    gpus: float = Field(1.0, gt=0, description="GPUs of a worker, or the share of one, where `device` is a GPU.")
    cpus: float | None = Field(
        None, gt=0, description="CPU cores that a worker reserves: 1 beside a GPU, else `threads`, if left out."
    )
    minutes: float = Field(30.0, gt=0, description="Minutes after which a worker that does not answer is replaced.")
