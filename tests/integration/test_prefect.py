"""Prefect with a real server and worker: forms, runs through the API, overrides, waiting, cancelling.

What people see of it, and of MLflow, is looked at in a real browser; with HM3_SCREENSHOTS set to a folder the pictures
are left there that the documentation shows.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from playwright.sync_api import sync_playwright

from flows.processes.children import command_line
from flows.servers.gate import OPEN
from flows.servers.local import client_of, password
from flows.servers.register import AUTOMATION
from flows.servers.up import in_use, read_record
from tasks.project.processes import is_alive
from tasks.project.secret import USER
from tests.fixtures_front import make_project as make_done
from tests.flows.project import OUTS, at_work, behave, dvc, git, hm3, make_project, started
from tests.integration.api import Server, within
from tests.other_site import ATTACK, other_site
from tests.servers import missing

ROOT = Path(__file__).parents[2]
SIZE = {"width": 1280, "height": 800}
SLOW = 40_000  # milliseconds
REBOUND = "rebound.example"
"""A name that led to another site, and leads to this machine now."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose stages copy, and the environment of a user who has set nothing."""
    done = make_done(tmp_path_factory.mktemp("done")).run
    root = make_project(tmp_path_factory.mktemp("prefect") / "project", done)
    described = yaml.safe_load((root / "dvc.yaml").read_text())
    described["stages"]["search"]["do"]["params"] = ["search"]
    (root / "dvc.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    shutil.copy(ROOT / "prefect.yaml", root)
    (root / "flows").symlink_to(ROOT / "flows")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "deployments")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME", "HM3_STATE"):
            patch.delenv(name, raising=False)
        patch.setenv("HM3_TEST_DONE", str(done))
        patch.setenv("PREFECT_WORKER_QUERY_SECONDS", "2")
        yield root
        hm3(root, "down")


@pytest.fixture(scope="module")
def server(project):
    up = hm3(project, "up", "--json", timeout=300, cold=True)  # so that what is under them is
    assert up.returncode == 0, up.stderr
    server = Server(json.loads(up.stdout), password(project / ".hm3"))
    job = ROOT / "infra" / "kubernetes" / "hm3-gpu.json"
    pool = ["work-pool", "create", "hm3-gpu", "--type", "kubernetes", "--base-job-template", str(job)]
    env = {**os.environ, **client_of(project / ".hm3", server.addresses["prefect"])}
    subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", *pool], env=env, check=True)
    again = hm3(project, "up", timeout=200)
    assert again.returncode == 0, again.stderr
    return server


def forms(server, name):
    """The values of a deployment's form that nobody touched, block by block."""
    schema = server.call(f"deployments/name/{name}")["parameter_openapi_schema"]
    return {key: field["default"] for key, field in schema["properties"].items()}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (
            "hm3/hm3",
            {
                "profile",
                "fresh",
                "push",
                "engine",
                "stage_hours",
                "seed",
                "zoo",
                "sample",
                "dataset",
                "train",
                "search",
                "pareto",
            },
        ),
        ("hm3-search/hm3-search", {"profile", "prefer", "require", "max_layers", "search", "engine"}),
        ("promote/promote", {"profile", "member", "alias", "prefer", "force", "reason"}),
    ],
)
def test_a_form_shows_every_field_with_its_description_and_the_projects_value(server, project, name, fields):
    schema = server.call(f"deployments/name/{name}")["parameter_openapi_schema"]
    assert set(schema["properties"]) == fields
    blocks = [schema, *schema.get("definitions", {}).values()]
    for block in blocks:
        for field, shown in block["properties"].items():
            assert shown["description"], field
            assert "default" in shown, field
            assert not shown.get("anyOf"), field  # Prefect's form draws those as tabs of types
    if "pareto" not in fields:
        return
    params = yaml.safe_load((project / "params.yaml").read_text())
    assert schema["definitions"]["Search"]["properties"]["budget"]["default"] == params["search"]["budget"] == 3
    assert schema["properties"]["search"]["default"]["budget"] == 3
    assert schema["definitions"]["Search"]["properties"]["budget"]["description"].startswith("Item evaluations")


