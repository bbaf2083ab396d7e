"""An lm-eval task with the requests of one split: its data loaded, its items chosen, its prompts built."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from models.errors import BadInput, one_line
from tasks.objectives.code_metrics import ALLOW, CONSENT, code_eval_from, confine, sandbox_of
from tasks.objectives.items import CALIBRATION, SPLITS, chosen, digest, last_distinct, rows_of, unused
from tasks.objectives.scorers import UNHELD, evaluation
from tasks.objectives.task_files import TaskFile, hold_templates, located
from tasks.project.workspace import Workspace
from tasks.schema.profile import Measured

FEWSHOT_SEED = 1234
"""What lm-eval's own command draws few-shot examples with."""

EXAMPLES = 4
"""Items that are set apart for each shot where examples come from the items' own data: enough to draw from."""

SOURCES = ("training_split", "validation_split", "fewshot_split")
"""Where a task's configuration names splits beside that of its items."""

READERS = ("arrow", "csv", "json", "parquet", "text", "webdataset", "xml")
"""Names of data sets that are none: what reads files of a kind."""

PROGRAMS = 8
"""Items whose generated programs are judged at once; the sandbox has its own bound on what runs."""

Key = tuple[str, str]
"""Metric and filter."""


@dataclass(frozen=True)
class BuiltTask:
    """An lm-eval task whose requests are built for the first items of one split."""

    task: Any
    """lm-eval's ``ConfigurableTask``."""
    name: str
    docs: tuple[dict[str, Any], ...]
    requests: tuple[tuple[Any, ...], ...]
    """lm-eval's ``Instance`` objects of each item."""
    ids: tuple[str, ...]
    """Name of each item: its ``id`` where it has one, else a digest of its content."""
    available: int
    """Items that there are in the split."""
    text: str
    """What its files say, wherever they lie: a part of the key under which scores are kept."""
    label: str
    """How errors name it."""

    def metrics(self, responses: Sequence[Sequence[Sequence[Any]]], start: int = 0) -> list[dict[Key, Any]]:
        """Value of each metric and filter for the items from ``start`` on, as lm-eval computes it.

        Responses are of each item, for each of its requests, what the model answered, as often as it was asked.
        """
        items = range(start, start + len(responses))
        asked = [instance for item in items for instance in self.requests[item]]
        for instance, response in zip(asked, (one for answers in responses for one in answers), strict=True):
            instance.resps, instance.filtered_resps = list(response), {}
        if asked:
            self.task._instances = asked
            self.task.apply_filters()

        def judge(item: int) -> dict[Key, Any]:
            return {
                (metric, name): value
                for name in self.requests[item][0].filtered_resps
                for metric, value in self.task.process_results(
                    self.docs[item], [instance.filtered_resps[name] for instance in self.requests[item]]
                ).items()
            }

        if not self.task.config.unsafe_code:
            return list(map(judge, items))
        with ThreadPoolExecutor(PROGRAMS) as executor:  # each waits for its program in the sandbox
            return list(executor.map(judge, items))

    def aggregated(self, responses: Sequence[Sequence[Sequence[Any]]]) -> dict[str, float]:
        """What lm-eval's command prints of these answers: ``metric,filter`` → its own aggregation over all items."""
        from lm_eval.api.metrics import mean

        values: dict[Key, list[Any]] = {}
        for one in self.metrics(responses):
            for key, value in one.items():
                values.setdefault(key, []).append(value)
        aggregations = self.task.aggregation()
        return {f"{key[0]},{key[1]}": float(aggregations.get(key[0], mean)(found)) for key, found in values.items()}

    def key(self, measured: Measured, found: Iterable[Key]) -> Key:
        """The metric and filter that the profile names among those in the results.

        Raises:
            BadInput: there is no such metric, or several filters give it.
        """
        name, _, which = measured.metric.partition(",")
        wanted = measured.filter or which
        keys = [one for one in found if one[0] == name and wanted in ("", one[1])]
        if len(keys) == 1:
            return keys[0]
        same = [one for one in found if one[0] == name]
        names = ", ".join(sorted(f"{one},{which}" if same else one for one, which in (same or found))) or "none"
        problem = "several filters give it; name one of" if keys else "missing in its result; there are"
        asked = f"{name},{wanted}" if wanted else name
        raise BadInput(f"{self.label}: metric {asked!r}: {problem} {names}")


@dataclass(frozen=True)
class Wanted:
    """What is wanted of an lm-eval task."""

    file: TaskFile
    measured: Measured
    """Other data and number of shots, as the profile asks for them."""
    split: str
    """``search``, ``selection`` or ``test``; or ``calibration``, rows that are items of none of them."""
    count: int
    """Items; of ``calibration`` those at most."""
    label: str
    """How errors name it."""
    used: frozenset[str] = frozenset()
    """Digests of the rows that ``calibration`` must not have: those of all items."""


@dataclass(frozen=True)
class Training:
    """The rows of a task's data that are for training."""

    split: str
    alone: dict[str, Any] | None = None
    """What ``datasets`` loads them by, where files are named: those of other splits may have other columns."""


