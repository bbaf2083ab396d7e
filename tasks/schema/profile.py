"""What a user can set of a model family: ``profiles/NAME.yaml``. An unknown key anywhere is an error."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from tasks.schema.images import Images
from tasks.schema.services import Promotion, RayWorkers, Registry
from tasks.schema.strict import Count, Share, Strict


class Items(Strict):
    """Items of each split."""

    search: Count = Field(128, description="Items whose scores drive the search.")
    selection: Count = Field(128, description="Items that decide which members make the front.")
    test: Count = Field(256, description="Items of the reported scores, read once at the end.")


class Data(Strict):
    """Other data for a task than its own."""

    path: str = Field(
        "json", description="What `datasets.load_dataset` takes: a format, a folder, or a name on the hub."
    )
    name: str | None = Field(None, description="Configuration of the data set, where it has several.")
    files: dict[str, str | tuple[str, ...]] = Field(
        default={},
        description="Split → file or files, from the project's folder; `$VARIABLES` of the environment are filled in. "
        "The names are those of the task's splits, or `search`, `selection` and `test`.",
    )


class Measured(Strict):
    """A metric of a task, and how it becomes a score."""

    metric: str = Field("acc", description="Name of the metric in the task's result, or `metric,filter`.")
    filter: str | None = Field(None, description="Filter whose answers are judged, where a task has several.")
    shots: int | None = Field(None, ge=0, description="Examples in each prompt; the task's own number if left out.")
    data: Data | None = Field(None, description="Other data for the same task.")


class ReportedMetric(Measured):
    """A further metric that is computed for members of the front, as lm-eval computes it over all items."""

    task: str = Field(description="Name of the lm-eval task, or a task file of the profile.")
    metric: str = Field(description="Name of the metric in that task's result, or `metric,filter`.")


class Scored(Measured):
    """A metric of which the search wants more."""

    direction: Literal["higher", "lower"] | None = Field(
        None, description="Which values of the metric are better; the task says it if left out."
    )
    scale: float = Field(1.0, gt=0, description="Score over metric: 0.01 for chrF, which goes to 100.")


class ObjectiveTask(Scored):
    """A task that makes up an objective, or a share of it."""

    task: str = Field(description="Name of an lm-eval task or group, or a task file of the profile.")
    weight: float = Field(1.0, gt=0, description="Share of the objective's items, against those of its other tasks.")


class Objective(Scored):
    """One score that the search drives, higher is better after ``direction`` is applied."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Name of the objective; `layers` is reserved.")
    task: str | None = Field(None, description="Name of an lm-eval task or group, or a task file of the profile.")
    tasks: tuple[ObjectiveTask, ...] = Field((), description="Several tasks in place of one.")
    images: Images | None = Field(
        None,
        description="Images in place of a task; their metric is `acc`, or `ll`: log-likelihood of the right class.",
    )
    expert: str | None = Field(None, description="Expert that was fine-tuned for it; its own name if left out.")
    items: Items = Field(default=Items(), description="Items a split.")
    reported: tuple[ReportedMetric, ...] = Field((), description="Further metrics, reported for the front alone.")

    @model_validator(mode="after")
    def _has_tasks(self) -> Objective:
        if sum((self.task is not None, bool(self.tasks), self.images is not None)) != 1:
            raise ValueError("name one `task`, or several under `tasks`, or `images`")
        if self.images is not None:
            unfit = sorted(self.model_fields_set & {"filter", "shots", "data", "direction", "reported"})
            if unfit:
                raise ValueError(f"{unfit[0]}: is for lm-eval's tasks; images don't have it")
            if self.metric not in ("acc", "ll"):
                raise ValueError(f"metric: {self.metric}: images are scored by `acc` or `ll`")
        if doubled := sorted(self.model_fields_set & set(Scored.model_fields)) if self.tasks else []:
            raise ValueError(f"{doubled[0]}: belongs to each of the `tasks`; move it there")
        return self

    @property
    def parts(self) -> tuple[ObjectiveTask, ...]:
        """The lm-eval tasks that make it up, one or several; none of an objective of images."""
        if self.task is None:
            return self.tasks
        return (ObjectiveTask(task=self.task, **{name: getattr(self, name) for name in Scored.model_fields}),)


class Splits(Strict):
    """Shares of a task's items by split, where its data has no files named for ours."""

    search: Share = Field(0.45, description="Share of the items whose scores drive the search.")
    selection: Share = Field(0.25, description="Share of the items that decide which members make the front.")
    test: Share = Field(0.3, description="Share of the items of the reported scores.")

    @model_validator(mode="after")
    def _is_whole(self) -> Splits:
        if abs(self.search + self.selection + self.test - 1) > 1e-6:
            raise ValueError("splits: the shares of search, selection and test must sum to 1")
        return self


