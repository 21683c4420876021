"""Training on a cluster: a JobSet is applied, watched and deleted with kubectl.

What restarts it, queues it and gives it machines are JobSet and Kueue; this only says what is
wanted, and what can be seen.
"""

import argparse
import contextlib
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Optional

from wan_tpu_deploy.buckets import check_bucket
from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.fanout import pace, print_table
from wan_tpu_deploy.gcloud import Gcloud, read_object
from wan_tpu_deploy.jobset import (
    RUN_LABEL,
    JobSetRun,
    bucket_and_folder,
    export_job,
    find_chips,
    folder_in_pod,
    render,
    write,
)
from wan_tpu_deploy.kubectl import (
    Kubectl,
    began,
    describe_pods,
    folder_of,
    must,
    namespace_of,
    phase_of,
    read,
    read_pods,
    read_run,
    why_failed,
)
from wan_tpu_deploy.sending import check_local_file
from wan_tpu_deploy.settings import Settings

WHERE = ("context", "namespace")
"""Settings that say which cluster, and where in it."""

RUN_SETTINGS = ("topology", "queue", "image")
LOOK_SECONDS = 10.0

ONLY_ON_VMS = {
    "run": "--run: the run is called as NAME",
    "env_file": "--env-file",
    "keep_going": "--keep-going: JobSet and the cluster do that",
}
"""What `train` takes for slices of gcloud alone, by the name of its argument."""


def make_run(settings: Settings, args: argparse.Namespace) -> JobSetRun:
    """The run that `train` asks for, as far as it can be checked here.

    Raises:
        DeployError: something is missing, or cannot be meant.
    """
    for key, words in ONLY_ON_VMS.items():
        if getattr(args, key, None):
            raise DeployError(f"with --kubernetes there is no {words}")
    check_local_file("configuration", args.file)
    if not args.output:
        raise DeployError(
            "--output is not set: with --kubernetes a run is in a bucket that all its pods have, "
            "such as --output gs://my-bucket/runs/fox"
        )
    for url in (args.output, args.data):
        if url:
            bucket_and_folder(url)
    return JobSetRun(
        name=settings.name,
        config=args.file,
        output=args.output,
        data=args.data,
        image=settings.required("image"),
        chips=find_chips(settings["topology"] or settings["type"] or settings.required("topology")),
        queue=settings["queue"] or "wan-tpu-training",
        namespace=namespace_of(settings),
        spot=settings.switch("spot"),
    )


def train(settings: Settings, run: JobSetRun, *, timeout: int, dry_run: bool) -> None:
    """Starts a run, or goes on with it, and waits for its first step.

    Raises:
        DeployError: the cluster refuses it, it failed, or made no step in time.
    """
    kubectl = Kubectl(settings)
    check_bucket(Gcloud(settings), run.bucket, dry_run=dry_run)
    with _kustomization(run, dry_run) as folder:
        if dry_run or read(kubectl.jobset(run.name)):
            # A pod that runs saves first; the template of a JobSet cannot be changed.
            must("saving what runs", kubectl.delete(run.name), dry_run)
        must("start", kubectl("apply", f"--kustomize={folder}"), dry_run)
    _wait(kubectl, run, timeout, dry_run)
    again = f"{settings.name} --kubernetes"
    print(f"\n{run.name} is being trained, in {run.output}. From here:")
    print(f"  deploy/wan-tpu-deploy status {again}")
    print(f"  deploy/wan-tpu-deploy fetch {again} {run.output} --trained --image {run.image}")
    print(f"  deploy/wan-tpu-deploy stop {again}        # it is saved first")


@contextlib.contextmanager
def _kustomization(run: JobSetRun, dry_run: bool) -> Iterator[pathlib.Path]:
    """A folder that kubectl applies; in a dry run one that is only shown."""
    if dry_run:
        folder = pathlib.Path(f"{run.name}-kustomization")
        print(f"\n# {folder}/run.toml is {run.config}; {folder}/kustomization.yaml:")
        text = render(run, "../deploy/kubernetes/overlays/training/run")
        print("".join(f"#   {line}\n" for line in text.splitlines()), end="")
        yield folder
        return
    with tempfile.TemporaryDirectory() as folder:
        write(run, pathlib.Path(folder))
        yield pathlib.Path(folder)


def _wait(kubectl: Kubectl, run: JobSetRun, timeout: int, dry_run: bool) -> None:
    """Waits for the first step since the pods began; says what happens meanwhile.

    Raises:
        DeployError: the run ended, or there was no step in time.
    """
    if dry_run:
        print(f"\n# wait for the first step\n{kubectl.pods(run.name).render()}")
        print(kubectl.progress("POD", run.folder).render())
        return
    begin, said = time.monotonic(), ""
    while time.monotonic() - begin < timeout * pace():
        jobset = read(kubectl.jobset(run.name))
        state = jobset.get("status", {}).get("terminalState", "")
        pods = read_pods(kubectl, run.name)
        progress, last_line = read_run(kubectl, run.name, pods, run.folder)
        if state == "Failed":
            subprocess.call(kubectl.logs(run.name, 20).argv)
            raise DeployError(f"{run.name} ended and stays down: {why_failed(jobset)}")
        if state == "Completed" or (progress and last_line >= began(pods)):
            print(progress.describe() if progress else f"{run.name} is done")
            return
        words = describe_pods(pods, jobset)
        words += f": {progress.stage}" if progress and progress.stage else ""
        if words != said:
            print(words, flush=True)
        said = words
        time.sleep(LOOK_SECONDS * pace())
    raise DeployError(
        f"no step after {timeout} s; see  deploy/wan-tpu-deploy logs {run.name} --kubernetes"
    )


