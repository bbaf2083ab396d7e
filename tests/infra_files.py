"""What infra/ holds, as tests look at it: containers, their commands, and compose services with a given environment."""

import json
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
KUBERNETES = INFRA / "kubernetes"
DOCKERFILE = INFRA / "images" / "Dockerfile"
RUN_IMAGES = ("hm3:0.1.0-cpu", "hm3:0.1.0-cuda")
MADE_HERE = {
    "hm3": "infra/images/Dockerfile makes it, from an image that is pinned",
    "hm3-s3": "compose.yaml makes it, from an image that is pinned",
    "registry.example.org/hm3": "stands for hm3 in the reader's registry",
}
"""Images without a digest, and why they have none."""


@cache
def compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


@cache
def manifests() -> tuple[dict[str, Any], ...]:
    """Every object that `kubectl apply --kustomize` would make, but for the generated map."""
    names = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    return tuple(one for name in names for one in yaml.safe_load_all((KUBERNETES / name).read_text()))


@cache
def job_template() -> dict[str, Any]:
    return json.loads((KUBERNETES / "hm3-gpu.json").read_text())


def pods() -> dict[str, dict[str, Any]]:
    """Pod specifications of the manifests and of the job template, by a name for messages."""
    found = {}
    for one in manifests():
        name = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] in ("Deployment", "Job"):
            found[name] = one["spec"]["template"]["spec"]
        elif one["kind"] == "RayCluster":
            found[f"{name} head"] = one["spec"]["headGroupSpec"]["template"]["spec"]
            for group in one["spec"]["workerGroupSpecs"]:
                found[f"{name} {group['groupName']}"] = group["template"]["spec"]
    found["hm3-gpu.json"] = job_template()["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    return found


def images() -> set[str]:
    """Every image that is run, built on, or builds."""
    described, dockerfile = compose()["services"].values(), DOCKERFILE.read_text()
    inline = [one["build"]["dockerfile_inline"] for one in described if "dockerfile_inline" in one.get("build", {})]
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile, re.MULTILINE))
    built_on = re.findall(r"^FROM (\S+)", "\n".join([dockerfile, *inline]), re.MULTILINE)
    return {
        *(one["image"] for one in described),
        *(container["image"] for pod in pods().values() for container in pod["containers"]),
        *(re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], one) for one in built_on),
        *re.findall(r"^# syntax=(\S+)$", dockerfile, re.MULTILINE),
    }


def commands() -> dict[str, list[str]]:
    """Every command that an image or a manifest runs, by where it stands."""
    found = {"Dockerfile CMD": json.loads(re.search(r"^CMD (\[.*\])$", DOCKERFILE.read_text(), re.MULTILINE)[1])}
    for number, line in enumerate(re.findall(r"(uv pip .*)", DOCKERFILE.read_text().replace("\\\n", " "))):
        found[f"Dockerfile RUN {number}"] = shlex.split(line)
    for name, service in compose()["services"].items():
        if "command" in service:
            found[f"compose {name}"] = [*service.get("entrypoint", []), *service["command"]]
        if "healthcheck" in service:
            found[f"compose {name} health"] = service["healthcheck"]["test"][1:]
    for name, pod in pods().items():
        for container in pod["containers"]:
            words = [*container.get("command", []), *container.get("args", [])]
            if words:
                found[name] = words
    return found


def interpolate(value: Any, environment: Mapping[str, str]) -> Any:
    """Compose's ${NAME}, ${NAME:-default} and ${NAME:?message}; a missing one that is required is a KeyError."""
    if isinstance(value, dict):
        return {key: interpolate(one, environment) for key, one in value.items()}
    if isinstance(value, list):
        return [interpolate(one, environment) for one in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, kind, word = match["name"], match["kind"], match["word"]
        if environment.get(name):
            return environment[name]
        if kind == ":-":
            return word
        raise KeyError(name)

    return re.sub(r"\$\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<word>[^}]*))?\}", replace, value)


def variables() -> set[str]:
    """Names that compose.yaml asks for."""
    return set(re.findall(r"\$\{(\w+)", (INFRA / "compose.yaml").read_text()))


def required() -> set[str]:
    """Those of them without which it says what is missing, and starts nothing."""
    return set(re.findall(r"\$\{(\w+):\?", (INFRA / "compose.yaml").read_text()))


def in_repository(path: str) -> Path:
    """The file in the repository that lies at this path in a container; FileNotFoundError if there is none."""
    if path.startswith("/opt/hm3/"):
        copied = re.search(r"^COPY (.+) /opt/hm3/$", DOCKERFILE.read_text(), re.MULTILINE)[1].split()
        found = next((ROOT / one for one in copied if Path(one).name == Path(path).name), ROOT / path)
    elif path.startswith("/etc/hm3/"):
        found = next((one for one in INFRA.rglob(Path(path).name)), ROOT / path)
    else:
        found = ROOT / path
    if not found.is_file():
        raise FileNotFoundError(path)
    return found


def postgres_program(name: str) -> Path | None:
    """A program of PostgreSQL where Debian puts it, of the newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda one: int(one.parts[-3]))
    return found[-1] if found else None
