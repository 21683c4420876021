"""The verb that trains: what goes to the slice, the start, going on when it is taken away."""

import dataclasses
import pathlib
import re
import sys
import tarfile
import tempfile
import time
from typing import Optional

from wan_tpu_deploy import service, slices
from wan_tpu_deploy.buckets import check_bucket
from wan_tpu_deploy.deployment import STATE, Deployment, Node
from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.fanout import Task, pace, read_facts
from wan_tpu_deploy.gcloud import Command
from wan_tpu_deploy.progress import Progress, read_progress
from wan_tpu_deploy.sending import FILE_SENT, check_local_file, give_secret, send, send_extra
from wan_tpu_deploy.slices import flags_again

SETTINGS = ("env-file",)
"""What `train` takes besides where the slice is and, to make it anew, how it is made."""

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
LARGEST_FOLDER_GB = 4
"""Of data that goes by ssh, to each worker; more belongs into a bucket."""

GONE = ("PREEMPTED", "TERMINATED")
"""States of a slice that will not come back by itself."""

WATCH_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Run:
    """What is to be trained, and where.

    Attributes:
        name: of the run.
        config: the local TOML file.
        data: a local folder, gs://BUCKET/FOLDER, or None for what the file says.
        output: gs://BUCKET/FOLDER or a folder on the workers for the run; None for one of worker 0.
    """

    name: str
    config: pathlib.Path
    data: Optional[str]
    output: Optional[str]

    @property
    def bucket(self) -> str:
        """The bucket of the run's folder, or ""."""
        return self.folder.split("/")[5] if self._is_in_bucket else ""

    @property
    def folder(self) -> str:
        """The run's folder, on every worker."""
        if self.output is None:
            return f"{STATE}/runs/{self.name}"
        path = self.output.rstrip("/")
        if not self._is_in_bucket:
            return path
        place = path[5:]
        return f"{STATE}/buckets/{place if '/' in place else f'{place}/{self.name}'}"

    @property
    def _is_in_bucket(self) -> bool:
        return bool(self.output and self.output.startswith("gs://"))


def make_run(
    config: pathlib.Path, *, name: Optional[str], data: Optional[str], output: Optional[str]
) -> Run:
    """A run, as far as it can be checked here.

    Raises:
        DeployError: no such file, or a name or place that cannot be one.
    """
    name = config.stem if name is None else name
    if not RUN_NAME.fullmatch(name):
        raise DeployError(
            f"the run's name is {name!r}; expected letters, digits, dots and hyphens, such as "
            "--run fox"
        )
    check_local_file("configuration", config)
    for flag, value in (("data", data), ("output", output)):
        if value and (re.search(r"[\s\"'\\$`;&|<>(){}*?!#]", value) or ".." in value.split("/")):
            raise DeployError(f"--{flag} is {value!r}: spaces, shell characters and .. are refused")
    if output is not None and not output.startswith(("gs://", "/")):
        raise DeployError(
            f"--output is {output!r}; expected gs://BUCKET/FOLDER, or the whole path of a folder "
            "on the workers, such as /mnt/shared/fox"
        )
    if data is not None and not data.startswith("gs://"):
        _check_folder(pathlib.Path(data))
    return Run(name, config, data, output)


def _check_folder(folder: pathlib.Path) -> None:
    """Refuses what is no folder, or more than ssh should carry."""
    if not folder.is_dir():
        raise DeployError(
            f"--data is {folder}, which is no folder here; expected one, or gs://BUCKET/FOLDER"
        )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LARGEST_FOLDER_GB * 10**9:
        raise DeployError(
            f"--data {folder} has {size / 10**9:.1f} GB, and goes by ssh to each worker up to "
            f"{LARGEST_FOLDER_GB}; put it into a bucket:  gcloud storage rsync --recursive "
            f"{folder} gs://BUCKET/FOLDER  and give --data gs://BUCKET/FOLDER"
        )


