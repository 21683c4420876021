"""What goes to the workers over standard input: settings, keys, the secret, compiled programs."""

import os
import pathlib
import secrets
import shlex
import tempfile

from wan_tpu_deploy.deployment import STATE, Deployment, Node
from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.fanout import Task, read_facts

KEYS_ON_WORKER = "/etc/wan-tpu/api-keys"
SECRET_ON_WORKER = "/etc/wan-tpu/group-secret"
FILE_SENT = "wan-tpu: sent"


def send_files(deployment: Deployment, nodes: list[Node]) -> None:
    """Secrets go over standard input: never in a command line, never in a log."""
    send_extra(deployment, nodes)
    _send_setting(deployment, nodes, "api-keys-file", KEYS_ON_WORKER, "wan-tpu")


def send_extra(deployment: Deployment, nodes: list[Node]) -> None:
    """The user's own lines of the environment alone."""
    _send_setting(deployment, nodes, "env-file", "/etc/wan-tpu/extra.env", "root")


def _send_setting(
    deployment: Deployment, nodes: list[Node], key: str, place: str, owner: str
) -> None:
    """The local file that a setting names, if it names one."""
    if deployment.settings[key]:
        path = pathlib.Path(deployment.settings[key])
        check_local_file(key, path)
        send(deployment, nodes, path, place, owner)


def send(
    deployment: Deployment, nodes: list[Node], path: pathlib.Path, place: str, owner: str
) -> None:
    """Puts a local file on every worker, mode 600, at once or not at all."""
    script = (
        f"umask 077; cat >{place}.new; test -s {place}.new; "
        f"chown {owner}: {place}.new; mv {place}.new {place}; echo {FILE_SENT}"
    )
    command = f"sudo sh -ec {shlex.quote(script)}"
    tasks = deployment.worker_tasks(
        nodes,
        lambda node, worker: deployment.gcloud.ssh(
            node.name, worker, command, stdin=path, end_mark=FILE_SENT
        ),
    )
    deployment.must(f"sending {path.name}", tasks, quiet=True)


def give_secret(deployment: Deployment, node: Node, *, anew: bool) -> None:
    """Sees to it that all workers of a slice have one secret, that others do not know.

    It is made once and stays through restarts and other commits, until it is asked for anew or a
    worker is without it. It exists here for as long as it takes to send it, and is never said.
    """
    if not anew and _has_secret(deployment, node):
        return
    name = f"group-secret-{node.name}"
    if deployment.dry_run:
        print(f"\n# {name}: 64 random characters, gone from here once they are sent")
        send(deployment, [node], pathlib.Path(name), SECRET_ON_WORKER, "wan-tpu")
        return
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / name
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_urlsafe(48) + "\n")
        send(deployment, [node], file, SECRET_ON_WORKER, "wan-tpu")
    print(f"# the workers of {node.name} have a new secret between them")


def _has_secret(deployment: Deployment, node: Node) -> bool:
    """Whether all workers have one, and the same."""
    look = deployment.worker_tasks([node], deployment.script("secret"))
    deployment.must("looking for the secret", look, quiet=True)
    if deployment.dry_run:
        print("# assumed to answer: none, or not the same")
        return False
    found = {read_facts(task).get("secret", "none") for task in look}
    return len(found) == 1 and "none" not in found


def check_local_file(key: str, path: pathlib.Path) -> None:
    """Refuses, under this name, a file that is not there, is empty or cannot be read.

    Raises:
        DeployError: says which.
    """
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except FileNotFoundError:
        raise DeployError(f"{key}: {path} is not there") from None
    except OSError as error:
        raise DeployError(f"{key}: {path} cannot be read: {error.strerror}") from None
    if is_empty:
        raise DeployError(f"{key}: {path} is empty")


def share_compiled(deployment: Deployment, node: Node) -> None:
    """JAX writes compiled programs on process 0 alone: the others get them, for a quick restart."""
    if node.num_workers == 1:
        return
    with tempfile.TemporaryDirectory() as folder:
        name = f"compiled-{node.name}.tar"
        file = pathlib.Path(name) if deployment.dry_run else pathlib.Path(folder) / name
        pack = deployment.script("pack", f"{STATE}/compiled", stdout=file)
        unpack = f"sudo -u wan-tpu tar -C {STATE} -xf -"
        tasks = deployment.worker_tasks([node], pack, first_only=True)
        title = "hand out compiled programs"
        if deployment.run(title, tasks, quiet=True, table=False):
            others = [
                Task(
                    f"{node.name}/{worker}",
                    deployment.gcloud.ssh(node.name, worker, unpack, stdin=file),
                )
                for worker in range(1, node.num_workers)
            ]
            if deployment.run(title, others, quiet=True, table=False):
                return
    print(f"# note: {node.name} has no compiled programs on all workers; a restart compiles again")
