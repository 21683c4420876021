"""Runs the real command with a recording gcloud on PATH."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = ROOT / "deploy" / "wan-tpu-deploy"
FAKE = pathlib.Path(__file__).with_name("fake_gcloud.py")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WHERE = ("--project", "my-project", "--zone", "us-east5-b")


class Cloud:
    """A machine with a fake gcloud, and a cloud behind it that says what the test wants."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.here = folder / "here"
        for path in (self.bin, self.here):
            path.mkdir(parents=True)
        self.tool("gcloud", f'exec {sys.executable} -I -S {FAKE} "$@"')
        self._answers: list[dict] = []
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder),
            "FAKE_GCLOUD": str(folder),
            "WAN_TPU_DEPLOY_PACE": "0.002",
        }

    def tool(self, name: str, script: str) -> None:
        """Puts a shell script on PATH."""
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def answer(self, match: str, *, times: int = -1, **answer) -> None:
        """What to do (out, err, exit, sleep, run, silent) on calls that match, this often."""
        self._answers.append({"match": match, "times": times, **answer})
        (self.folder / "answers.json").write_text(json.dumps(self._answers))

    def slices(self, *nodes: dict) -> None:
        """What `tpu-vm list` answers."""
        self.answer("tpu-vm list", out=json.dumps(nodes))

    def start(self, *words: str, shell_redirection: str = "", **options) -> subprocess.Popen:
        """Starts the command; with a redirection, as a shell does."""
        argv = (sys.executable, str(COMMAND), *words)
        if shell_redirection:
            argv = ("bash", "-c", f"{shlex.join(argv)} {shell_redirection}")
        return subprocess.Popen(
            argv,
            cwd=self.here,
            env={**os.environ, **self.environment},
            text=True,
            **options,
        )

    def run(self, *words: str, typed: str = "") -> subprocess.CompletedProcess:
        """Runs the command to its end."""
        pipe = subprocess.PIPE
        process = self.start(*words, stdin=pipe, stdout=pipe, stderr=pipe)
        out, err = process.communicate(typed, timeout=500)  # a loaded machine
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    @property
    def calls(self) -> list[dict]:
        """Every call of gcloud so far: argv and what came on standard input."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def lines(self) -> list[str]:
        """Every call as a shell would show it; calls made at once in no certain order."""
        return [shlex.join(("gcloud", *call["argv"])) for call in self.calls]


def node(name="wan", kind="v6e-16", workers=4, state="READY", **more) -> dict:
    """A TPU VM as gcloud describes it."""
    place = "projects/my-project/locations/us-east5-b"
    return {
        "name": f"{place}/nodes/{name}",
        "acceleratorType": kind,
        "state": state,
        "labels": {"wan-tpu": "wan"},
        "networkEndpoints": [
            {"ipAddress": f"10.0.0.{i}", "accessConfig": {"externalIp": f"34.1.2.{i}"}}
            for i in range(workers)
        ],
        **more,
    }


def request(name="wan", state="ACTIVE", label="wan", **more) -> dict:
    """A queued resource as gcloud describes it."""
    place = "projects/my-project/locations/us-east5-b"
    return {
        "name": f"{place}/queuedResources/{name}",
        "state": {"state": state, **more},
        "tpu": {"nodeSpec": [{"nodeId": name, "node": {"labels": {"wan-tpu": label}}}]},
    }


def ssh_line(worker: int, command: str, name: str = "wan") -> str:
    """The gcloud call that runs a command on a worker."""
    return shlex.join(
        (
            *("gcloud", "alpha", "compute", "tpus", "tpu-vm", "ssh", name),
            *("--project=my-project", "--zone=us-east5-b", f"--worker={worker}"),
            *("--ssh-flag=-oServerAliveInterval=30", "--tunnel-through-iap"),
            *(f"--command={command}", "--quiet"),
        )
    )


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path / "machine")