@pytest.mark.parametrize(("pool", "kind"), [("hm3-local", "process"), ("hm3-gpu", "kubernetes")])
def test_each_work_pool_has_its_deployments_one_run_at_a_time(server, pool, kind):
    suffix = pool.removeprefix("hm3").replace("-local", "")
    for name in ("hm3", "hm3-search", "promote"):
        deployment = server.call(f"deployments/name/{name}/{name}{suffix}")
        assert deployment["work_pool_name"] == pool
        assert "hm3" in deployment["tags"]
        assert deployment["enforce_parameter_schema"]
        assert deployment["global_concurrency_limit"]["limit"] == 1
        assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    nightly = server.call(f"deployments/name/hm3/hm3{suffix}")["schedules"]
    assert [(one["schedule"]["cron"], one["active"]) for one in nightly] == [("0 2 * * *", False)]
    assert server.call(f"work_pools/{pool}")["type"] == kind


def test_a_run_on_kubernetes_gets_one_gpu_and_finds_the_workspace_in_its_volume(server):
    job = server.call("work_pools/hm3-gpu")["base_job_template"]["job_configuration"]["job_manifest"]
    assert job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    (step,) = server.call("deployments/name/hm3/hm3-gpu")["pull_steps"]
    assert [*step.values()] == [{"directory": "{{ $HM3_WORKSPACE }}"}]


def test_no_path_of_a_machine_is_in_prefect_yaml():
    entrypoints = [one["entrypoint"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]]
    text = (ROOT / "prefect.yaml").read_text()
    for one in entrypoints:
        assert (ROOT / one.split(":")[0]).is_file()
        text = text.replace(one, "")
    assert "/" not in text


@pytest.fixture(scope="module")
def run(server):
    """Id of a run that was triggered over the API, and has ended."""
    run = server.trigger("hm3/hm3")
    assert server.wait(run) == "Completed", server.said(run)
    return run


