"""gcloud's command lines as values, and how one is run."""

import dataclasses
import json
import pathlib
import re
import shlex
import shutil
import subprocess
from typing import Any, Optional

from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.hints import explain
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

    @property
    def is_on_a_worker(self) -> bool:
        """Whether what it prints is a worker's, not gcloud's own."""
        return "ssh" in self.argv

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

    def disks(self, *words: str, flags: tuple[str, ...] = ()) -> Command:
        """`gcloud compute disks WORDS FLAGS`, in the deployment's project and zone."""
        place = [flag for flag in self._place() if words[0] != "list" or "zone" not in flag]
        zone = self._settings["zone"]
        place += [f"--zones={zone}"] if words[0] == "list" and zone else []
        return Command(("gcloud", "compute", "disks", *words, *place, *flags, "--quiet"))

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

    def describe_bucket(self, bucket: str) -> Command:
        """`gcloud storage buckets describe`, as JSON; buckets have no zone."""
        place = [flag for flag in self._place() if "zone" not in flag]
        words = ("storage", "buckets", "describe", f"gs://{bucket}")
        return Command(("gcloud", *words, *place, "--format=json", "--quiet"))

    def storage(self, *words: str) -> Command:
        """`gcloud storage WORDS`."""
        place = [flag for flag in self._place() if "zone" not in flag]
        return Command(("gcloud", "storage", *words, *place, "--quiet"))

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


def read_list(command: Command) -> list[dict[str, Any]]:
    """The objects that a `list` of gcloud answers.

    Raises:
        DeployError: the command failed, or answered something else.
    """
    items = _read_json(command, list)
    if not all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in items):
        raise DeployError(f"{command.render()}\nanswered a list of other things than resources")
    return items


def read_object(command: Command) -> dict[str, Any]:
    """The object that a `describe` of gcloud answers.

    Raises:
        DeployError: the command failed, or answered something else.
    """
    return _read_json(command, dict)


def _read_json(command: Command, kind: type) -> Any:
    done = subprocess.run(
        command.argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        error = explain(done.stderr.strip() or done.stdout.strip())
        raise DeployError(f"{command.render()}\n{error}")
    answer = _find_json(done.stdout, kind)
    if answer is None:
        said = f"{done.stdout}\n{done.stderr}".strip()[:300] or "nothing"
        raise DeployError(
            f"{command.render()}\nended well, but its answer is no JSON {kind.__name__}: {said}"
        )
    return answer


def _find_json(text: str, kind: type) -> Any:
    """The first value of that kind that begins a line: gcloud may print notices around it."""
    if kind is list and not text.strip():
        return []
    decoder = json.JSONDecoder()
    for match in re.finditer(r"^[ \t]*(?=[\[{])", text, re.MULTILINE):
        try:
            value, _ = decoder.raw_decode(text, match.end())
        except ValueError:
            continue
        if isinstance(value, kind):
            return value
    return None
