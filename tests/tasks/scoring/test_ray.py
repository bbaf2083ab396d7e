"""The engine on Ray workers: the same scores as in one process, whatever becomes of the workers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from models.candidate import Candidate
from models.errors import BadInput, Lost
from models.paths.calibration import Calibration
from models.paths.prefix import PathLikelihoods
from tasks.project.progress import Progress
from tasks.project.workspace import open_workspace
from tasks.scoring.engine import Engine
from tasks.scoring.journal import Journal
from tasks.scoring.repairs import Repairs
from tasks.scoring.where import settle
from tasks.trials.lab import EngineLab
from tests.ray_jobs import PATH, PATIENCE, Deadly, Nap, clear, ignore, in_background, taken, wait_until, workers
from tests.small_tasks import COUNTS, make_family_project, write_profile, write_task
from tests.tasks.test_stages_with_tasks import GENERATE
from tests.tasks.trials.test_lab import FEW, space

WEIGHTS = {name: {"weight": 0.5} for name in "ab"}, {"a": {"weight": 0.9}, "b": {"weight": 0.2}}


@pytest.fixture(scope="module")
def project(make_family, tmp_path_factory):
    """Two objectives of log-likelihoods, and one of texts."""
    root = make_family_project(tmp_path_factory.mktemp("ray"), make_family).root
    files = {split: f"runs/p/tasks/one.{split}.jsonl" for split in COUNTS}
    write_task(root, "said", **GENERATE, dataset_kwargs={"data_files": files})
    tasks = [{"name": name, "task": name, "items": COUNTS} for name in ("one", "two")]
    said = {"name": "said", "task": "said", "metric": "exact_match", "items": FEW}
    write_profile(root, [*tasks, said], threads=1, ray={"workers": 2, "cpus": 0.5, "minutes": 0.2})
    return root


def opened(project, engine, journal):
    return Engine(replace(open_workspace("p", project), engine=engine), journal)


@pytest.fixture(scope="module")
def alone(project, tmp_path_factory):
    """In this process."""
    return opened(project, "inline", tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def one_engine(project, tmp_path_factory):
    settle(None)
    import ray

    made = opened(project, "ray", tmp_path_factory.mktemp("journal"))
    yield made
    made.pool.close()
    ray.shutdown()


@pytest.fixture
def engine(one_engine, tmp_path):
    """With two workers that are there, and an empty journal."""
    one_engine.journal = Journal(tmp_path / "journal")
    one_engine.pool.fleet.wait(2)
    return one_engine


def candidates(engine):
    merged = engine.add(space(EngineLab(engine)).make("ties", {name: {"weight": 0.6, "density": 0.7} for name in "ab"}))
    paths = [(("a", 0), (merged.host, 1), ("b", 2)), (("a", 0), ("b", 2)), (("b", 0), ("a", 1), ("a", 1), ("b", 2))]
    return [
        *(Candidate.identity(name, 3) for name in ("base", "a", "b")),
        merged,
        *(Candidate("a", one) for one in paths),
    ]


def test_scores_equal_those_of_one_process_bit_for_bit(engine, alone):
    wanted = alone.scored(candidates(alone), "search")
    assert engine.scored(candidates(engine), "search") == wanted
    assert engine.journal.keys() == alone.journal.keys()
    assert len(engine.journal) == len(engine.journal.keys())


def test_repaired_cuts_and_members_have_the_scores_of_one_process_bit_for_bit(engine, alone, tmp_path):
    texts = tuple(tuple(np.random.default_rng(seed).integers(3, 41, 4 + seed % 13).tolist()) for seed in range(60))
    items, found = Calibration(("one",) * 60, (2,) * 60, texts), []
    try:
        for one in (alone, engine):
            mixed, plain = (one.add(space(EngineLab(one)).make("task_arithmetic", weights)).host for weights in WEIGHTS)
            steps = [("a", 0), ("a", 1)], [("b", 0), ("b", 2)], [(mixed, 0), (mixed, 2)], [(mixed, 0), (plain, 2)]
            cuts = [Candidate(path[0][0], tuple(path)) for path in steps]
            folder = tmp_path / one.workspace.engine
            one.repairs = Repairs(one.pool, one.source, items, folder, range(2), ("a", mixed), Progress())
            searched = one.scored(cuts, "search"), likelihoods(one, items, cuts)
            one.repairs = one.repairs.of_members()
            late = one.add(space(EngineLab(one)).make("task_arithmetic", {name: {"weight": 0.7} for name in "ab"})).host
            cuts.append(Candidate(mixed, ((mixed, 0), (late, 2))))  # which no worker knows yet
            found.append([*searched, one.scored(cuts, "search"), likelihoods(one, items, cuts), contents(folder)])
    finally:
        alone.repairs = engine.repairs = None
    assert found[0] == found[1]
    assert likelihoods(alone, items, cuts) != found[0][1] != found[0][3]
    assert set(engine.journal.keys()) <= set(alone.journal.keys())


def likelihoods(engine, items, cuts):
    """Of each item's answer, by each cut as it is run."""
    job = PathLikelihoods(items.requests(engine.pool))
    return [found.tolist() for found, _ in engine.pool.run(job, list(map(engine.repaired, cuts)), ignore)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_in_the_object_store_is_the_same_source(engine, alone):
    from tasks.scoring.ray_pool import SharedSource, share

    source, group = alone.source(alone.family.experts["a"]), alone.pool.architecture.group
    shared = SharedSource(share(source, group), group)
    assert shared.names() == source.names()
    for name in source.names():
        assert torch.equal(shared.tensor(name), source.tensor(name))
        assert shared.digest(group(name)) == source.digest(group(name))


def test_block_influence_is_measured_there(engine, alone):
    path = Candidate("a", (("a", 0), ("b", 1), ("b", 2)))
    assert EngineLab(engine).influence(path).tolist() == EngineLab(alone).influence(path).tolist()


def test_scores_are_right_and_single_while_workers_are_killed(engine, alone):
    asked = [
        Candidate(host, ((first, 0), (second, 1), (third, 2)))
        for host in "ab"
        for first in "ab"
        for second in "ab"
        for third in "ab"
    ]
    wanted = alone.scored(asked, "search")
    stop, killed = threading.Event(), []

    def kill():
        while len(killed) < 2 and not stop.wait(0.05):
            for one in workers()[:1]:
                killed.append(one.pid)
                one.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = [one for first in range(0, len(asked), 4) for one in engine.scored(asked[first : first + 4], "search")]
    finally:
        stop.set()
        killer.join()
    assert killed
    assert found == wanted
    assert len(engine.journal) == len(engine.journal.keys()) == len(asked)


@pytest.mark.slow  # workers are killed above
def test_the_call_of_a_killed_worker_is_done_by_another(engine, tmp_path):
    with in_background(engine.pool, Nap(tmp_path, 3)) as answer:
        (first,) = taken(tmp_path, 1)
        psutil.Process(first).kill()
        (last,) = answer()
    assert last != first


def test_a_call_that_hangs_is_done_by_another_and_the_worker_replaced(engine, tmp_path):
    from tasks.scoring.fleet import SLOW_SECONDS

    nap = Nap(tmp_path, 0.5)
    assert engine.pool.run(nap, [PATH], ignore)  # how long it usually takes
    clear(tmp_path)
    began = time.monotonic()
    with in_background(engine.pool, nap) as answer:
        (first,) = taken(tmp_path, 1)
        psutil.Process(first).suspend()
        (last,) = answer()
    assert last != first
    assert time.monotonic() - began < SLOW_SECONDS + 5
    wait_until(lambda: not psutil.pid_exists(first), PATIENCE)


def test_what_costs_every_worker_is_given_up(engine, tmp_path):
    with pytest.raises(Lost, match="3 workers"):
        engine.pool.run(Deadly(tmp_path), [PATH], ignore)
    assert len(list(tmp_path.glob("[0-9]*"))) == 3
    assert engine.pool.run(Nap(tmp_path, 0), [PATH], ignore)


def test_a_call_that_waits_for_the_only_worker_gets_it_although_others_wait_for_news_too(one_engine, monkeypatch):
    import ray

    from tasks.scoring import fleet

    class Napper:
        def ping(self):
            pass

        def work(self, seconds):
            time.sleep(seconds)
            return seconds

    hired = ray.remote(Napper).options(num_cpus=0)
    one = fleet.Fleet(hired.remote, fleet.Need(0, 0), 1, PATIENCE, ignore)
    one.wait(1)
    monkeypatch.setattr(fleet, "TEND_SECONDS", PATIENCE)  # from its next look on, the fleet's own thread waits first
    time.sleep(1)
    try:
        with ThreadPoolExecutor(2) as executor:
            first = executor.submit(one.call, "nap", 1, 2)
            wait_until(lambda: one._busy, PATIENCE)
            second = executor.submit(one.call, "nap", 1, 0)
            assert first.result(PATIENCE) == 2
            assert second.result(30) == 0
    finally:
        one.close()


def test_no_cluster_is_joined_without_a_token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(BadInput, match="RAY_AUTH_TOKEN"):
        settle("10.0.0.1:6379")
