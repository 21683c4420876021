"""The verbs that bring the service to this machine: tunnel, fetch."""

import pathlib
import re
import socket
import subprocess
from typing import Optional

from wan_tpu_deploy.deployment import STATE, Deployment, Node
from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.gcloud import Command


def tunnel(deployment: Deployment, *, index: int, local_port: Optional[int]) -> int:
    """Forwards a port of this machine to worker 0 of a slice, until Ctrl-C; ssh's exit code."""
    node = _pick(deployment.ready_nodes(), index)
    port = deployment.settings["port"]
    here = int(port) if local_port is None else local_port
    if not 1 <= here <= 65535:
        raise DeployError(f"--local-port is {here}; expected 1 to 65535, such as 8000")
    forward = ("-N", "-o", "ExitOnForwardFailure=yes", "-L", f"{here}:127.0.0.1:{port}")
    command = deployment.gcloud.ssh(node.name, 0, ssh_args=forward)
    if deployment.dry_run:
        print(f"\n# tunnel\n{command.render()}")
        return 0
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", here)) == 0:
            other = here + 1 if here < 65535 else here - 1
            raise DeployError(f"port {here} of this machine is taken: give --local-port {other}")
    print(f"http://127.0.0.1:{here} is {node.name} until Ctrl-C", flush=True)
    return subprocess.call(command.argv)


def fetch(deployment: Deployment, *, what: str, index: int, to: pathlib.Path) -> None:
    """Copies a job's files, or any file or folder of worker 0, into a local folder.

    Raises:
        DeployError: a name that cannot be one, or it is not there.
    """
    if not re.fullmatch(r"/?[\w.][\w.-]*(/[\w.][\w.-]*)*", what) or ".." in what.split("/"):
        raise DeployError(
            f"{what!r} is neither a job's id nor a path, such as video_1a2b or {STATE}/data"
        )
    path = pathlib.PurePosixPath(what if what.startswith("/") else f"{STATE}/data/videos/{what}")
    node = _pick(deployment.ready_nodes(), index)
    _fetch(deployment, node, path.name, ("pack", str(path)), to)
    if not deployment.dry_run:
        print(to / path.name)


def fetch_result(deployment: Deployment, *, what: str, index: int, to: pathlib.Path) -> None:
    """Brings what a run has learnt into a local folder: an adapter, or a model's folder.

    It is made of the last checkpoint, on worker 0's CPU, also while the run goes on.

    Raises:
        DeployError: a name that cannot be one, or there is no such run, or nothing of it is kept.
    """
    if not re.fullmatch(r"[\w][\w.-]*", what):
        raise DeployError(f"{what!r} is no run's name; expected one, such as fox")
    node = _pick(deployment.ready_nodes(), index)
    _fetch(deployment, node, what, ("train", "running", "result", what), to)
    if not deployment.dry_run:
        found = (to / what, to / f"{what}.safetensors")
        print(*(path for path in found if path.exists()), sep="\n")


def _fetch(
    deployment: Deployment, node: Node, name: str, words: tuple[str, ...], to: pathlib.Path
) -> None:
    """Unpacks what worker.sh packs when told these words."""
    part = to / f"{name}.tar.part"
    pack = deployment.script(*words, stdout=part)
    copy = deployment.worker_tasks([node], pack, first_only=True)
    unpack = Command(("tar", "-xf", str(part), "-C", str(to)))
    if deployment.dry_run:
        deployment.run("fetch", copy)
        print(unpack.render())
        return
    _make_folder(to, part)
    try:
        if not deployment.run("fetch", copy, quiet=True, table=False):
            raise DeployError(f"{name} could not be copied from worker 0 of {node.name}")
        if subprocess.call(unpack.argv) != 0:
            raise DeployError(f"what came from {node.name} could not be unpacked into {to}")
    finally:
        part.unlink(missing_ok=True)


def _make_folder(to: pathlib.Path, part: pathlib.Path) -> None:
    """Makes the folder that is to hold the files, and tries it out."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        part.touch()
    except FileExistsError:
        raise DeployError(f"--to is {to}, a file; expected a folder, such as {to}.d") from None
    except OSError as error:
        raise DeployError(f"--to is {to}, which cannot be written: {error.strerror}") from None


def _pick(nodes: list[Node], index: int) -> Node:
    if not 0 <= index < len(nodes):
        raise DeployError(f"there is no slice {index}; there are {len(nodes)}, counted from 0")
    return nodes[index]
