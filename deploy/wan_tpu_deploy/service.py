"""The verbs that work on the service of slices that are there: install, start, stop, watch."""

import json
import pathlib
import re
import subprocess
from collections.abc import Sequence
from typing import Optional

from wan_tpu_deploy.deployment import STATE, Deployment, Node
from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.fanout import Task, print_table, read_facts
from wan_tpu_deploy.gcloud import Command
from wan_tpu_deploy.progress import read_progress, unit_of
from wan_tpu_deploy.sending import KEYS_ON_WORKER, give_secret, send_files, share_compiled
from wan_tpu_deploy.settings import Settings
from wan_tpu_deploy.slices import describe_price, flags_again, show_nodes

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
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
    plain = deployment.script("install", repository, commit)
    with_disk = deployment.script("install", repository, commit, "data-disk")

    def script(node: Node, worker: int) -> Command:
        return (with_disk if node.data_disks else plain)(node, worker)

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
    send_files(deployment, nodes)
    if settings["bucket"]:
        source = f"{settings['bucket'].rstrip('/')}/{settings['model']}"
        copy = deployment.script("copy-model", source, _model(settings))
        deployment.must("copying the model", deployment.worker_tasks(nodes, copy))
    _drain(deployment, nodes, "service")
    for node in nodes:
        give_secret(deployment, node, anew=new_secret)
    variables = _variables(settings, is_open=is_open)
    extra = "env-file" if settings["env-file"] else "no-env-file"
    script = deployment.script("start", commit, extra, *variables)
    tasks = deployment.worker_tasks(nodes, script)
    deployment.must("start", tasks)
    if not deployment.dry_run:
        check_same_commit(tasks)
    ready = deployment.script("ready", str(timeout))
    if not deployment.run(
        "wait until ready", deployment.worker_tasks(nodes, ready, first_only=True)
    ):
        status(deployment)
        raise DeployError(f"not ready; see  deploy/wan-tpu-deploy logs {settings.name}")
    for node in nodes:
        share_compiled(deployment, node)
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


def check_same_commit(tasks: list[Task]) -> str:
    """The commit that the workers started: on different ones they would hang.

    Raises:
        DeployError: they differ.
    """
    commits: dict[str, list[str]] = {}
    for task in tasks:
        said = [line for line in task.lines if re.fullmatch("started [0-9a-f]{40}", line)]
        commit = said[-1].partition(" ")[2] if said else "an unknown commit"
        commits.setdefault(commit, []).append(task.where)
    if len(commits) > 1:
        text = "; ".join(
            f"{commit if ' ' in commit else commit[:12]} on {', '.join(where)}"
            for commit, where in commits.items()
        )
        raise DeployError(
            f"the workers run different commits: {text}. Run install, then start again"
        )
    return next(iter(commits))


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


def _drain(deployment: Deployment, nodes: list[Node], *what: str) -> None:
    """Stops each leader first: its running job needs the followers until it has ended."""
    tasks = deployment.worker_tasks(nodes, deployment.script("stop", *what), first_only=True)
    deployment.must(f"draining (the running job has {DRAIN_SECONDS} s to end)", tasks, quiet=True)


def stop(deployment: Deployment) -> None:
    """Stops service and training everywhere; the slices stay, and cost.

    Raises:
        DeployError: a worker failed.
    """
    nodes = deployment.ready_nodes()
    _drain(deployment, nodes)
    tasks = deployment.worker_tasks(nodes, deployment.script("stop"))
    deployment.must("stop", tasks)
    price = describe_price(deployment, nodes[0])
    print(f"\nit is stopped; each slice goes on costing {price}")
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
    facts = [read_facts(task) for task in tasks]
    rows: list[Sequence[str]] = [("where", "unit", "restarts", "commit", "chips", "HBM", "disk")]
    for task, fact in zip(tasks, facts):
        unit = unit_of(fact, task.result)
        cells = [fact.get(key, "-") for key in ("restarts", "commit", "chips", "hbm", "disk")]
        cells[1] = cells[1][:12]
        rows.append((task.where, unit, *cells))
    print_table("workers", rows)
    leaders = [(task, fact) for task, fact in zip(tasks, facts) if task.where.endswith("/0")]
    ready = [_say_readiness(task.where, fact) for task, fact in leaders]
    return reached and all(ready) and all(map(_is_up, facts)) and len(up) == len(nodes)


def _is_up(fact: dict[str, str]) -> bool:
    """Whether a worker's service runs, or its run trains, or has nothing left to do."""
    run = read_progress(fact)
    return unit_of(fact, "") == "active/running" or bool(run and run.is_finished)


def _say_readiness(where: str, fact: dict[str, str]) -> bool:
    run = read_progress(fact)
    if run and fact.get("unit") != "active/running":
        print(f"  {where}: {run.describe()}")
        return run.is_well
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
    """Shows the journal of service and training of every worker, or of one.

    Raises:
        DeployError: a worker failed.
    """
    units = "--unit=wan-tpu --unit=wan-tpu-train"
    words = [f"sudo journalctl {units} --no-pager --output=short-iso", f"--lines={lines}"]
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
