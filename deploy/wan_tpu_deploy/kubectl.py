"""kubectl's command lines for a run, and what its answers mean."""

import contextlib
import datetime
import json
import pathlib
import shutil
import subprocess
from typing import Any, Optional

from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.gcloud import Command
from wan_tpu_deploy.progress import Progress, read_progress
from wan_tpu_deploy.settings import Settings

STOP_SECONDS = 1200
"""Longer than the pod's terminationGracePeriodSeconds: it saves meanwhile."""


def namespace_of(settings: Settings) -> str:
    """Where in the cluster."""
    return settings["namespace"] or "wan-tpu"


class Kubectl:
    """Builds kubectl's command lines for one place."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def __call__(self, *words: str, stdin: Optional[pathlib.Path] = None) -> Command:
        """`kubectl WORDS`, in the context and namespace."""
        context = [f"--context={self._settings['context']}"] if self._settings["context"] else []
        place = [*context, f"--namespace={namespace_of(self._settings)}"]
        return Command(("kubectl", *place, *words), stdin)

    def jobset(self, name: str) -> Command:
        """The JobSet as JSON; nothing if there is none."""
        return self("get", "jobset", name, "--ignore-not-found", "--output=json")

    def pods(self, name: str) -> Command:
        """Its pods as JSON."""
        return self("get", "pods", _of(name), "--output=json")

    def progress(self, pod: str, folder: str) -> Command:
        """What a run says of itself; the chips are the run's."""
        words = ("env", "JAX_PLATFORMS=cpu", "wan-tpu", "train", "status", folder, "--json")
        return self("exec", pod, "--container=train", "--", *words)

    def delete(self, name: str) -> Command:
        """Ends the pods, which save, and then the JobSet."""
        words = ("--ignore-not-found", "--cascade=foreground", f"--timeout={STOP_SECONDS}s")
        return self("delete", "jobset", name, *words)

    def logs(
        self, name: str, lines: int, *, worker: Optional[int] = None, follow: bool = False
    ) -> Command:
        """What the pods say, or one of them."""
        index = "" if worker is None else f",batch.kubernetes.io/job-completion-index={worker}"
        flags = ["--container=train", "--prefix", f"--tail={lines}", "--max-log-requests=64"]
        return self("logs", f"{_of(name)}{index}", *flags, *(["--follow"] if follow else []))


def _of(name: str) -> str:
    return f"--selector=jobset.sigs.k8s.io/jobset-name={name}"


def check_installed() -> None:
    """Raises DeployError where there is no kubectl."""
    if shutil.which("kubectl") is None:
        raise DeployError(
            "kubectl is not on PATH: install it as kubernetes.io/docs/tasks/tools says, then "
            "gcloud container clusters get-credentials  brings the cluster's address"
        )


def must(what: str, command: Command, dry_run: bool) -> None:
    """Runs a command, or shows it.

    Raises:
        DeployError: it failed; it has said why.
    """
    if dry_run:
        print(f"\n# {what}\n{command.render()}")
        return
    print(f"# {what}", flush=True)
    with contextlib.ExitStack() as opened:
        stdin = opened.enter_context(command.stdin.open()) if command.stdin else subprocess.DEVNULL
        code = subprocess.call(command.argv, stdin=stdin)
    if code != 0:
        raise DeployError(f"{command.render()}\nfailed ({code})")


def read(command: Command) -> dict[str, Any]:
    """The object that kubectl answers; {} for nothing.

    Raises:
        DeployError: it failed.
    """
    done = subprocess.run(
        command.argv, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode != 0:
        raise DeployError(f"{command.render()}\n{done.stderr.strip() or done.stdout.strip()}")
    return json.loads(done.stdout) if done.stdout.strip() else {}


def read_pods(kubectl: Kubectl, name: str) -> list[dict[str, Any]]:
    """In the order of their index."""
    pods = read(kubectl.pods(name)).get("items", [])
    return sorted(pods, key=_index)


def _index(pod: dict[str, Any]) -> int:
    labels = pod["metadata"].get("labels", {})
    return int(labels.get("batch.kubernetes.io/job-completion-index", 0))


def phase_of(pod: dict[str, Any]) -> str:
    """One word or two: what the pod waits for says more than that it does."""
    state = pod.get("status", {})
    for container in (*state.get("initContainerStatuses", []), *state.get("containerStatuses", [])):
        waiting = container.get("state", {}).get("waiting", {}).get("reason")
        if waiting and waiting != "PodInitializing":
            return waiting
    for condition in state.get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return condition.get("reason", "Pending")
    return state.get("phase", "Unknown")


def describe_pods(pods: list[dict[str, Any]], jobset: dict[str, Any]) -> str:
    """What a run waits for, or that its pods run."""
    if not pods:
        is_waiting = jobset.get("spec", {}).get("suspend")
        return "waiting in Kueue's queue for chips" if is_waiting else "no pods yet"
    phases = [phase_of(pod) for pod in pods]
    counts = {phase: phases.count(phase) for phase in phases}
    return ", ".join(f"{count} pods {phase}" for phase, count in counts.items())


def why_failed(jobset: dict[str, Any]) -> str:
    """What JobSet says of a run that it will not start again."""
    for condition in jobset.get("status", {}).get("conditions", []):
        if condition.get("type") == "Failed":
            return condition.get("message", "Failed")
    return "Failed"


def folder_of(jobset: dict[str, Any]) -> str:
    """The run's folder in a pod, as the JobSet's command says."""
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    words = pod["containers"][0]["args"]
    return words[words.index("--output") + 1]


def began(pods: list[dict[str, Any]]) -> float:
    """Unix seconds at which the first of them did."""
    text = pods[0].get("status", {}).get("startTime") if pods else None
    if text is None:
        return float("inf")
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def read_run(
    kubectl: Kubectl, name: str, pods: list[dict[str, Any]], folder: str
) -> tuple[Optional[Progress], float]:
    """What pod 0 says of the run, and when it last wrote; None while it cannot."""
    if not pods or phase_of(pods[0]) != "Running":
        return None, 0.0
    command = kubectl.progress(pods[0]["metadata"]["name"], folder)
    done = subprocess.run(
        command.argv, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False
    )
    try:
        last = json.loads(done.stdout).get("last_line") or 0.0
    except ValueError:
        return None, 0.0
    fact = {"run": name, "trainer": "active/running", "training": done.stdout}
    return read_progress(fact), last
