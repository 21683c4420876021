"""A run of training as a JobSet: the overlay deploy/kubernetes/overlays/training/run, filled in.

kustomize does the filling; what is written here is a kustomization, as JSON, which is YAML as well.
Topologies: public manifests for GKE, and xpk's table of them; not tried on a cluster.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
from typing import Any, Optional

from wan_tpu_deploy.accelerators import find_type
from wan_tpu_deploy.errors import DeployError

BASE = pathlib.Path(__file__).resolve().parents[1] / "kubernetes" / "overlays" / "training" / "run"
JOBSET = "wan-tpu-train"
"""What the overlay calls its JobSet and the ConfigMap of its run.toml."""

RUN_LABEL = "wan-tpu-run"
BUCKET = "/bucket"
"""Where a pod has the bucket."""

DATA = "/var/lib/wan-tpu/data"
"""Where a pod has a prepared dataset that was fetched for it."""

_POD = "/spec/replicatedJobs/0/template/spec/template/spec"
_LABELS = {"v6e": "tpu-v6e-slice", "v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice"}
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}
_SHAPES = {"v6e": _FLAT, "v5e": _FLAT, "v5p": _CUBES}
_TPU7X = re.compile(r"tpu7x-(\d{1,2})x(\d{1,2})x(\d{1,2})")


@dataclasses.dataclass(frozen=True)
class Chips:
    """A slice as Kubernetes asks for it.

    Attributes:
        accelerator: value of the node label cloud.google.com/gke-tpu-accelerator.
        topology: value of cloud.google.com/gke-tpu-topology.
        hosts: machines, each a pod.
        chips_per_host: of each of them.
    """

    accelerator: str
    topology: str
    hosts: int
    chips_per_host: int


def find_chips(name: str) -> Chips:
    """The slice of that name: `v6e-16`, as gcloud writes it, or `tpu7x-2x2x2`.

    Raises:
        DeployError: there is none.
    """
    found = _TPU7X.fullmatch(name)
    if found:
        count = int(found[1]) * int(found[2]) * int(found[3])
        if count % 4 or not count:
            raise DeployError(f"topology {name!r} is no slice; expected one such as tpu7x-2x2x2")
        return Chips("tpu7x", name.partition("-")[2], count // 4, 4)
    if name.startswith("tpu7x"):
        raise DeployError(f"topology {name!r}: of TPU7x its shape is given, such as tpu7x-2x2x2")
    kind = find_type(name)
    shapes = _SHAPES[kind.generation.name]
    if kind.num_chips not in shapes:
        raise DeployError(
            f"topology {name!r} has no shape that Kubernetes knows here; there are "
            f"{', '.join(shapes.values())}"
        )
    label = _LABELS[kind.generation.name]
    hosts = kind.num_workers
    return Chips(label, shapes[kind.num_chips], hosts, kind.num_chips // hosts)


@dataclasses.dataclass(frozen=True)
class JobSetRun:
    """A run and where it is.

    Attributes:
        name: of the JobSet, and of the run.
        config: the local TOML file.
        output: gs://BUCKET/FOLDER of the run.
        data: gs://BUCKET/FOLDER that a fleet has prepared, or None for what the file says.
        image: of the container.
        chips: that it trains on.
        queue: Kueue's LocalQueue.
        namespace: of all its objects.
        spot: whether on machines that may be taken away.
    """

    name: str
    config: pathlib.Path
    output: str
    data: Optional[str]
    image: str
    chips: Chips
    queue: str
    namespace: str
    spot: bool

    @property
    def bucket(self) -> str:
        """The bucket of the run's folder."""
        return bucket_and_folder(self.output)[0]

    @property
    def folder(self) -> str:
        """The run's folder in a pod."""
        return folder_in_pod(self.output)


def bucket_and_folder(url: str) -> tuple[str, str]:
    """The two parts of gs://BUCKET/FOLDER.

    Raises:
        DeployError: it is none.
    """
    found = re.fullmatch(r"gs://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])/([\w.-]+(?:/[\w.-]+)*)/?", url)
    if found is None or ".." in found[2].split("/"):
        raise DeployError(f"{url!r} is not gs://BUCKET/FOLDER, such as gs://my-bucket/runs/fox")
    return found[1], found[2]


def folder_in_pod(url: str) -> str:
    """Where a pod that has the bucket has a folder of it."""
    return f"{BUCKET}/{bucket_and_folder(url)[1]}"


