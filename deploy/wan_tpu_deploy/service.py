"""The verbs that work on the service of slices that are there: install to stop."""

import json
import os
import pathlib
import re
import secrets
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Optional

from wan_tpu_deploy.deployment import Deployment, Node
from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.fanout import Task, print_table
from wan_tpu_deploy.gcloud import Command
from wan_tpu_deploy.settings import Settings
from wan_tpu_deploy.slices import describe_price, flags_again, show_nodes

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
STATE = "/var/lib/wan-tpu"
KEYS_ON_WORKER = "/etc/wan-tpu/api-keys"
SECRET_ON_WORKER = "/etc/wan-tpu/group-secret"
FILE_SENT = "wan-tpu: sent"
START_SETTINGS = ("model", "layout", "bucket", "port", "env-file", "api-keys-file")
"""What `start` takes besides where the slices are; every start says all of it anew."""

DRAIN_SECONDS = 120
"""A job's grace time after SIGTERM; TimeoutStopSec of wan-tpu.service is longer."""


# --- install ----------------------------------------------------------------------------------


def install(deployment: Deployment) -> None:
    """Puts one commit on every worker; the service that runs goes on with its own.

    Raises:
        DeployError: no such commit, or a worker failed.
    """
    nodes = deployment.ready_nodes()
    repository = deployment.settings["repository"] or _origin()
    commit = _resolve(repository, deployment.settings["ref"], dry_run=deployment.dry_run)
    print(f"# commit {commit} of {repository}")
    # The first connection makes the ssh key and spreads it; at once, they would get in each
    # other's way.
    first = [Task(f"{nodes[0].name}/0", deployment.gcloud.ssh(nodes[0].name, 0, "true"))]
    deployment.must("first connection", first, quiet=True)
    script = deployment.script("install", repository, commit)
    deployment.must("install", deployment.worker_tasks(nodes, script))
    name = deployment.settings.name
    print(f"\nnext: deploy/wan-tpu-deploy start {name}{flags_again(deployment)}")


def _origin() -> str:
    """Where this checkout came from, as an address that a machine without keys can read."""
    try:
        url = _git("config", "--get", "remote.origin.url")
    except DeployError:
        raise DeployError("this checkout has no origin: give --repository URL") from None
    ssh = re.fullmatch(r"(?:ssh://)?git@([^:/]+)[:/](.+)", url)
    return f"https://{ssh[1]}/{ssh[2]}" if ssh else url