# --- the other verbs ------------------------------------------------------------------------------


def status(settings: Settings, *, dry_run: bool) -> bool:
    """Prints the pods and how far the run is; True if it makes steps, or has made all."""
    kubectl, name = Kubectl(settings), settings.name
    if dry_run:
        looks = kubectl.jobset(name), kubectl.pods(name), kubectl.progress("POD", "FOLDER")
        print(*(look.render() for look in looks), sep="\n")
        return True
    jobset = read(kubectl.jobset(name))
    if not jobset:
        print(f"there is no JobSet {name} in the namespace {namespace_of(settings)}")
        return False
    pods = read_pods(kubectl, name)
    rows = [("pod", "state", "node", "restarts of the run")]
    restarts = str(jobset.get("status", {}).get("restarts", 0))
    for pod in pods:
        node = pod.get("spec", {}).get("nodeName", "-")
        rows.append((pod["metadata"]["name"], phase_of(pod), node, restarts))
    print_table("pods", rows)
    progress, _ = read_run(kubectl, name, pods, folder_of(jobset))
    state = jobset.get("status", {}).get("terminalState", "")
    if progress is not None:
        print(f"  {progress.describe()}")
        return progress.is_well
    print(f"  {name}: {state or describe_pods(pods, jobset)}")
    return state == "Completed"


def logs(
    settings: Settings, *, worker: Optional[int], lines: int, follow: bool, dry_run: bool
) -> None:
    """Shows what the pods say, or one of them.

    Raises:
        DeployError: kubectl failed.
    """
    command = Kubectl(settings).logs(settings.name, lines, worker=worker, follow=follow)
    must("logs", command, dry_run)


def stop(settings: Settings, *, dry_run: bool) -> None:
    """Ends the run, which is saved first; `train` again goes on.

    Raises:
        DeployError: kubectl failed, or it did not end.
    """
    kubectl = Kubectl(settings)
    must("saving", kubectl.delete(settings.name), dry_run)
    must(
        "its file",
        kubectl("delete", "configmap", f"--selector={RUN_LABEL}={settings.name}"),
        dry_run,
    )


def fetch(settings: Settings, what: str, to: pathlib.Path, *, timeout: int, dry_run: bool) -> None:
    """Brings what a run has learnt into a local folder: an adapter, or a model's folder.

    Args:
        settings: of the cluster.
        what: gs://BUCKET/FOLDER of the run.
        to: the local folder.
        timeout: seconds for making it of the last checkpoint.
        dry_run: whether to print the commands alone.

    Raises:
        DeployError: there is no such run, or a command failed.
    """
    kubectl, gcloud = Kubectl(settings), Gcloud(settings)
    bucket, folder = bucket_and_folder(what)
    name = f"{settings.name}-export"
    full = False
    if not dry_run:
        full = (
            read_object(gcloud.storage("cat", f"gs://{bucket}/{folder}/run.json")).get("kind")
            == "full"
        )
    result = f"results/{folder.rpartition('/')[2]}{'' if full else '.safetensors'}"
    job = export_job(
        name, image=settings.required("image"), folder=folder_in_pod(what),
        result=folder_in_pod(f"gs://{bucket}/{result}"), bucket=bucket,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(f"{name}.json") if dry_run else pathlib.Path(scratch, "job.json")
        if dry_run:
            print(f"\n# {file}:")
            print("".join(f"#   {line}\n" for line in job.splitlines()), end="")
        else:
            file.write_text(job, encoding="utf-8")
        gone = kubectl("delete", "job", name, "--ignore-not-found", "--cascade=foreground")
        must("an earlier one", gone, dry_run)
        must("export", kubectl("create", "--filename=-", stdin=file), dry_run)
    done = kubectl("wait", "--for=condition=complete", f"job/{name}", f"--timeout={timeout}s")
    if not dry_run and subprocess.call(done.argv) != 0:
        subprocess.call(kubectl("logs", f"job/{name}", "--tail=20").argv)
        raise DeployError(f"{what} could not be exported; job/{name} says why")
    if dry_run:
        print(f"\n# until it is made\n{done.render()}")
    else:
        to.mkdir(parents=True, exist_ok=True)
    must("copy", gcloud.storage("cp", "--recursive", f"gs://{bucket}/{result}", str(to)), dry_run)
    if not dry_run:
        print(to / pathlib.PurePosixPath(result).name)