def write(run: JobSetRun, folder: pathlib.Path) -> None:
    """Writes the kustomization with its files.

    Raises:
        OSError: the folder cannot be written.
    """
    shutil.copy(run.config, folder / "run.toml")
    base = os.path.relpath(BASE, folder.resolve())
    (folder / "kustomization.yaml").write_text(render(run, base), encoding="utf-8")


def render(run: JobSetRun, base: str) -> str:
    """The kustomization.

    Args:
        run: that fills it in.
        base: the overlay, as it is reached from there.
    """
    return json.dumps(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": run.namespace,
            "labels": [{"pairs": {RUN_LABEL: run.name}}],
            "resources": [base],
            "configMapGenerator": [
                {"name": JOBSET, "behavior": "replace", "files": ["run.toml"]},
            ],
            "patches": [{"target": {"kind": "JobSet"}, "patch": json.dumps(_patch(run))}],
        },
        indent=2,
    )


def _patch(run: JobSetRun) -> list[dict[str, Any]]:
    """What of the overlay's JobSet is another run's."""
    chips = run.chips
    job, container = "/spec/replicatedJobs/0/template/spec", f"{_POD}/containers/0"
    nodes = {
        "cloud.google.com/gke-tpu-accelerator": chips.accelerator,
        "cloud.google.com/gke-tpu-topology": chips.topology,
    }
    words = ["train", "/etc/wan-tpu/run/run.toml", "--output", run.folder]
    values: dict[str, Any] = {
        "/metadata/name": run.name,
        "/metadata/labels/kueue.x-k8s.io~1queue-name": run.queue,
        f"{job}/parallelism": chips.hosts,
        f"{job}/completions": chips.hosts,
        f"{_POD}/nodeSelector": {**nodes, **({_SPOT["key"]: "true"} if run.spot else {})},
        f"{container}/image": run.image,
        f"{container}/args": [*words, *(["--data", DATA] if run.data else [])],
        f"{container}/resources/limits": {"google.com/tpu": str(chips.chips_per_host)},
        f"{_POD}/volumes/0/csi/volumeAttributes/bucketName": run.bucket,
    }
    patch = [{"op": "replace", "path": path, "value": value} for path, value in values.items()]
    added: dict[str, Any] = {}
    if run.spot:
        added["tolerations"] = [_SPOT]
    if run.data:
        added["initContainers"] = [_fetch(run.image, run.data)]
    return patch + [{"op": "add", "path": f"{_POD}/{k}", "value": v} for k, v in added.items()]


_SPOT = {
    "key": "cloud.google.com/gke-spot",
    "operator": "Equal",
    "value": "true",
    "effect": "NoSchedule",
}


def _fetch(image: str, data: str) -> dict[str, Any]:
    """Brings a dataset to the pod before it trains; what a restart finds there stays."""
    return {
        "name": "fetch",
        "image": image,
        "args": ["dataset", "fetch", data, DATA],
        "securityContext": {"runAsUser": 0, "allowPrivilegeEscalation": False},
        "volumeMounts": [{"name": "state", "mountPath": "/var/lib/wan-tpu"}],
    }


def export_job(name: str, *, image: str, folder: str, result: str, bucket: str) -> str:
    """A Job, as JSON, that makes of a run's last checkpoint what it has learnt, on a CPU.

    Args:
        name: of the Job.
        image: of the container.
        folder: of the run, in a pod.
        result: what is made, in a pod.
        bucket: in which both are.
    """
    labels = {"app.kubernetes.io/name": "wan-tpu", "app.kubernetes.io/component": "export"}
    mount = {"name": "bucket", "mountPath": BUCKET}
    volume = {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {"bucketName": bucket, "mountOptions": "implicit-dirs"},
    }
    pod = {
        "serviceAccountName": "wan-tpu-training",
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "containers": [
            {
                "name": "export",
                "image": image,
                "args": ["train", "export", folder, "-o", result],
                "securityContext": {"runAsUser": 0, "allowPrivilegeEscalation": False},
                "volumeMounts": [mount],
            }
        ],
        "volumes": [{"name": "bucket", "csi": volume}],
    }
    template = {
        "metadata": {"labels": labels, "annotations": {"gke-gcsfuse/volumes": "true"}},
        "spec": pod,
    }
    spec = {"backoffLimit": 0, "ttlSecondsAfterFinished": 3600, "template": template}
    metadata = {"name": name, "labels": labels}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
    return json.dumps(job, indent=2)