def _resolve(repository: str, ref: str, *, dry_run: bool) -> str:
    """One commit for all workers, so that a branch that moves meanwhile does not split them."""
    if not ref:
        commit = _git("rev-parse", "HEAD")
        if _git("status", "--porcelain"):
            print(f"# note: this checkout has changes that are not in {commit[:12]}")
        return commit
    if re.fullmatch(r"[0-9a-f]{40}", ref):
        return ref
    command = Command(("git", "ls-remote", "--exit-code", repository, ref, f"{ref}^{{}}"))
    if dry_run:
        print(command.render())
        return f"COMMIT_OF_{ref}"
    done = _run_git(command.argv)
    lines = done.stdout.split("\n")
    found = {name: commit for commit, _, name in (line.partition("\t") for line in lines) if name}
    # Of an annotated tag git also lists the commit behind it, which is what we want.
    for name in (f"refs/heads/{ref}", f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", ref):
        if name in found:
            return found[name]
    reason = done.stderr.strip() or "give all 40 digits of a commit"
    raise DeployError(f"{repository} has no branch or tag {ref!r}: {reason}")


def _run_git(argv: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise DeployError("git is not on PATH: install it, or give --ref with 40 digits") from None


def _git(*words: str) -> str:
    done = _run_git(("git", "-C", str(CHECKOUT), *words))
    if done.returncode != 0:
        raise DeployError(f"git {' '.join(words)} in {CHECKOUT} failed: {done.stderr.strip()}")
    return done.stdout.strip()


# --- start and stop -----------------------------------------------------------------------------


def start(
    deployment: Deployment, *, commit: str, is_open: bool, timeout: int, new_secret: bool
) -> None:
    """Starts an installed commit on every worker and waits until worker 0 of each slice is ready.

    Args:
        deployment: whose service.
        commit: the first digits of an installed commit, `latest` or `previous`.
        is_open: listen on every address; needs API keys.
        timeout: seconds until a slice counts as failed.
        new_secret: give the workers another secret, even where they have one.

    Raises:
        DeployError: a worker failed, the workers differ, or a slice did not get ready.
    """
    settings = deployment.settings
    if is_open and not settings["api-keys-file"]:
        raise DeployError(
            "--open lets others in, so it needs --api-keys-file FILE; make one with "
            "python -m server keys add NAME --file FILE"
        )
    nodes = deployment.ready_nodes()
    _send_files(deployment, nodes)
    if settings["bucket"]:
        source = f"{settings['bucket'].rstrip('/')}/{settings['model']}"
        copy = deployment.script("copy-model", source, _model(settings))
        deployment.must("copying the model", deployment.worker_tasks(nodes, copy))
    _drain(deployment, nodes)
    for node in nodes:
        _give_secret(deployment, node, anew=new_secret)
    variables = _variables(settings, is_open=is_open)
    extra = "env-file" if settings["env-file"] else "no-env-file"
    script = deployment.script("start", commit, extra, *variables)
    tasks = deployment.worker_tasks(nodes, script)
    deployment.must("start", tasks)
    if not deployment.dry_run:
        _check_same_commit(tasks)
    ready = deployment.script("ready", str(timeout))
    if not deployment.run(
        "wait until ready", deployment.worker_tasks(nodes, ready, first_only=True)
    ):
        status(deployment)
        raise DeployError(f"not ready; see  deploy/wan-tpu-deploy logs {settings.name}")
    for node in nodes:
        _share_compiled(deployment, node)
    _say_how_to_reach(deployment, nodes, is_open=is_open)


def _model(settings: Settings) -> str:
    """What the service is to load; a model of the bucket is a folder on the worker."""
    model = settings["model"]
    return f"{STATE}/models/{model}" if settings["bucket"] else model


def _variables(settings: Settings, *, is_open: bool) -> list[str]:
    """The service's settings, the same on every worker."""
    values = {
        "HOST": "0.0.0.0" if is_open else "127.0.0.1",
        "PORT": settings["port"],
        "MODEL": _model(settings),
        "LAYOUT": settings["layout"],
        "DRAIN_SECONDS": str(DRAIN_SECONDS),
        "API_KEYS_FILE": KEYS_ON_WORKER if settings["api-keys-file"] else None,
    }
    return [f"WAN_TPU_{key}={value}" for key, value in values.items() if value]


def _send_files(deployment: Deployment, nodes: list[Node]) -> None:
    """Secrets go over standard input: never in a command line, never in a log."""
    for key, place, owner in (
        ("env-file", "/etc/wan-tpu/extra.env", "root"),
        ("api-keys-file", KEYS_ON_WORKER, "wan-tpu"),
    ):
        if not deployment.settings[key]:
            continue
        path = pathlib.Path(deployment.settings[key])
        _check_local_file(key, path)
        _send(deployment, nodes, path, place, owner)


def _send(
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


def _give_secret(deployment: Deployment, node: Node, *, anew: bool) -> None:
    """Sees to it that all workers of a slice have one secret, that others do not know.

    It is made once and stays through restarts and other commits, until it is asked for anew or a
    worker is without it. It exists here for as long as it takes to send it, and is never said.
    """
    if not anew and _has_secret(deployment, node):
        return
    name = f"group-secret-{node.name}"
    if deployment.dry_run:
        print(f"\n# {name}: 64 random characters, gone from here once they are sent")
        _send(deployment, [node], pathlib.Path(name), SECRET_ON_WORKER, "wan-tpu")
        return
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / name
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_urlsafe(48) + "\n")
        _send(deployment, [node], file, SECRET_ON_WORKER, "wan-tpu")
    print(f"# the workers of {node.name} have a new secret between them")


def _has_secret(deployment: Deployment, node: Node) -> bool:
    """Whether all workers have one, and the same."""
    look = deployment.worker_tasks([node], deployment.script("secret"))
    deployment.must("looking for the secret", look, quiet=True)
    if deployment.dry_run:
        print("# assumed to answer: none, or not the same")
        return False
    found = {_facts(task).get("secret", "none") for task in look}
    return len(found) == 1 and "none" not in found


def _check_local_file(key: str, path: pathlib.Path) -> None:
    try:
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except FileNotFoundError:
        raise DeployError(f"{key}: {path} is not there") from None
    except OSError as error:
        raise DeployError(f"{key}: {path} cannot be read: {error.strerror}") from None
    if is_empty:
        raise DeployError(f"{key}: {path} is empty")


def _check_same_commit(tasks: list[Task]) -> None:
    """Workers on different commits would run different programs and hang."""
    commits: dict[str, list[str]] = {}
    for task in tasks:
        said = [line for line in task.lines if re.fullmatch("started [0-9a-f]{40}", line)]
        commit = said[-1].partition(" ")[2][:12] if said else "an unknown commit"
        commits.setdefault(commit, []).append(task.where)
    if len(commits) > 1:
        text = "; ".join(f"{commit} on {', '.join(where)}" for commit, where in commits.items())
        raise DeployError(
            f"the workers run different commits: {text}. Run install, then start again"
        )


def _share_compiled(deployment: Deployment, node: Node) -> None:
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


def _say_how_to_reach(deployment: Deployment, nodes: list[Node], *, is_open: bool) -> None:
    settings = deployment.settings
    port, again = settings["port"], flags_again(deployment, "port")
    print(f"\n{settings.name} is ready. From here:")
    for index, node in enumerate(nodes):
        which = f" --slice {index}" if len(nodes) > 1 else ""
        print(f"  deploy/wan-tpu-deploy tunnel {settings.name}{again}{which}")
        if is_open:
            address = node.addresses[0] or "ITS-ADDRESS"
            print(f"  or http://{address}:{port}, once the firewall lets you in")
    if is_open:
        print(
            f"  gcloud compute firewall-rules create {settings.name} --allow=tcp:{port} "
            "--target-tags=wan-tpu --source-ranges=YOUR.ADDRESS/32"
        )
    print(f"then http://127.0.0.1:{port} in a browser. To go back to what ran before:")
    again = flags_again(deployment, *START_SETTINGS) + (" --open" if is_open else "")
    print(f"  deploy/wan-tpu-deploy start {settings.name}{again} --commit previous")


def _drain(deployment: Deployment, nodes: list[Node]) -> None:
    """Stops each leader first: its running job needs the followers until it has ended."""
    tasks = deployment.worker_tasks(nodes, deployment.script("stop"), first_only=True)
    deployment.must(f"draining (the running job has {DRAIN_SECONDS} s to end)", tasks, quiet=True)


def stop(deployment: Deployment) -> None:
    """Stops the service everywhere; the slices stay, and cost.

    Raises:
        DeployError: a worker failed.
    """
    nodes = deployment.ready_nodes()
    _drain(deployment, nodes)
    tasks = deployment.worker_tasks(nodes, deployment.script("stop"))
    deployment.must("stop", tasks)
    price = describe_price(deployment, nodes[0])
    print(f"\nthe service is stopped; each slice goes on costing {price}")
    print(f"  deploy/wan-tpu-deploy delete {deployment.settings.name}  ends that")


# --- watch --------------------------------------------------------------------------------------


def status(deployment: Deployment) -> bool:
    """Prints slices, workers and service; True if everything is up and ready."""
    nodes = deployment.nodes()
    show_nodes(deployment, nodes)
    if not nodes:
        requests = deployment.requests()
        for request in requests:
            print(f"  queued resource {request.name}: {request.state} {request.detail}".rstrip())
        if not requests and not deployment.dry_run:
            print(f"nothing is labelled wan-tpu={deployment.settings.name} in {deployment.place}")
        return False
    up = [node for node in nodes if node.state == "READY"]
    tasks = deployment.worker_tasks(up, deployment.script("status"))
    reached = deployment.run("status", tasks, quiet=True, table=False, only_looks=True)
    if deployment.dry_run:
        return True
    facts = [_facts(task) for task in tasks]
    rows: list[Sequence[str]] = [("where", "unit", "restarts", "commit", "chips", "HBM", "disk")]
    for task, fact in zip(tasks, facts):
        unit = fact.get("unit", task.result)
        cells = [fact.get(key, "-") for key in ("restarts", "commit", "chips", "hbm", "disk")]
        cells[1] = cells[1][:12]
        rows.append((task.where, unit, *cells))
    print_table("workers", rows)
    leaders = [(task, fact) for task, fact in zip(tasks, facts) if task.where.endswith("/0")]
    ready = [_say_readiness(task.where, fact) for task, fact in leaders]
    running = all(fact.get("unit") == "active/running" for fact in facts)
    return reached and running and all(ready) and len(up) == len(nodes)


def _facts(task: Task) -> dict[str, str]:
    pairs = (line.partition("=") for line in task.lines)
    return {key: value for key, equals, value in pairs if equals and key.isalpha()}


def _say_readiness(where: str, fact: dict[str, str]) -> bool:
    try:
        answer = json.loads(fact.get("readyz", ""))
    except ValueError:
        print(f"  {where}: no service answers")
        return False
    is_ready = answer.get("status") == "ready"
    missing = "; ".join(answer.get("missing", [])) or answer.get("status", "?")
    queue = fact.get("queue", "").partition(".")[0] or "?"
    print(f"  {where}: {'ready' if is_ready else 'not ready: ' + missing}; {queue} jobs wait")
    return is_ready


def logs(deployment: Deployment, *, worker: Optional[int], lines: int, follow: bool) -> None:
    """Shows the service's journal of every worker, or of one.

    Raises:
        DeployError: a worker failed.
    """
    words = ["sudo journalctl --unit=wan-tpu --no-pager --output=short-iso", f"--lines={lines}"]
    command = " ".join(words + (["--follow"] if follow else []))
    tasks = deployment.worker_tasks(
        deployment.ready_nodes(),
        lambda node, index: deployment.gcloud.ssh(node.name, index, command),
    )
    if worker is not None:
        tasks = [task for task in tasks if task.where.endswith(f"/{worker}")]
    if not tasks:
        raise DeployError(f"there is no worker {worker}; they are counted from 0")
    if not deployment.run("logs", tasks, table=False, only_looks=True):
        raise DeployError("the logs of at least one worker are missing")


# --- reach --------------------------------------------------------------------------------------


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
    part = to / f"{path.name}.tar.part"
    pack = deployment.script("pack", str(path), stdout=part)
    copy = deployment.worker_tasks([node], pack, first_only=True)
    unpack = Command(("tar", "-xf", str(part), "-C", str(to)))
    if deployment.dry_run:
        deployment.run("fetch", copy)
        print(unpack.render())
        return
    _make_folder(to, part)
    try:
        if not deployment.run("fetch", copy, quiet=True, table=False):
            raise DeployError(f"{path} could not be copied from worker 0 of {node.name}")
        if subprocess.call(unpack.argv) != 0:
            raise DeployError(f"what came from {node.name} could not be unpacked into {to}")
    finally:
        part.unlink(missing_ok=True)
    print(to / path.name)


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
