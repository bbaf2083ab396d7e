"""Every command in the documentation exists with its options, on files and services that exist.

Those that need neither Docker nor a cluster are also run: integration/test_commands.py.
"""

import re

import pytest

from tests.commands import PAGES as RUN
from tests.commands import ROOT, WrongCommandError, check, commands, programs

PAGES = (*RUN, "docs/objectives.md", "docs/own-models.md")
READ = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/images.md",
    "docs/merging.md",
    "docs/method.md",
    "docs/running-code.md",
    "docs/results/design.md",
    "docs/results/paper.md",
)
"""Further pages that people write."""

ALL = [pytest.param(line, id=f"{page}: {line[:60]}") for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("line", ALL)
def test_a_command_in_the_docs_exists(line):
    for words in programs(line):
        check(words)


def test_every_row_of_what_is_merged_names_a_test_that_is_there():
    text = (ROOT / "docs" / "merging.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) >= 25
    for file, test in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {test}(" in path.read_text(), test


def test_the_pages_hold_commands():
    assert len(commands("README.md")) > 12
    assert len(commands("docs/operating.md")) > 40


@pytest.mark.parametrize(
    "line",
    [
        "hm3 run --profil tiny",
        "hm3 chose --prefer math=1",
        "make demonstration",
        "prefect deployment run hm3/hm3 --parameter profile=tiny",
        "dvc push --to bucket",
        "mlflow server --backend postgresql:///mlflow",
        "docker compose --file infra/compose.yml up",
        "docker compose --file infra/compose.yaml logs workers",
        "docker compose --file infra/compose.yaml exec -T postgres mlflow db upgrades",
        "kubectl apply --kustomize infra/kubernets",
        "kubectl --namespace hm3 rollout status deployment/worker",
        "rm -rf runs",
    ],
)
def test_a_wrong_command_is_noticed(line):
    with pytest.raises(WrongCommandError):
        for words in programs(line):
            check(words)


def test_links_between_the_pages_lead_somewhere():
    for page in (*PAGES, *READ):
        for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
            path, _, anchor = target.partition("#")
            if "://" in target:
                continue
            found = ((ROOT / page).parent / path) if path else ROOT / page
            assert found.exists(), f"{page}: {target}"
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in map(anchor_of, headings), f"{page}: {target}"


def anchor_of(heading):
    """As the usual forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_modules_that_the_pages_name_exist():
    for page in (*PAGES, *READ):
        for path in re.findall(r"`((?:flows|tasks|models|tests)/[\w/]+\.py)`", (ROOT / page).read_text()):
            if path not in (line.split("`")[1] for line in MADE_IN_A_RECIPE):
                assert (ROOT / path).is_file(), f"{page}: {path}"


MADE_IN_A_RECIPE = re.findall(r"^`.*`, new:$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)


def test_the_readme_is_read_in_five_minutes():
    assert len((ROOT / "README.md").read_text().split()) < 1000