def test_a_run_through_the_api_works_in_place_and_shows_what_it_found(server, project, run):
    assert started(project) == [f"{name}@tiny" for name in OUTS]
    assert json.loads(dvc(project, "status", "--json")) == {}
    shown = server.artifacts(run)
    assert {key: one["type"] for key, one in shown.items()} == {
        "front-tiny": "markdown",
        "plot-depth-tiny": "image",
        "plot-front-tiny": "image",
        "plot-paths-tiny": "image",
        "plot-search-tiny": "image",
        **{f"progress-{name}-tiny": "progress" for name in OUTS},
        "report-tiny": "markdown",
        "mlflow-tiny": "markdown",
    }
    assert shown["progress-search-tiny"]["data"] == 100
    page = f"{server.addresses['mlflow']}/#/experiments/"
    assert page in shown["mlflow-tiny"]["data"]
    assert "/artifacts/report.html" in shown["report-tiny"]["data"]
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "done")


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("Chromium (Debian's package chromium)")
    flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    flags += [f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield started
        started.close()


@pytest.fixture(scope="module")
def window(browser, server):
    """A browser in which a user opened the addresses that `hm3 up` prints."""
    window = browser.new_context(viewport=SIZE)
    window.set_default_timeout(SLOW)
    for name, address in server.addresses["open"].items():
        page = window.new_page()
        page.goto(address)
        page.wait_for_url(lambda now, name=name: now.startswith(server.addresses[name]) and OPEN not in now)
        page.get_by_text({"prefect": "Dashboard", "mlflow": "Experiments"}[name]).first.wait_for()
        page.close()
    yield window
    window.close()


@pytest.fixture
def page(window):
    page = window.new_page()
    yield page
    page.close()


def keep(page, name):
    """Keep a picture of what the page shows."""
    folder = os.environ.get("HM3_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(1500)  # charts and images are drawn
        page.screenshot(path=Path(folder) / f"{name}.png")


def close_assistant(page):
    """MLflow opens a panel of its assistant beside what one came to see."""
    button = page.get_by_label("Close", exact=True)
    if button.count():
        button.first.click()


def kept(server):
    """Names of what another site would like to make."""
    made = [server.call(f"{kind}/filter", {}) for kind in ("flows", "work_pools", "variables")]
    found = server.mlflow("api/2.0/mlflow/experiments/search?max_results=100")["experiments"]
    return sorted(one["name"] for one in [*found, *(one for kind in made for one in kind)])


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", REBOUND])
def test_a_page_of_another_site_makes_nothing_and_sees_nothing(page, server, name):
    before = kept(server)
    with other_site() as port:
        page.goto(f"http://{name}:{port}/")
        answers = page.evaluate(ATTACK, {**plain(server), "name": "stolen"})
    assert set(answers.values()) == {"refused", "opaque"}
    assert [how for how, answer in answers.items() if answer == "opaque" and not how.startswith("no-cors")] == []
    assert kept(server) == before


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_a_name_that_leads_to_this_machine_now_is_another_site_still(page, server, name):
    before = kept(server)
    rebound = {key: url.replace("127.0.0.1", REBOUND) for key, url in plain(server).items()}
    page.goto(rebound[name])
    assert "refused" in page.content()
    answers = page.evaluate(ATTACK, {**rebound, "name": "stolen"})
    assert set(answers.values()) == {"refused", "opaque", 403}
    assert kept(server) == before


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_each_servers_own_page_can_do_what_pages_of_others_can_not(page, server, name):
    before = kept(server)
    page.goto(server.addresses[name])
    answers = page.evaluate(ATTACK, {**plain(server), "name": f"own-{name}"})
    own = {how: answer for how, answer in answers.items() if server.addresses[name] in how}
    assert {200, 201} & set(own.values())
    assert 403 not in own.values()
    assert {answer for how, answer in answers.items() if how not in own} - {"open"} == {"refused", "opaque"}
    assert answers["websocket"] == ("open" if name == "prefect" else "refused")
    assert {one.replace("_", "-") for one in set(kept(server)) - set(before)} >= {f"own-{name}"}


def plain(server):
    """The addresses of the servers alone."""
    return {name: server.addresses[name] for name in ("prefect", "mlflow")}


WAYS = {
    "prefect": ("/", "/ui-settings", "/api/health", "/api/admin/version", "/docs"),
    "mlflow": ("/", "/health", "/version", "/graphql", "/api/2.0/mlflow/experiments/get?experiment_id=0"),
}


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, ways in WAYS.items() for way in ways])
def test_programs_are_answered_at_the_servers_address_with_the_secret(server, name, way):
    right = (USER, server.login.partition(":")[2])
    url, graph = server.addresses[name] + way, {"query": "query { __typename }"}

    def status(auth=right, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if way == "/graphql":
            return httpx.post(url, json=graph, auth=auth, headers=headers).status_code
        return httpx.get(url, auth=auth, headers=headers).status_code

    assert status() == status(Origin=server.addresses[name]) == 200
    for auth in (None, (USER, "wrong"), (USER, "")):
        assert status(auth) == 403
    for how in (
        {"Host": "evil.example"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ):
        assert status(**how) == 403


def test_no_secret_is_in_a_command_line_a_log_a_record_or_a_database(server, project, run):
    word = server.login.partition(":")[2]
    addresses = server.addresses["open"].values()
    basic = b64encode(server.login.encode()).decode()
    secrets = [word, basic, *(one.partition("key=")[2] for one in addresses)]
    assert_hidden(secrets, [psutil.Process(one.pid) for one in read_record(project / ".hm3").values()])
    files = [
        path for path in project.rglob("*") if path.is_file() and not path.is_symlink() and ".git" not in path.parts
    ]
    holds = [path.relative_to(project) for path in files if any(one.encode() in path.read_bytes() for one in secrets)]
    assert holds == [Path(".hm3/secret")]
    assert stat.S_IMODE((project / ".hm3" / "secret").stat().st_mode) == 0o600


def assert_hidden(secrets, processes):
    """Neither they nor what they started show a secret to others in their arguments."""
    family = [*processes, *(one for process in processes for one in process.children(recursive=True))]
    assert family
    for one in family:
        assert not [text for text in secrets if text in " ".join(command_line(one))]


FORMS = {
    "hm3": (("Seed of every generator.", "Item evaluations of sample, dataset and search together."), "3"),
    "hm3-search": (("What matters how", "Fully scored candidates whose cost may be spent."), "100"),
}
"""What a deployment's form says of its fields, and one of the values: ``search.budget`` is the project's."""


@pytest.mark.parametrize("name", FORMS)
def test_the_form_of_a_deployment_shows_fields_with_descriptions_and_values(page, server, run, name):
    deployment = server.call(f"deployments/name/{name}/{name}")["id"]
    page.goto(f"{server.addresses['prefect']}/deployments/deployment/{deployment}/run")
    texts, value = FORMS[name]
    for text in texts:
        page.get_by_text(text).wait_for()
    assert value in page.locator("input").evaluate_all("all => all.map(one => one.value)")
    if name == "hm3":
        keep(page, "prefect-form")


def test_a_scheduled_run_is_listed(page, server, run):
    deployment = server.call("deployments/name/hm3/hm3")["id"]
    tomorrow = time.strftime("%Y-%m-%dT02:00:00Z", time.gmtime(time.time() + 86_400))
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": tomorrow}}
    server.call(f"deployments/{deployment}/create_flow_run", {"state": later, "name": "nightly-run"})
    page.goto(f"{server.addresses['prefect']}/deployments/deployment/{deployment}?tab=Upcoming")
    page.get_by_text("nightly-run").first.wait_for()
    page.get_by_text("Scheduled for").first.wait_for()


def test_a_finished_run_shows_its_stages(page, server, run):
    page.goto(f"{server.addresses['prefect']}/runs/flow-run/{run}")
    page.get_by_text("Completed").first.wait_for()
    keep(page, "prefect-run")  # the stages in time are drawn on a canvas
    page.get_by_text("Task Runs", exact=True).first.click()
    for stage in ("search@tiny", "pareto@tiny", "publish"):
        page.get_by_text(stage).first.wait_for()


def test_a_finished_run_shows_its_front_and_its_images(page, server, run):
    ids = {key: one["id"] for key, one in server.artifacts(run).items()}
    page.goto(f"{server.addresses['prefect']}/runs/flow-run/{run}")
    page.get_by_text("Artifacts", exact=True).first.click()
    page.get_by_text("front-tiny").first.wait_for()
    page.goto(f"{server.addresses['prefect']}/artifacts/artifact/{ids['plot-front-tiny']}")
    image = page.locator("img[src^='data:image/png']").first
    image.wait_for()
    assert image.evaluate("one => one.naturalWidth") > 100
    page.goto(f"{server.addresses['prefect']}/artifacts/artifact/{ids['front-tiny']}")
    page.get_by_text("task arithmetic").first.wait_for()
    keep(page, "prefect-artifacts")


def test_mlflow_shows_the_runs_with_their_hypervolume(page, server, run):
    found = server.mlflow("api/2.0/mlflow/experiments/get-by-name?experiment_name=hm3-tiny")
    page.goto(
        f"{server.addresses['mlflow']}/#/experiments/{found['experiment']['experiment_id']}/runs?compareRunsMode=CHART"
    )
    page.get_by_text(server.call(f"flow_runs/{run}")["name"]).first.wait_for()
    close_assistant(page)
    page.get_by_placeholder("Search metric charts").fill("hv")
    page.locator("svg .trace, svg .plot").first.wait_for()
    keep(page, "mlflow-runs")


def test_mlflow_shows_the_front_with_its_aliases(page, server, run):
    page.goto(f"{server.addresses['mlflow']}/#/models/hm3-front-tiny")
    page.get_by_text("balanced").first.wait_for()
    page.get_by_text("best-math").first.wait_for()
    close_assistant(page)
    keep(page, "mlflow-registry")


@pytest.mark.slow  # test_pipeline.py runs an experiment, and a form's values are those of tests/flows/test_form.py
def test_one_changed_field_of_a_form_is_an_experiment_and_the_project_stays_as_it_is(server, project):
    before = {path: (project / path).read_bytes() for path in ("params.yaml", "dvc.lock")}
    form = forms(server, "hm3/hm3")
    run = server.trigger("hm3/hm3", **form | {"search": form["search"] | {"budget": 99}})
    assert server.wait(run) == "Completed", server.said(run)
    assert started(project) == ["search@tiny"]
    name = server.line(run, "is saved: compare").split()[1]
    shown = json.loads(dvc(project, "params", "diff", "--json", "HEAD", name))
    assert shown == {"params.yaml": {"search.budget": {"old": 3, "new": 99, "diff": 96}}}
    assert {path: (project / path).read_bytes() for path in before} == before
    assert git(project, "status", "--porcelain") == ""


def test_the_second_of_two_runs_says_for_whom_it_waits_and_goes_on_when_the_first_is_cancelled(server, project):
    behave(project, "search", "sleep")
    params = yaml.safe_load((project / "params.yaml").read_text()) | {"search": {"budget": 4}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    first = server.trigger("hm3/hm3")
    (work,) = within(90, lambda: at_work(project, "search"), "the stage does not start")
    log = project / ".hm3" / "second.txt"
    with log.open("w") as file:
        command = [sys.executable, "-m", "flows.cli", "run"]
        second = subprocess.Popen(command, cwd=project, stdout=file, stderr=subprocess.STDOUT)
    name = server.call(f"flow_runs/{first}")["name"]
    waits = rf"waits for hm3 run --profile tiny, flow run {name} \(process (\d+), since 2.*\)$"
    found = within(60, lambda: re.search(waits, log.read_text(), re.MULTILINE), "the second run does not wait")
    process = psutil.Process(int(found[1]))
    family = [process, *process.children(recursive=True)]
    assert_hidden([server.login.partition(":")[2]], [process, psutil.Process(second.pid)])
    assert work.pid in [one.pid for one in family]

    behave(project, "search", None)
    server.call(f"flow_runs/{first}/set_state", {"state": {"type": "CANCELLING"}})
    within(10, lambda: not any(is_alive(one.pid) for one in family), "processes of a cancelled run are left")
    assert server.wait(first) == "Cancelled"
    assert second.wait(180) == 0, log.read_text()
    assert yaml.safe_load((project / "params.yaml").read_text()) == params
    assert started(project) == ["search@tiny"] * 2  # by the first, and where that was cancelled by the second
    assert json.loads(dvc(project, "status", "--json")) == {}


@pytest.mark.slow  # its form is looked at above, and test_promote.py runs the flow
def test_a_search_for_one_preference_says_what_it_misses(server):
    form = {"prefer": "math=2, code=2", "require": ["math>=0.1"], "max_layers": 4, "search": 5}
    run = server.trigger("hm3-search/hm3-search", **form)
    assert server.wait(run) == "Failed"
    server.line(run, "archive.parquet: at: no such column; run stage `search` again")


def test_up_again_leaves_everything_as_it_is_and_later_commands_use_the_servers(server, project):
    def there():
        automations = server.call("automations/filter", {})
        pools = server.call("work_pools/filter", {})
        limits = server.call("v2/concurrency_limits/filter", {})
        deployments = server.call("deployments/filter", {})
        return [sorted(one["id"] for one in kind) for kind in (automations, pools, limits, deployments)]

    before, ids = read_record(project / ".hm3"), there()
    again = hm3(project, "up", "--json", timeout=200)
    assert json.loads(again.stdout) == server.addresses
    assert read_record(project / ".hm3") == before
    assert there() == ids
    used = in_use(project / ".hm3")
    assert used == {
        "Prefect": (f"{server.addresses['prefect']}/api", True),
        "MLflow": (server.addresses["mlflow"], True),
    }


def test_a_run_whose_machine_is_gone_is_ended_by_an_automation(server):
    (automation,) = [one for one in server.call("automations/filter", {}) if one["name"] == AUTOMATION]
    assert automation["enabled"]
    trigger, (action,) = automation["trigger"], automation["actions"]
    assert trigger["posture"] == "Proactive"
    assert trigger["after"] == ["prefect.flow-run.heartbeat"]
    assert trigger["within"] >= 3 * 180  # three heartbeats, as often as Prefect sends them by default
    assert (action["type"], action["state"]) == ("change-flow-run-state", "CRASHED")


def test_gpus_have_a_limit(server):
    assert server.call("v2/concurrency_limits/hm3-gpu")["limit"] == 1


def test_down_ends_the_servers_with_everything_under_them(server, project):
    servers = read_record(project / ".hm3")
    assert set(servers) == {"prefect", "worker", "mlflow"}
    family = [one.pid for server in servers.values() for one in psutil.Process(server.pid).children(recursive=True)]
    down = hm3(project, "down")
    assert down.returncode == 0, down.stderr
    assert not any(is_alive(pid) for pid in [*family, *(server.pid for server in servers.values())])
    assert not (project / ".hm3" / "servers.json").exists()