def build(workspace: Workspace, wanted: Wanted, chat: Callable[..., str] | None) -> BuiltTask:
    """A task with the requests of the first items of a split, of one at least; of ``calibration`` perhaps of none.

    Prompts are put into ``chat``, lm-eval's ``apply_chat_template`` for the models' tokenizer, where it is given.

    Raises:
        BadInput: its data can't be read, or it has too few items.
    """
    from datasets.exceptions import DatasetNotFoundError
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    hold_templates()
    file, measured, label, count = wanted.file, wanted.measured, wanted.label, max(1, wanted.count)
    where = label if label.endswith(f": {file.name}") else f"{label}: task {file.name}"
    try:
        by = evaluation(file)
        unsafe = bool(file.raw().get("unsafe_code")) or (by is not None and by.confined)
        sandbox = sandbox_of(workspace.profile) if unsafe else None
        if unsafe and sandbox is None:
            raise BadInput(f"{where}: {CONSENT}")
        if by and not unsafe:
            if not workspace.profile.run_code:
                raise BadInput(f"{where}: {by.text}: {UNHELD}; {ALLOW}")
            warnings.warn(f"{where}: {by.text}: {UNHELD}", stacklevel=2)
        with code_eval_from(sandbox) if unsafe else contextlib.nullcontext():
            config = file.config() | ({"unsafe_code": True} if unsafe else {})
        shots = config.get("num_fewshot") if measured.shots is None else measured.shots
        by_file, training = fit_data(config, wanted, workspace, bool(shots))
        # a manager without folders, because the whole configuration is given
        task = TaskManager(include_defaults=False).load([config])["tasks"][file.name]
        if unsafe:
            confine(task, sandbox)
        if getattr(task, "MULTIMODAL", False):
            raise BadInput(f"{where}: asks about images or sound, which these models can't take")
        if measured.shots is not None or task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=measured.shots or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        available = take_items(task, wanted, workspace, by_file, training)
        if available < count and wanted.split != CALIBRATION:
            raise BadInput(f"{label}: items.{wanted.split}: {count}, but {file.name} has {available}; ask for no more")
        with contextlib.redirect_stderr(io.StringIO()):  # lm-eval's own bar
            as_command = {"apply_chat_template": True, "fewshot_as_multiturn": True, "chat_template": chat}
            if available:
                task.build_all_requests(limit=count, **(as_command if chat else {}))
    except BadInput:
        raise
    except (ConnectionError, DatasetNotFoundError) as error:
        reason = one_line(error, 200)
        raise BadInput(
            f"{where}: its data set {config.get('dataset_path')} can't be reached ({reason}); "
            "go online, or name local files under `data`"
        ) from None
    except Exception as error:  # noqa: BLE001 (a task may bring code of its own)
        reason = one_line(f"{type(error).__name__}: {error.__cause__ or error}", 300)
        mend = file.path.name if file.path else file.name
        raise BadInput(f"{where}: its items can't be built ({reason}); mend {mend}") from None
    grouped: dict[int, list[Any]] = {}
    for instance in task.instances if available else ():
        grouped.setdefault(instance.doc_id, []).append(instance)
    requests = tuple(tuple(sorted(grouped[item], key=lambda one: one.idx)) for item in sorted(grouped))
    docs = tuple(dict(one[0].doc) for one in requests)
    text = "\n".join([file.text(), *([json.dumps(sandbox.definition)] if sandbox else [])])
    ids = tuple(str(doc["id"]) if "id" in doc else digest(doc)[:16] for doc in docs)
    return BuiltTask(task, file.name, docs, requests, ids, available, text, label)


