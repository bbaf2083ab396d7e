"""The files of infra/: valid by their schemas, safe by our rules, and every command in them one that exists.

No container engine is needed. tests/integration/test_services.py starts what compose.yaml describes. Of Ray's custom
resource no package carries the schema: its pods are checked as Kubernetes' own, the rest by the fields we use.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
from functools import cache
from uuid import UUID

import kubernetes_validate
import pytest
import yaml
from packaging.version import Version
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import Flow, FlowRun, WorkPool
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from tests import infra_files
from tests.commands import check
from tests.infra_files import (
    DOCKERFILE,
    INFRA,
    KUBERNETES,
    MADE_HERE,
    ROOT,
    RUN_IMAGES,
    compose,
    job_template,
    manifests,
    pods,
)

SERVICES = compose()["services"]
ONE_SHOT = {name for name, one in SERVICES.items() if one.get("restart") == "no"}
SECRET = re.compile(r"PASSWORD|SECRET|AUTH_STRING|TOKEN$|(?<!AWS_)ACCESS_KEY", re.IGNORECASE)


def named(objects):
    return [pytest.param(one, id=f"{one['kind']}/{one['metadata']['name']}") for one in objects]


def validate(manifest):
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("manifest", named([one for one in manifests() if one["kind"] != "RayCluster"]))
def test_a_manifest_follows_the_schema_of_kubernetes(manifest):
    validate(manifest)


def test_a_wrong_manifest_does_not():
    wrong = json.loads(json.dumps(next(one for one in manifests() if one["kind"] == "Deployment")))
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePullPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(wrong)


def as_pod(specification):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": specification}


def test_the_ray_cluster_scales_by_itself_with_a_token_on_its_door():
    cluster = next(one for one in manifests() if one["kind"] == "RayCluster")
    specification = cluster["spec"]
    assert cluster["apiVersion"] == "ray.io/v1"
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert specification["rayVersion"] == pinned.removeprefix("ray==")
    assert Version(specification["rayVersion"]) >= Version("2.52"), "token authentication came with 2.52"
    assert specification["authOptions"] == {"mode": "token", "secretName": "hm3-ray"}
    assert specification["enableInTreeAutoscaling"] is True
    for group in specification["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    for name, pod in pods().items():
        if name.startswith("RayCluster"):
            validate(as_pod(pod))
            environment = {one["name"]: one for one in pod["containers"][0]["env"]}
            assert environment["RAY_AUTH_MODE"]["value"] == "token"
            assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "hm3-ray"


def filled(**values):
    """The job that the worker would start, as Prefect fills it in."""

    async def fill():
        client = PrefectClient("http://127.0.0.1:9/api")  # nothing has to be asked of it
        return await KubernetesWorkerJobConfiguration.from_template_and_values(job_template(), values, client=client)

    made = asyncio.run(fill())
    flow = Flow(id=UUID(int=1), name="hm3")
    run = FlowRun(id=UUID(int=2), name="run", flow_id=flow.id)
    pool = WorkPool(id=UUID(int=3), name="hm3-gpu", type="kubernetes", base_job_template=job_template())
    made.prepare_for_flow_run(run, flow=flow, work_pool=pool, worker_name="worker")
    return made


@cache
def as_it_stands():
    return filled().model_dump()


def test_prefect_takes_the_job_template_and_makes_a_job_of_one_gpu_from_it():
    WorkPoolCreate(name="hm3-gpu", type="kubernetes", base_job_template=job_template())
    made = filled(name="run", memory="32Gi")
    assert made.model_dump() != as_it_stands()
    assert made.namespace == "hm3"
    job = made.job_manifest
    pod = job["spec"]["template"]["spec"]
    for name in ("parallelism", "completions"):
        pod.pop(name)  # Prefect wants them here, where Kubernetes does not know them and leaves them out
    (container,) = pod["containers"]
    validate(job)
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": 1}
    assert "workspace" in {one["name"] for one in pod["volumes"]}
    for name, field in job_template()["variables"]["properties"].items():
        assert field["title"], name
        assert field["description"].endswith("."), name


@pytest.mark.parametrize(
    "values",
    [
        {"image": "evil.example.org/hm3:1"},
        {"image_pull_policy": "Always"},
        {"command": "sh -c 'exit 0'"},
        {"namespace": "kube-system"},
        {"service_account_name": "prefect-worker"},
        {"workspace": "claim-of-others"},
        {"labels": {"app.kubernetes.io/component": "worker"}},
        {"annotations": {"evil.example.org": "1"}},
        {"env": {"LD_PRELOAD": "/workspace/evil.so"}},
        {"env.PREFECT_API_URL": "https://evil.example.org/api"},
        {"cluster_config": {"context_name": "other", "config": {}}},
        {"job_manifest": {"spec": {}}},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_runs_where_and_as_whom_is_not_up_to_a_run_or_a_deployment(values):
    assert filled(**values).model_dump() == as_it_stands()
    assert job_template()["variables"]["additionalProperties"] is False  # so that Prefect's server refuses them


def test_compose_follows_its_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(INFRA / "compose.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_names_only_what_it_has():
    networks, volumes = compose()["networks"], compose()["volumes"]
    for name, service in SERVICES.items():
        assert set(service["networks"]) <= set(networks), name
        for volume in service.get("volumes", []):
            source = volume.rsplit(":", 2 if volume.endswith(":ro") else 1)[0]
            if source.startswith("./"):
                assert (INFRA / source).is_file(), source
            elif not source.startswith("${"):
                assert source in volumes
        for needed, how in service.get("depends_on", {}).items():
            one_shot = how["condition"] == "service_completed_successfully"
            assert (needed in ONE_SHOT) == one_shot, f"{name} waits for {needed}"
            assert one_shot or "healthcheck" in SERVICES[needed]
        if "build" in service and "dockerfile" in service["build"]:
            assert (INFRA / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_without_rights_within_limits(name):
    service = SERVICES[name]
    assert int(infra_files.interpolate(service["user"], {}).split(":")[0]) > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory", "pids"} == set(service["deploy"]["resources"]["limits"])
    assert name in ONE_SHOT or {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize(("name", "pod"), pods().items())
def test_a_pod_runs_without_rights_within_limits(name, pod):
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][kind])
        mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        assert set(mounts) <= {one["name"] for one in pod["volumes"]}
        assert mounts["tmp"] == "/tmp"
        assert not any(SECRET.search(one["name"]) and "value" in one for one in listed(container) if not names(one))


def listed(container):
    return container["env"] if isinstance(container.get("env"), list) else []


def names(variable):
    """Whether a variable says where a secret is, not what it is."""
    return variable["name"].endswith(("_SECRET_NAME", "_SECRET_KEY"))


def test_long_running_pods_are_probed():
    for one in manifests():
        if one["kind"] == "Deployment":
            for container in one["spec"]["template"]["spec"]["containers"]:
                assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container), one["metadata"]["name"]


def test_no_secret_is_written_down():
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if SECRET.search(key):
                assert re.match(r"\$\{\w+:\?[^}]+\}$", str(value)), f"{name}: {key}"
    assert not [one for one in manifests() if one["kind"] == "Secret"]
    for path in [INFRA / ".env.example", KUBERNETES / "secret.env.example"]:
        given = dict(line.split("=", 1) for line in path.read_text().splitlines() if line and line[0] != "#")
        assert not any(value for key, value in given.items() if SECRET.search(key) or key.endswith("_AUTH")), path
        ignored = path.with_name(path.name.removesuffix(".example"))
        assert subprocess.run(["git", "check-ignore", "--quiet", str(ignored)], cwd=ROOT).returncode == 0
    assert not re.search(r"password|secret|token", DOCKERFILE.read_text(), re.IGNORECASE)


def test_the_example_names_every_variable_of_compose_and_compose_insists_on_the_secrets():
    example = set(re.findall(r"^(\w+)=", (INFRA / ".env.example").read_text(), re.MULTILINE))
    assert example == infra_files.variables()
    with pytest.raises(KeyError):
        infra_files.interpolate(SERVICES["postgres"], {})


def test_each_service_knows_the_passwords_that_it_needs_and_no_other():
    admin = ("MLFLOW_ADMIN", "MLFLOW_ADMIN_PASSWORD")
    known = {name: set(re.findall(r"\$\{(\w+):\?", json.dumps(one))) for name, one in SERVICES.items()}
    assert {name: keys - {"HM3_PROJECT"} for name, keys in known.items()} == {
        "postgres": {"POSTGRES_PASSWORD", "PREFECT_DB_PASSWORD", "MLFLOW_DB_PASSWORD"},
        "s3": {"S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_MLFLOW_SECRET", "S3_WORKER_SECRET"},
        "buckets": {"S3_ACCESS_KEY", "S3_SECRET_KEY"},
        "prefect": {"PREFECT_DB_PASSWORD", "PREFECT_AUTH"},
        "mlflow": {"MLFLOW_DB_PASSWORD", "S3_MLFLOW_SECRET", "MLFLOW_SECRET_KEY", *admin},
        "mlflow-user": {"MLFLOW_WORKER_PASSWORD", *admin},
        "worker": {"PREFECT_AUTH", "S3_WORKER_SECRET", "MLFLOW_WORKER_PASSWORD"},
        "gpu-pool": {"PREFECT_AUTH"},
        "deployments": {"PREFECT_AUTH"},
    }


def test_the_users_of_the_buckets_are_made_when_their_server_starts(tmp_path):
    (script,) = SERVICES["s3"]["command"]
    script = script.replace("$$", "$").replace("/iam/", f"{tmp_path}/")
    script = script.replace("exec /usr/local/bin/docker-entrypoint.sh", "exec echo started")
    environment = {"PATH": os.environ["PATH"], "S3_MLFLOW_SECRET": "one%s", "S3_WORKER_SECRET": "two"}
    command = [*SERVICES["s3"]["entrypoint"], script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "started\n"), done.stderr
    accounts = json.loads((tmp_path / "users.json").read_text())["accessAccounts"]
    assert accounts == {
        "hm3-mlflow": {"access": "hm3-mlflow", "secret": "one%s", "role": "user"},
        "hm3-worker": {"access": "hm3-worker", "secret": "two", "role": "user"},
    }
    assert (tmp_path / "users.json").stat().st_mode & 0o777 == 0o600
    assert SERVICES["s3"]["environment"]["VGW_IAM_DIR"] == "/iam"
    assert any(one.startswith("/iam:") for one in SERVICES["s3"]["tmpfs"])
    assert subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True).returncode != 0


def test_secrets_that_are_referred_to_are_those_that_are_made():
    keys = set(re.findall(r"^(\w+)=", (KUBERNETES / "secret.env.example").read_text(), re.MULTILINE))
    for pod in pods().values():
        for container in pod["containers"]:
            for variable in listed(container):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                assert reference is None or (reference["name"], reference["key"]) in (
                    ("hm3-ray", "auth_token"),
                    *(("hm3", key) for key in keys),
                )


def test_images_of_others_are_pinned_by_tag_and_digest():
    images = {image: re.split("[:@]", image)[0] for image in infra_files.images()}
    assert set(images.values()) == {"postgres", "python", "ghcr.io/versity/versitygw", "docker/dockerfile", *MADE_HERE}
    for image, name in images.items():
        digest = "" if name in MADE_HERE else "@sha256:[0-9a-f]{64}"
        assert re.search(rf":v?\d+\.\d+(\.\d+)?(-\w+)*{digest}$", image), image


def test_our_image_has_the_version_of_the_project_wherever_it_is_named():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    ours = {image for image in infra_files.images() if image.startswith("hm3:")}
    assert ours == set(RUN_IMAGES)
    assert all(f":{version}-" in image for image in ours)
    (moved,) = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["images"]
    (container,) = pods()["hm3-gpu.json"]["containers"]
    assert container["image"] == f"{moved['newName']}:{version}-cuda"  # kustomize leaves this file as it is


def test_the_image_is_built_in_two_steps_and_runs_as_nobody_special():
    text = DOCKERFILE.read_text()
    final = text[text.rindex("\nFROM ") :]
    assert text.count("\nFROM ") == 2
    assert re.search(r"^USER 1000:1000$", final, re.MULTILINE)
    assert "constraints.txt" in text
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert source in kept, f".dockerignore leaves {source} out"


@pytest.mark.parametrize(("place", "command"), infra_files.commands().items())
def test_a_command_exists_with_all_its_options(place, command):
    if command[0] in ("sh", "wget", "pg_isready"):  # of the images' own system; pg_isready: see test_services.py
        return
    check(command)


def test_policies_open_only_what_is_named():
    policies = {one["metadata"]["name"]: one["spec"] for one in manifests() if one["kind"] == "NetworkPolicy"}
    assert policies["nobody-in"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in manifests() if one["kind"] == "Deployment"]
    assert {"app.kubernetes.io/part-of": "hm3", "app.kubernetes.io/component": "worker"} in labels
    allowed = policies["ray-in"]["ingress"][1]["from"][0]["podSelector"]["matchLabels"]
    made = filled().job_manifest["spec"]["template"]["metadata"]["labels"]  # with those that Prefect adds
    assert allowed.items() <= made.items()


def test_a_policy_that_lets_pods_of_elsewhere_in_names_their_namespace():
    for policy in (one["spec"] for one in manifests() if one["kind"] == "NetworkPolicy"):
        rules = [*policy.get("ingress", []), *policy.get("egress", [])]
        for peer in (one for rule in rules for one in [*rule.get("from", []), *rule.get("to", [])]):
            if "namespaceSelector" in peer:
                assert list(peer["namespaceSelector"]["matchLabels"]) == ["kubernetes.io/metadata.name"]


def test_the_kustomization_holds_every_manifest():
    described = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    assert {path.name for path in KUBERNETES.glob("*.yaml")} == {*described["resources"], "kustomization.yaml"}
    (generated,) = described["configMapGenerator"]
    assert generated["files"] == ["hm3-gpu.json"]
    worker = next(one for one in manifests() if one["kind"] == "Deployment")
    assert {"name": "template", "configMap": {"name": generated["name"]}} in worker["spec"]["template"]["spec"][
        "volumes"
    ]
    assert {one["metadata"].get("namespace", "hm3") for one in manifests()} == {"hm3"}
