"""A full disk, as a small tmpfs in a mount namespace: a line that says so, and nothing that looks whole and isn't."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.project.records import Anchors
from tasks.scoring.journal import Journal
from tests.small_tasks import make_family_project
from tests.tasks.test_stages_with_tasks import PARAMS
from tests.warm import programs

SPACE = ["unshare", "--mount", *(["--user", "--map-root-user"] if os.geteuid() else []), "sh", "-c"]
SCRIPT = """
folder=$1 size=$2 after=$3
shift 3
cp -a "$folder" "$after.before" && mount -t tmpfs -o "size=$size" hm3 "$folder" && cp -a "$after.before/." "$folder"
"$@"
status=$?
cp -a "$folder" "$after"
exit $status
"""


@pytest.fixture(scope="module")
def finished(make_family, tmp_path_factory):
    root = make_family_project(tmp_path_factory.mktemp("full"), make_family).root
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (root / ".hm3").mkdir()
    return root


@pytest.fixture
def project(finished, tmp_path):
    try:
        subprocess.run([*SPACE, "mount -t tmpfs hm3 /mnt"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        if os.environ.get("HM3_REQUIRE_SERVICES") == "1":
            pytest.fail(f"no mount namespaces ({error}), and HM3_REQUIRE_SERVICES=1")
        pytest.skip(f"no mount namespaces: {error}")
    return Path(shutil.copytree(finished, tmp_path / "project", symlinks=True))


def stage(project, *prefix):
    env = {name: value for name, value in os.environ.items() if name != "HM3_STATE"}
    own = [sys.executable, "-m", "flows.cli"] if prefix else [programs() / "hm3"]
    command = [*prefix, *own, "stage", "sample", "--profile", "p"]
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=300)


def size_of(folder):
    """In pages, as a tmpfs counts."""
    return sum(-(-one.stat().st_size // 4096) * 4096 for one in folder.rglob("*") if one.is_file())


@pytest.mark.parametrize(("folder", "room"), [(".hm3", 28_672), pytest.param("runs/p", 4096, marks=pytest.mark.slow)])
def test_a_stage_says_so_and_the_next_one_goes_on(project, tmp_path, folder, room):
    after = tmp_path / "after"
    small = str(size_of(project / folder) + room)
    done = stage(project, *SPACE, SCRIPT, "sh", str(project / folder), small, str(after))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("hm3: sample@p: ")
    assert "Traceback" not in done.stderr
    shutil.rmtree(project / folder)
    after.rename(project / folder)
    assert not list((project / "runs" / "p").glob("anchors*")) or Anchors.read(project / "runs" / "p")
    before = Journal(project / ".hm3" / "journal" / "p").keys()
    assert stage(project).returncode == 0
    assert before <= Journal(project / ".hm3" / "journal" / "p").keys()
    assert Anchors.read(project / "runs" / "p").scored