def fit_data(config: dict[str, Any], wanted: Wanted, workspace: Workspace, shots: bool) -> tuple[bool, Training | None]:
    """Let a task's configuration read the files of one split, or all of its items where no files are named for ours.

    The configuration is changed in place; ``shots``: prompts have examples, which may come from the search split.
    For ``calibration`` it reads those of the search split.

    Returns:
        Whether the data has files for our splits; and for ``calibration`` its rows for training, if it names some.

    Raises:
        BadInput: files are named for some of our splits and not for others, or are missing or empty.
    """
    data, label = wanted.measured.data, f"{wanted.label}: {wanted.file.name}"
    split = base_split(wanted.split)
    if data is not None:
        if "class" in config:
            raise BadInput(f"{label}: data: the task is written in Python and brings its own; leave `data` out")
        path = os.path.expandvars(data.path)
        config["dataset_path"] = str(workspace.root / path) if (workspace.root / path).is_dir() else path
        config["dataset_kwargs"] = {"data_files": data.files} if data.files else {}
        config |= {"dataset_name": data.name, "custom_dataset": None}
    training = config.get("training_split")
    if not shots:
        leave_examples_out(config)
    given = dict(config.get("dataset_kwargs") or {})
    files = given.get("data_files")
    if isinstance(files, str | list | tuple):
        files = {"train": files}
    if not isinstance(files, Mapping):
        if config.get("dataset_path") in READERS and "data_dir" not in given:  # it would look through all folders here
            raise BadInput(f"{label}: dataset_kwargs.data_files: missing; name the files that the task reads")
        if not config.get("custom_dataset") and "class" not in config:
            config["dataset_kwargs"] = {**given, "cache_dir": str(workspace.state / "datasets")}
        return False, Training(training) if training else None
    training = next((one for one in (CALIBRATION, training, "train") if one in files and one not in SPLITS), None)
    named = [one for one in SPLITS if one in files]
    by_file = len(named) > 1 or named in (["search"], ["selection"])
    if by_file and split not in files:
        place = "data.files" if data else "dataset_kwargs.data_files"
        raise BadInput(f"{label}: {place}: names no file for split {split!r}; add `{split}: PATH`")
    if data is not None:
        fewshot = config.get("fewshot_config")
        if isinstance(fewshot, Mapping) and fewshot.get("split") not in (None, *files):
            config["fewshot_config"] = {key: one for key, one in fewshot.items() if key != "split"}
        for key in (*SOURCES, "test_split"):
            if config.get(key) not in files:
                config[key] = None
    if by_file:
        config["test_split"] = split
        names = [split, *(["search"] if shots else []), *(str(config.get(key)) for key in SOURCES)]
    else:
        names = [str(config.get(key)) for key in ("test_split", *SOURCES)]
        if not {config.get("test_split"), config.get("validation_split")} & set(files):
            raise BadInput(f"{label}: data_files: names {', '.join(files)}, and the task reads none; add `test: PATH`")
    found = located(files, [one for one in names if one in files], workspace.root, label)
    given |= {"data_files": found, "cache_dir": str(workspace.state / "datasets")}
    config["dataset_kwargs"] = given
    if training is None or wanted.split != CALIBRATION:
        return by_file, None
    return by_file, Training(training, {**given, "data_files": located(files, [training], workspace.root, label)})


def base_split(split: str) -> str:
    """The split whose rows are looked through: that of ``search`` has more rows than items, perhaps."""
    return "search" if split == CALIBRATION else split


def leave_examples_out(config: dict[str, Any]) -> None:
    """Name no split that only examples come from: lm-eval would read all of it, a training set perhaps, for none."""
    unused = ["training_split", "fewshot_split", *(["validation_split"] if config.get("test_split") else [])]
    config |= dict.fromkeys(unused)
    if isinstance(fewshot := config.get("fewshot_config"), Mapping):
        config["fewshot_config"] = {key: one for key, one in fewshot.items() if key != "split"}


def take_items(task: Any, wanted: Wanted, workspace: Workspace, by_file: bool, training: Training | None) -> int:
    """Let a task have the items of one split alone, in our order, and draw its examples from none that is scored.

    Returns the number of items; ``by_file`` and ``training`` are as :func:`fit_data` gives them.
    """
    docs = task.eval_docs
    contents = [digest(doc) for doc in rows_of(docs)]
    shots = int(task.config.num_fewshot or 0)
    apart: set[str] = set()
    if shots and shares_its_data(task, by_file):
        # examples come from the end of the search split, whichever split is scored
        pool, pooled, order = docs, contents, chosen(contents, "search", workspace.profile.splits)
        if by_file:
            pool = (task.config.process_docs or (lambda found: found))(task.dataset["search"])
            pooled = [digest(doc) for doc in rows_of(pool)]
            order = list(range(len(pooled)))
        apart = last_distinct([pooled[index] for index in order], EXAMPLES * shots)
        task.sampler.replace_df([pool[index] for index in order if pooled[index] in apart])
        task.fewshot_cfg.split = "examples"  # of another name than the items' split: none of them is an item
    split = base_split(wanted.split)
    order = list(range(len(contents))) if by_file else chosen(contents, split, workspace.profile.splits)
    if wanted.split == CALIBRATION:
        others = {*contents} - {contents[index] for index in order}
        free = unused(training_rows(task, training), wanted.used, wanted.count)
        docs = free + unused(docs, wanted.used | apart | others, wanted.count - len(free))
    elif not by_file or apart:
        docs = docs.select([index for index in order if contents[index] not in apart])
    task.has_test_docs, task.test_docs = (lambda: True), (lambda: docs)
    return len(docs)


def training_rows(task: Any, training: Training | None) -> Any:
    """The rows of a task that are for training, as it prepares them; none where those are its items too."""
    config = task.config
    if training is not None:
        if training.split == (config.test_split or config.validation_split):
            return []
        if training.alone is not None:
            task.download(training.alone)
        config.training_split = training.split
    return task.training_docs() if task.has_training_docs() else []


def shares_its_data(task: Any, by_file: bool) -> bool:
    """Whether a task draws its examples from items that may be scored."""
    config, own = task.config, task.config.test_split or task.config.validation_split
    if task.fewshot_cfg.split is not None:
        source = task.fewshot_cfg.split
    elif config.fewshot_config is not None and task.fewshot_cfg.samples is not None:
        return False
    else:
        source = config.training_split or config.validation_split or config.test_split
    return source == own or (by_file and source in SPLITS)
