"""What takes long to make is made once for a whole session of tests, whichever worker needs it first, and copied."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

from filelock import FileLock

from tasks.objectives.task_files import default_index
from tests.warm import programs

SESSION: list[Path] = []
"""The one folder that all workers of the session share, as soon as there is one."""


def begin(base: Path) -> None:
    """Name the session's folder: that of pytest, or with xdist the one above those of its workers."""
    SESSION[:] = [base.parent if "PYTEST_XDIST_WORKER" in os.environ else base]


def made(name, make):
    """The folder of this name, which ``make`` is called to fill unless it was before; not to be written to."""
    folder = SESSION[0] / name
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


MIGRATE = """
import asyncio
from prefect.server.database import provide_database_interface
asyncio.run(provide_database_interface().create_db())
"""


def make_databases(folder):
    """New databases of Prefect and MLflow, which spend four and six seconds in migrations."""
    environment = os.environ | {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment.pop("PREFECT_API_URL", None)
    subprocess.run([programs() / "python", "-c", MIGRATE], env=environment, check=True)
    from tasks.tracking.mlflow import settle_environment

    settle_environment()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{folder / 'mlflow.db'}", "mlflow-artifacts:/").engine.dispose()
    for name in ("prefect.db", "mlflow.db"):
        with contextlib.closing(sqlite3.connect(folder / name)) as database:
            database.execute("PRAGMA journal_mode=DELETE")  # all of it is in the one file


def give_databases(state):
    """New databases for a project that has none, at the places where its runs would make them."""
    databases = made("databases", make_databases)
    for place in ("prefect/prefect.db", "mlflow/mlflow.db"):
        if not (state / place).exists():
            (state / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(databases / Path(place).name, state / place)


def give_index(state):
    """The names of lm-eval's tasks, for which 15,000 files are read."""
    (index,) = made("index", default_index).iterdir()
    state.mkdir(parents=True, exist_ok=True)
    shutil.copy(index, state)


def give_mlflow(path):
    """A new database of MLflow, unless there is one."""
    if not path.exists():
        shutil.copy(made("databases", make_databases) / "mlflow.db", path)
