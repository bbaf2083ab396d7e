"""The commands of the documentation, run word for word in their order, on the smallest family that the stages take.

Only what stands for the reader's own is replaced: names, addresses, and numbers that would make a run long.
"""

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml

from flows.servers.local import client_of, free_port
from flows.servers.up import read_record
from tests.commands import PAGES, ROOT, commands, programs
from tests.flows.project import git, hm3
from tests.real_project import NOT_SET
from tests.s3_server import CREDENTIALS, s3_server
from tests.s3_server import client_of as bucket_client

NOT_HERE = {
    "docker": "tests/integration/test_services.py runs the services of the compose file without containers",
    "kubectl": "tests/integration/test_infra.py holds the manifests against their schemas",
    "hm3 bench faults": "tests/integration/test_real_pipeline.py disturbs runs as it does",
    "hm3 bench hostile": "tests/tasks/bench/hostile/test_hostile.py tries some",
    "hm3 bench repair": "tests/tasks/bench/repair/test_repair.py runs every study on a small family",
    "hm3 run --engine ray": "tests/integration/test_dvc.py runs the stages on Ray workers (make test-slow)",
    "hm3 run -S": "tests/integration/test_pipeline.py runs an experiment; with the real stages: make test-slow",
    "hm3 run --fresh": "tests/integration/test_pipeline.py runs every stage anew",
    "hm3 init": "tests/flows/commands/test_init.py makes a profile for models of its own",
    "hm3 zoo": "tests/flows/commands/test_init.py makes experts from data of its own",
    "hm3 bench front": "tests/tasks/bench/searches/test_comparison.py runs it with budgets of seconds",
    "hm3 bench confirm": "tests/tasks/bench/searches/test_comparison.py shows that it makes other families",
    "hm3 bench ray": "tests/tasks/bench/engine/test_bench.py runs it on small input",
    "hm3 bench headroom": "tests/tasks/bench/searches/test_comparison.py runs it with budgets of seconds",
    "hm3 bench amortisation": "tests/tasks/bench/searches/test_comparison.py runs it with budgets of seconds",
    "make": "make demo and make test are what .ci/run calls",
    "mlflow models serve": "tests/integration/test_promote.py serves and asks",
    "curl": "tests/integration/test_promote.py serves and asks",
    "export": "says where the reader's servers are",
    "cp": "copies a file for Docker or the cluster",
    "chmod": "guards a file for Docker or the cluster",
    "tar": "packs and unpacks the state",
    "git pull": "needs the reader's repository",
}
QUIET = ("git", "dvc params diff", "dvc metrics diff")
"""Commands that say nothing where nothing is amiss, or differs."""


def elsewhere(line):
    """Where a command is tested that isn't run here; None for one that is."""
    return next((why for start, why in NOT_HERE.items() if f"{line} ".startswith(f"{start} ")), None)


def here():
    """Commands to run, each once: servers first, which the others use; what takes something back, at the end."""
    lines = (re.sub(r"\s+#.*", "", line) for page in PAGES for line in commands(page))
    found = dict.fromkeys(re.sub(r" --profile (mine|tiny)$", "", line) for line in lines)  # there is one profile
    last = ("hm3 up", "hm3 promote --rollback", "hm3 down")  # `hm3 up` once more says what is there
    lines = sorted(found, key=lambda line: (last.index(line) if line in last else -1, not line.startswith("hm3 up")))
    return [line for line in lines if elsewhere(line) is None]


@pytest.fixture(scope="module")
def project(tmp_path_factory, pipeline, warm):
    """A copy of the finished project with one profile, its buckets on loopback."""
    folder = tmp_path_factory.mktemp("commands")
    root = shutil.copytree(pipeline, folder / "project", symlinks=True)
    params = yaml.safe_load((root / "params.yaml").read_text()) | {"profiles": ["tiny"]}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    git(root, "commit", "--quiet", "--all", "--message", "one profile")
    with pytest.MonkeyPatch.context() as patch, s3_server(folder / "s3.log") as url:
        for name in [name for name in os.environ if name.startswith(NOT_SET)]:
            patch.delenv(name)
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": url}).items():
            patch.setenv(name, value)
        for bucket in ("bucket", "hm3-dvc"):
            bucket_client(url).create_bucket(Bucket=bucket)
        yield root
        hm3(root, "down")


class Reader:
    """What the reader has of his own where the documentation has an example."""

    def __init__(self, root):
        self.root = root
        self.members = [one["id"] for one in json.loads((root / "runs/tiny/front.json").read_text())["members"]]
        shutil.copy(root / "runs" / "tiny" / "members" / self.members[0] / "recipe.yaml", root / "recipe.yaml")

    def words(self, line):
        """The command as this reader types it."""
        for example, own in {
            r"\bMEMBER\b": self.members[0],
            r"\be178a4b4ff\b": self.members[-1][:8],
            r"\bFOLDER\b": "runs/tiny/zoo/math",
            r"\bout/": f"out-{free_port()}/",
            r"s3://bucket/prefix": f"s3://bucket/{free_port()}",
            r"search\.budget=\d+": "search.budget=1000",
            r"--search \d+": "--search 4",
            r"'translation>=0\.5'": "'translation>=0'",
            r"--(prefect|mlflow)-port \d+": lambda found: f"--{found[1]}-port {free_port()}",
            r"\binfra/": f"{ROOT}/infra/",
        }.items():
            line = re.sub(example, own, line)
        if "flow-run cancel" in line:
            line = f"{line.rpartition(' ')[0]} {self.waiting_run()}"
        return line

    def servers(self):
        """The Prefect server that is up, as its clients find it in the environment."""
        running = read_record(self.root / ".hm3")
        return client_of(self.root / ".hm3", running["prefect"].url) if running else {}

    def waiting_run(self):
        """Id of a run that is to start tomorrow."""
        command = ["prefect", "deployment", "run", "hm3/hm3", "--start-in", "20 hours"]
        done = subprocess.run(command, cwd=self.root, env=os.environ | self.servers(), capture_output=True)
        return re.search(rb"UUID: ([0-9a-f-]{36})", done.stdout)[1].decode()


@pytest.fixture(scope="module")
def reader(project):
    return Reader(project)


@pytest.mark.parametrize("line", here())
def test_a_command_of_the_documentation_works(line, reader):
    environment = os.environ | (reader.servers() if line.startswith("prefect") else {})
    typed = reader.words(line)
    done = subprocess.run(
        ["bash", "-c", typed], cwd=reader.root, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, f"{typed}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.strip() or line.startswith(QUIET), "it says nothing"


def test_what_is_not_run_here_is_named():
    ours = {words[0] for line in here() for words in programs(line)}
    assert ours <= {"hm3", "dvc", "prefect", "mlflow", "git"}
    assert len(here()) > 25
    for why in NOT_HERE.values():
        for path in re.findall(r"tests/\S+\.py", why):
            assert (ROOT / path).is_file()
