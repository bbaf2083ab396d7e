"""The whole example of docs/own-models.md, command by command: what the page shows is what is printed.

Numbers, ids and times are those of one machine, so they are left out where the lines are compared.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.flows.project import git
from tests.real_project import NOT_SET, ROOT, make_clone

PAGE = ROOT / "docs" / "own-models.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def example():
    """What the section sets in params.yaml, and its commands, each with the lines that it is shown to print."""
    section = re.search(r"^## A whole example\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    blocks = BLOCK.findall(section)
    (settings,) = [yaml.safe_load(text) for kind, text in blocks if kind == "yaml"]
    typed = []
    for line in "".join(text for kind, text in blocks if kind == "console").replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            typed.append((line.removeprefix("$ "), []))
        else:
            typed[-1][1].append(line)
    return settings, typed


def masked(line):
    """A line without what differs from run to run: times and numbers, and of a member all but that it is one."""
    line = re.sub(r"\b(\d+:\d\d|\d+(\.\d+)?) (s|min|ms)\b", "TIME", line)
    if re.match(r"[0-9a-f]{10} ", line):
        return "member"
    return " ".join(re.sub(r"\b[0-9a-f]{8,}\b|[\d.,:−-]*\d[\d.,]*", "#", re.sub(r"\s*[━╸]+\s*", " ", line)).split())


def test_the_page_shows_commands_with_what_they_print():
    settings, typed = example()
    assert set(settings) == {"zoo"}
    assert [line.split()[0] for line, _ in typed].count("hm3") >= 5
    assert sum(len(lines) for _, lines in typed) > 20


@pytest.mark.slow  # twenty minutes on two cores
@pytest.mark.timeout(0)
def test_each_command_of_the_example_prints_what_the_page_shows(tmp_path):
    settings, typed = example()
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["zoo"] |= settings["zoo"]
    root = make_clone(tmp_path / "example", params)
    env = {name: value for name, value in os.environ.items() if not name.startswith(NOT_SET)}
    env |= {"PYTHONPATH": str(root), "COLUMNS": "120"}
    for line, shown in typed:
        done = subprocess.run(["bash", "-c", line], cwd=root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        printed = {masked(one) for one in (done.stdout + done.stderr).splitlines()}
        missing = [one for one in shown if one not in ("", "…") and masked(one) not in printed]
        assert not missing, f"{line}\n{missing}\n{done.stdout}"
    assert git(root, "status", "--porcelain", "profiles") != ""
    assert Path(root / "out" / "model" / "model.safetensors").is_file()
