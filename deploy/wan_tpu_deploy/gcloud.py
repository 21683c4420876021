"""gcloud's command lines as values, how one is run, and what its errors mean."""

import dataclasses
import json
import pathlib
import shlex
import shutil
import subprocess
from typing import Any, Optional

from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.settings import Settings

SSH_FAILED = 255
"""Exit code of ssh itself; every other one is the remote command's own."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One command line.

    Attributes:
        argv: program and arguments.
        stdin: file that it reads; None reads nothing.
        stdout: file that it writes; None is the terminal.
        end_mark: the line that it says in the end; without it exit code 0 means nothing. gcloud
            connects again by itself when ssh breaks, with what was left of standard input: a
            script that was read already comes as an empty one, and that succeeds.
    """

    argv: tuple[str, ...]
    stdin: Optional[pathlib.Path] = None
    stdout: Optional[pathlib.Path] = None
    end_mark: str = ""

    def render(self) -> str:
        """The command as a shell takes it."""
        text = shlex.join(self.argv)
        if self.stdin is not None:
            text += f" < {shlex.quote(_short(self.stdin))}"
        if self.stdout is not None:
            text += f" > {shlex.quote(_short(self.stdout))}"
        return text


def _short(path: pathlib.Path) -> str:
    """Relative to where the user is, where that is shorter to read."""
    here = pathlib.Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


class Gcloud:
    """Builds gcloud's command lines for one deployment."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def _place(self) -> list[str]:
        flags = ("project", "zone", "account")
        return [f"--{key}={self._settings[key]}" for key in flags if self._settings[key]]

    def tpus(self, *words: str, flags: tuple[str, ...] = (), track: str = "") -> Command:
        """`gcloud compute tpus WORDS FLAGS`, in the deployment's project and zone.

        Args:
            words: for example `tpu-vm`, `delete`, `wan`.
            flags: for example `--force`.
            track: `alpha` for what gcloud does not offer otherwise.
        """
        start = ["gcloud", *([track] if track else []), "compute", "tpus"]
        return Command((*start, *words, *self._place(), *flags, "--quiet"))

    def list_nodes(self) -> Command:
        """The TPU VMs of the deployment, as JSON."""
        label = f"--filter=labels.wan-tpu={self._settings.name}"
        return self.tpus("tpu-vm", "list", flags=(label, "--format=json"))

    def list_requests(self) -> Command:
        """Every queued resource of the zone, as JSON: they carry no labels of their own."""
        return self.tpus("queued-resources", "list", flags=("--format=json",))

    def ssh(
        self,
        node: str,
        worker: int,
        command: Optional[str] = None,
        *,
        stdin: Optional[pathlib.Path] = None,
        stdout: Optional[pathlib.Path] = None,
        end_mark: str = "",
        ssh_args: tuple[str, ...] = (),
    ) -> Command:
        """Runs a command on one worker; a connection that goes dead ends within 90 seconds."""
        way = {"iap": "--tunnel-through-iap", "internal": "--internal-ip"}.get(
            self._settings["ssh"]
        )
        flags = [f"--worker={worker}", "--ssh-flag=-oServerAliveInterval=30"]
        flags += [way] if way else []
        flags += [f"--command={command}"] if command else []
        # Only alpha can go through IAP.
        track = "alpha" if self._settings["ssh"] == "iap" else ""
        run = self.tpus("tpu-vm", "ssh", node, flags=tuple(flags), track=track)
        tail = ("--", *ssh_args) if ssh_args else ()
        return Command((*run.argv, *tail), stdin, stdout, end_mark)


def check_installed() -> None:
    """Raises DeployError with what to do where there is no gcloud."""
    if shutil.which("gcloud") is None:
        raise DeployError(
            "gcloud is not on PATH: install it as cloud.google.com/sdk/docs/install says, "
            "then run  gcloud auth login && gcloud components install alpha"
        )


def read_json(command: Command) -> Any:
    """What a command answers as JSON.

    Raises:
        DeployError: the command failed; holds its error and what it means.
    """
    done = subprocess.run(
        command.argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise DeployError(explain(f"{command.render()}\n{done.stderr.strip()}"))
    return json.loads(done.stdout or "[]")


HINTS = (
    (
        ("do not currently have an active account", "Reauthentication", "invalid_grant"),
        "not signed in: run  gcloud auth login",
    ),
    (
        ("Quota limit", "quota", "QUOTA_EXCEEDED"),
        "the project's quota for this TPU in this zone is used up or was never granted. See it and "
        "ask for more on console.cloud.google.com/iam-admin/quotas (filter: TPU); spot and queued "
        "flex-start draw on the preemptible quota, so --spot may fit; queued resources that failed "
        "or were suspended still hold quota:  deploy/wan-tpu-deploy delete NAME  finds them",
    ),
    (
        ("no more capacity", "Insufficient", "stockout", "RESOURCE_EXHAUSTED"),
        "the zone has none free now: add --queued to wait in line, or try --spot or another --zone",
    ),
    (
        ("has not been used in project", "SERVICE_DISABLED"),
        "the TPU API is off in this project: run  gcloud services enable tpu.googleapis.com",
    ),
    (
        ("PERMISSION_DENIED", "does not have permission"),
        "this account may not: it needs roles/tpu.admin in the project; check with "
        "gcloud config list  and give another with --account or --project",
    ),
    (
        ("[4003", "[4033", "start-iap-tunnel"),
        "ssh goes through IAP: allow 35.235.240.0/20 to port 22 in the firewall, enable "
        "iap.googleapis.com and have roles/iap.tunnelResourceAccessor; or use --ssh external",
    ),
    (
        ("already exists", "ALREADY_EXISTS"),
        "something of that name is there: see  deploy/wan-tpu-deploy status NAME,  or delete it",
    ),
    (
        ("attribute [project]", "property [project]"),
        "no project: give --project, or run  gcloud config set project PROJECT",
    ),
    (
        ("attribute [zone]", "property [zone]"),
        "no zone: give --zone, or run  gcloud config set compute/zone ZONE",
    ),
    (
        ("Invalid choice: 'alpha'", "components install alpha"),
        "run  gcloud components install alpha",
    ),
)
"""What gcloud says, and what to do about it; the first that fits counts."""


def explain(error: str) -> str:
    """gcloud's error with what to do about it."""
    for phrases, hint in HINTS:
        if any(phrase in error for phrase in phrases):
            return f"{error}\n  -> {hint}"
    return error
