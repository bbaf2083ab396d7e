"""Nodes of a Ray cluster that come and go while calls are under way."""

import os
from dataclasses import replace

import pytest

from tasks.project.processes import is_alive
from tasks.project.workspace import open_workspace
from tasks.scoring.engine import Engine
from tests.ray_jobs import PATH, PATIENCE, Nap, clear, ignore, in_background, taken, wait_until, workers
from tests.small_tasks import COUNTS, make_family_project, write_profile

TOKEN = "a-token-of-this-test-alone"


@pytest.fixture(scope="module")
def cluster():
    """A head without cores. Ray reads the token once a process, so it stays for the tests that come after."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", TOKEN)
    with pytest.MonkeyPatch.context() as patch:
        import ray
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture(scope="module")
def project(make_family, tmp_path_factory):
    root = make_family_project(tmp_path_factory.mktemp("nodes"), make_family).root
    tasks = [{"name": name, "task": name, "items": COUNTS} for name in ("one", "two")]
    write_profile(root, tasks, threads=1)
    return root


@pytest.fixture(scope="module")
def pool(project, cluster):
    made = Engine(replace(open_workspace("p", project), engine="ray"), project / "journal").pool
    yield made
    made.close()


def test_work_waits_for_the_first_node_and_uses_those_that_join(pool, cluster, tmp_path):
    with in_background(pool, Nap(tmp_path, 0)) as answer:
        assert pool.fleet.size == 0
        cluster.add_node(num_cpus=1)
        assert answer()
    cluster.add_node(num_cpus=1)
    pool.fleet.wait(2)
    clear(tmp_path)
    with in_background(pool, Nap(tmp_path, 1)) as one, in_background(pool, Nap(tmp_path, 1)) as other:
        assert one() != other()


def test_the_work_of_a_node_that_is_gone_is_done_elsewhere(pool, cluster, tmp_path):
    pool.fleet.wait(2)
    before = workers()
    assert len(before) == 2
    with in_background(pool, Nap(tmp_path, 3)) as one, in_background(pool, Nap(tmp_path, 3)) as other:
        taken(tmp_path, 2)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        assert one()
        assert other()
    wait_until(lambda: len([one for one in before if one.is_running() and is_alive(one.pid)]) == 1, PATIENCE)
    assert pool.run(Nap(tmp_path, 0), [PATH], ignore)