def train(deployment: Deployment, run: Run, *, commit: str, timeout: int) -> str:
    """Starts a run, or goes on with it, and waits for its first step.

    Args:
        deployment: of one slice.
        run: what is trained.
        commit: the first digits of an installed commit, `latest` or `previous`.
        timeout: seconds until the first step.

    Returns:
        The commit that trains.

    Raises:
        DeployError: a worker failed or differs from the others, or there was no step in time.
    """
    node = _one_slice(deployment)
    if run.bucket:
        check_bucket(deployment.gcloud, run.bucket, dry_run=deployment.dry_run)
    _say_what_is_lost(run, node)
    _prepare(deployment, node, run, commit)
    send_extra(deployment, [node])
    send(deployment, [node], run.config, f"{STATE}/training/{run.name}/config.toml", "wan-tpu")
    words = _bring_data(deployment, node, run)
    _drain(deployment, node)
    if node.num_workers > 1:
        give_secret(deployment, node, anew=False)
    extra = "env-file" if deployment.settings["env-file"] else "no-env-file"
    start = deployment.script(
        *("train", commit, "start", run.name, run.folder, extra),
        *(("--data", words) if words else ()),
    )
    tasks = deployment.worker_tasks([node], start)
    deployment.must("start", tasks)
    started = commit if deployment.dry_run else service.check_same_commit(tasks)
    ready = deployment.script("train", "running", "ready", str(timeout))
    if not deployment.run(
        "wait for the first step", deployment.worker_tasks([node], ready, first_only=True)
    ):
        service.status(deployment)
        raise DeployError(
            f"no step yet; see  deploy/wan-tpu-deploy logs {deployment.settings.name}"
        )
    _say_what_next(deployment, run)
    return started


def _one_slice(deployment: Deployment) -> Node:
    nodes = deployment.ready_nodes()
    if len(nodes) != 1:
        name = deployment.settings.name
        raise DeployError(f"a run trains on one slice, and {name} has {len(nodes)}")
    return nodes[0]


def _say_what_is_lost(run: Run, node: Node) -> None:
    """Where the checkpoints are; on several workers they must be in one place.

    Raises:
        DeployError: they would not.
    """
    if run.output is None and node.num_workers > 1:
        raise DeployError(
            f"{node.name} has {node.num_workers} workers, which keep a checkpoint together: give "
            "--output gs://BUCKET/FOLDER, or a folder that all of them have mounted"
        )
    if run.output is None and not node.data_disks:
        print(
            f"# note: the run is on the boot disk of {node.name} and goes with it"
            f"{', which spot capacity may at any moment' if node.spot else ''}: --output gs://... "
            "keeps it, or a slice with --data-disk"
        )


def _prepare(deployment: Deployment, node: Node, run: Run, commit: str) -> None:
    """Folders and bucket of each worker; worker 0 first, whose mark the others look for."""
    shared = node.num_workers > 1

    def prepare(node: Node, worker: int) -> Command:
        mark = ("find" if worker else "leave",) if shared else ()
        place = (run.name, run.folder, run.bucket or "-")
        return deployment.script("train", commit, "prepare", *place, *mark)(node, worker)

    tasks = deployment.worker_tasks([node], prepare)
    for some in filter(None, (tasks[:1], tasks[1:])):
        deployment.must("prepare", some, quiet=True)


