"""A pod's container as a process of this machine, with the environment that Kubernetes gives it."""

import dataclasses
import pathlib
import re
import subprocess
import sys

from tests.deploy.conftest import ROOT
from tests.deploy.kubernetes.rendering import find

CONTAINER = ROOT / "deploy" / "container"
TPU_PORT = 8476
"""Of the TPU runtime, as LeaderWorkerSet says it in TPU_PROCESS_ADDRESSES."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pod:
    """A container, its volumes as folders.

    Attributes:
        objects: that were applied with it.
        spec: of the pod.
        folder: in which its volumes are.
        secrets: values by name and key.
        fields: what the downward API says, by path.
        given: further variables, as an operator's webhook adds them.
    """

    objects: list[dict]
    spec: dict
    folder: pathlib.Path
    secrets: dict[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    given: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def container(self) -> dict:
        """The one that there is."""
        (found,) = self.spec["containers"]
        return found

    def make_volumes(self) -> None:
        """Folders for all; files of ConfigMaps and secrets with the mode that the pod asks for."""
        for volume in self.spec["volumes"]:
            folder = self._volume(volume["name"])
            folder.mkdir(parents=True, exist_ok=True)
            if "configMap" in volume:
                data = find(self.objects, "ConfigMap", volume["configMap"]["name"])["data"]
                for name, text in data.items():
                    (folder / name).write_text(text)
            if "secret" in volume:
                for (name, key), text in self.secrets.items():
                    if name == volume["secret"]["secretName"]:
                        (folder / key).write_text(text)
                        (folder / key).chmod(volume["secret"]["defaultMode"])

    def environment(self) -> dict[str, str]:
        """Of the image, then of the pod."""
        found = {}
        for line in (CONTAINER / "Containerfile").read_text().splitlines():
            if match := re.fullmatch(r"ENV (\w+)=(\S+)", line):
                found[match[1]] = match[2]
        for source in self.container.get("envFrom", ()):
            found |= find(self.objects, "ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in self.container["env"]:
            value = self._value(variable)
            if value is not None:
                found[variable["name"]] = value
        found = {name: self.here(value) for name, value in found.items()} | self.given
        # The image's own Python; this checkout is what it has installed.
        path = f"{pathlib.Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        return {**found, "PATH": path, "PYTHONPATH": str(ROOT)}

    def start(self, *more: str, **variables: str) -> subprocess.Popen:
        """Starts its command, with more words and variables."""
        environment = self.environment()
        words = [
            re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], w) for w in self.container["args"]
        ]
        command = [str(CONTAINER / "entrypoint.sh"), *map(self.here, words), *more]
        log = (self.folder / "log").open("ab")
        with log:
            return subprocess.Popen(
                command, cwd=ROOT, env={**environment, **variables}, stdout=log, stderr=log
            )

    def log(self) -> str:
        """What it said."""
        return (self.folder / "log").read_text()

    def here(self, value: str) -> str:
        """A path in a volume as the folder's."""
        mounts = {mount["mountPath"]: mount["name"] for mount in self.container["volumeMounts"]}
        for path in sorted(mounts, key=len, reverse=True):
            if value == path or value.startswith(path + "/"):
                return str(self._volume(mounts[path])) + value.removeprefix(path)
        return value

    def _volume(self, name: str) -> pathlib.Path:
        return self.folder / "volumes" / name

    def _value(self, variable: dict) -> str | None:
        source = variable.get("valueFrom")
        if source is None:
            return variable["value"]
        if "fieldRef" in source:
            return self.fields[source["fieldRef"]["fieldPath"]]
        secret = source["secretKeyRef"]
        value = self.secrets.get((secret["name"], secret["key"]))
        assert value is not None or secret.get("optional"), secret
        return value


def of_a_leader_worker_set(slices: dict, worker: int, hosts: list[str] | None = None) -> dict:
    """The variables that LeaderWorkerSet's webhook gives a pod that asks for chips.

    Args:
        slices: the LeaderWorkerSet.
        worker: which host of the slice.
        hosts: their names; by default those that it gives them.
    """
    name = slices["metadata"]["name"]
    size = slices["spec"]["leaderWorkerTemplate"]["size"]
    if hosts is None:
        hosts = [f"{name}-0.{name}", *(f"{name}-0-{each}.{name}" for each in range(1, size))]
    return {
        "LWS_LEADER_ADDRESS": f"{hosts[0]}.wan-tpu",
        "LWS_GROUP_SIZE": str(size),
        "LWS_WORKER_INDEX": str(worker),
        "TPU_WORKER_HOSTNAMES": ",".join(hosts),
        "TPU_WORKER_ID": str(worker),
        "TPU_NAME": f"{name}-0",
        "TPU_PROCESS_ADDRESSES": ",".join(f"{host}:{TPU_PORT}" for host in hosts),
        "TPU_PROCESS_PORT": str(TPU_PORT),
    }