class Layers(Strict):
    """Depth as an objective: layers passed over layers of the base, lower is better."""

    ideal: float = Field(0.5, gt=0, description="Relative depth that counts as best.")
    nadir: float = Field(1.0, gt=0, description="Relative depth that counts as worst.")

    @model_validator(mode="after")
    def _has_range(self) -> Layers:
        if self.ideal >= self.nadir:
            raise ValueError("layers.ideal must be below layers.nadir")
        return self


class Paths(Strict):
    """Which inference paths are legal, and how they are mended (method.md, section 4)."""

    repair: bool = Field(
        True,
        description="Refit the layer before each cut to what comes behind it, on rows that are in no split, "
        "where depth is an objective.",
    )
    mask: Literal["default", "none"] = Field("default", description="`none` lifts every bound but the length.")
    start: int = Field(2, ge=0, description="Last layer at which a path may start.")
    end: Count = Field(2, description="A path may stop at one of so many last layers.")
    forward: Count | None = Field(
        None, description="Longest jump forward, in layers; by default a quarter of those of the base, 4 at least."
    )
    backward: int = Field(7, ge=0, description="Longest jump backward, in layers.")
    repeats: Count = Field(2, description="How often a layer index may be used.")
    stretch: float = Field(1.25, ge=1, description="Longest path over the number of layers of the base.")


class Profile(Strict):
    """The whole of ``profiles/NAME.yaml``: a model family and what it is judged by."""

    description: str = Field("", description="One line for people.")
    params: dict[str, Any] = Field(
        default={}, description="Blocks of params.yaml whose values this family needs otherwise, such as `search`."
    )
    made: Literal["tiny", "tiny-vision"] | None = Field(
        None, description="Recipe by which stage `zoo` trains the family, if it does."
    )
    base: str | None = Field(
        None,
        description="The base model: a folder, FILE.gguf, package:DISTRIBUTION:FILE or hub:ORG/NAME@REVISION; "
        "left out where the family is made. `${NAME}` stands for an environment variable.",
    )
    experts: dict[str, str | None] = Field(
        description="Each expert, likewise, or MODEL+ADAPTER; empty where the family is made."
    )
    objectives: tuple[Objective, ...] = Field(min_length=1)
    splits: Splits = Splits()
    chat_template: bool = Field(False, description="Put prompts into the tokenizer's chat template.")
    generation_batch: Count = Field(128, description="Items that are answered at once where a metric needs generation.")
    hub: bool = Field(False, description="Tasks may fetch their data from the hub; models are, where they name it.")
    layers: Layers | None = Field(default=Layers(), description="Depth as an objective; `null` switches it off.")
    paths: Paths = Paths()
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        "float32", description="Number format of scoring."
    )
    device: str = Field("cpu", description="torch device of scoring.")
    threads: Count = Field(2, description="CPU threads of torch; fixed, because sums depend on it in the last digit.")
    pool_bytes: int = Field(2**30, gt=0, description="Bytes that merged layers may hold in memory.")
    checkpointing: bool = Field(
        False,
        description="Compute each layer a second time when the actor learns, instead of keeping its activations: a "
        "third more time, a fraction of the memory.",
    )
    run_code: bool = Field(
        False,
        description="Consent to run programs that the models write, as tasks marked `unsafe_code` need it, and "
        "to score by what evaluates their answers, as sympy does in tasks of mathematics.",
    )
    sandbox: Literal["bubblewrap", "none"] = Field(
        "bubblewrap", description="Where such programs run; `none`: as this user, with limits alone."
    )
    ray: RayWorkers = RayWorkers()
    registry: Registry = Registry()
    promotion: Promotion = Promotion()

    @model_validator(mode="after")
    def _is_consistent(self) -> Profile:
        if self.made is None and (self.base is None or None in self.experts.values()):
            raise ValueError("base and experts need a folder each unless the family is made")
        names = [objective.name for objective in self.objectives]
        if len(set(names)) != len(names) or "layers" in names:
            raise ValueError("objectives need distinct names, and `layers` is reserved")
        if "base" in self.experts:
            raise ValueError("no expert can be called `base`")
        if unknown := sorted(set(self.promotion.floors) - set(names)):
            raise ValueError(f"promotion.floors: {unknown[0]}: no task objective; there are {', '.join(names)}")
        return self

    @property
    def repairs(self) -> bool:
        """Whether seams are repaired: where depth counts, unless it is switched off."""
        return self.layers is not None and self.paths.repair

    @property
    def uses_hub(self) -> bool:
        """Whether a model, an adapter or the tasks' data may come from the Hugging Face hub."""
        references = [self.base, *self.experts.values()]
        return self.hub or any(part.startswith("hub:") for one in references if one for part in one.split("+"))

    @property
    def objective_names(self) -> tuple[str, ...]:
        """Task objectives in order, then ``layers`` where depth is one."""
        return (*(objective.name for objective in self.objectives), *(("layers",) if self.layers else ()))