def _bring_data(deployment: Deployment, node: Node, run: Run) -> str:
    """Puts the data on every worker; its folder there, or "" for what the configuration says."""
    if run.data is None:
        return ""
    folder = f"{STATE}/training/{run.name}/data"
    if run.data.startswith("gs://"):
        copy = deployment.script("copy-model", run.data.rstrip("/"), folder)
        deployment.must("copying the data", deployment.worker_tasks([node], copy))
        return folder
    with tempfile.TemporaryDirectory() as here:
        archive = pathlib.Path(f"{run.name}-data.tar" if deployment.dry_run else f"{here}/data.tar")
        if deployment.dry_run:
            print(f"\n# {archive}: {run.data} as one file")
        else:
            with tarfile.open(archive, "w") as out:
                out.add(run.data, arcname=".")
        new = f"{folder}.new"
        script = (
            f"umask 077; rm -rf {new}; mkdir {new}; tar -C {new} --no-same-owner -xf -; "
            f"chown -R wan-tpu: {new}; rm -rf {folder}; mv {new} {folder}; echo {FILE_SENT}"
        )
        tasks = deployment.worker_tasks(
            [node],
            lambda node, worker: deployment.gcloud.ssh(
                *(node.name, worker, f"sudo sh -ec '{script}'"), stdin=archive, end_mark=FILE_SENT
            ),
        )
        deployment.must(f"sending {run.data}", tasks, quiet=True)
    return folder


def _drain(deployment: Deployment, node: Node) -> None:
    """Ends what runs of this run; it is saved first. Worker 0 first, which the others wait for."""
    stop = deployment.script("train", "running", "stop")
    tasks = deployment.worker_tasks([node], stop)
    for some in filter(None, (tasks[:1], tasks[1:])):
        deployment.must("saving what runs", some, quiet=True)


def _say_what_next(deployment: Deployment, run: Run) -> None:
    name, again = deployment.settings.name, flags_again(deployment)
    print(f"\n{run.name} is being trained, in {run.output or run.folder}. From here:")
    print(f"  deploy/wan-tpu-deploy status {name}{again}")
    print(f"  deploy/wan-tpu-deploy fetch {name}{again} {run.name} --trained")
    print(f"  deploy/wan-tpu-deploy stop {name}{again}        # it is saved first")


# --- going on -----------------------------------------------------------------------------------


def keep_going(deployment: Deployment, run: Run, *, commit: str, timeout: int) -> None:
    """Watches until the run is done; makes the slice anew whenever it was taken away.

    Args:
        deployment: whose settings say how the slice is made.
        run: that has been started.
        commit: that trains.
        timeout: seconds from a start to its first step.

    Raises:
        DeployError: the run failed, or the slice cannot be made again.
    """
    values = {**deployment.settings.values, "ref": commit}
    deployment = Deployment(dataclasses.replace(deployment.settings, values=values), dry_run=False)
    said = ""
    while True:
        time.sleep(WATCH_SECONDS * pace())
        if _is_gone(deployment):
            print("\nthe slice was taken away: making it anew", flush=True)
            slices.delete(deployment, yes=True)
            slices.create(deployment)
            service.install(deployment)
            train(deployment, run, commit=commit, timeout=timeout)
            continue
        found = _look(deployment)
        if found is None:
            continue  # out of reach for a moment
        if found.describe() != said:
            said = found.describe()
            print(said, flush=True)
        if found.is_finished:
            name = f"{deployment.settings.name}{flags_again(deployment)}"
            print(
                f"  deploy/wan-tpu-deploy fetch {name} {run.name} --trained  brings it here; then"
            )
            print(f"  deploy/wan-tpu-deploy delete {name}  ends what it costs")
            return
        if not found.is_up:
            raise DeployError(f"{run.name} ended and stays down ({found.unit}); its log says why")


def _is_gone(deployment: Deployment) -> bool:
    nodes = deployment.nodes()
    return not nodes or any(node.state in GONE for node in nodes)


def _look(deployment: Deployment) -> Optional[Progress]:
    """What worker 0 says; None while it does not answer."""
    nodes = [node for node in deployment.nodes() if node.state == "READY"]
    look = deployment.worker_tasks(nodes, deployment.script("status"), first_only=True)
    if not look or not deployment.run("status", look, quiet=True, table=False, only_looks=True):
        print("worker 0 does not answer", file=sys.stderr)
        return None
    return _of_worker_0(look)


def _of_worker_0(look: list[Task]) -> Optional[Progress]:
    return read_progress(read_facts(look[0]))
