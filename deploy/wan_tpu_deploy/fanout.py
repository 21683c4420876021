"""Runs one command on every worker at once: prefixes, retries, a table at the end.

Each worker has a gcloud of its own, not one `--worker=all` for all: exit codes stay apart, no
ssh-agent is needed, and one worker's trouble does not hide the others' output.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Optional

from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.gcloud import SSH_FAILED, Command
from wan_tpu_deploy.hints import find_hint

BACK_OFF_SECONDS = (5.0, 15.0, 45.0)
"""Pauses before another try after ssh itself failed; a command that failed is not tried again."""

CHATTER = ("SSH: Attempting to connect", "SCP: Attempting to connect", "Using ssh batch size")
"""Lines that gcloud says on every connection."""


@dataclasses.dataclass
class Task:
    """One command for one place.

    Attributes:
        where: what the output is prefixed with, for example `wan/2`.
        command: what is run.
        returncode: None until it has ended.
        tries: how often it was started.
        seconds: how long all tries took.
        lines: what it printed, for who reads it afterwards.
    """

    where: str
    command: Command
    returncode: Optional[int] = None
    tries: int = 0
    seconds: float = 0.0
    lines: list[str] = dataclasses.field(default_factory=list)

    @property
    def result(self) -> str:
        """One word or two for the table."""
        if self.returncode == 0:
            return "ok"
        if self.returncode is None:
            return "interrupted"
        return "no ssh" if self.returncode == SSH_FAILED else f"failed ({self.returncode})"

    @property
    def last_words(self) -> str:
        """The line that says most: gcloud's error, or the last."""
        errors = [line for line in self.lines if line.startswith(("ERROR:", "error:"))]
        return (errors or self.lines or [""])[-1]

    @property
    def error(self) -> str:
        """gcloud's own words about what went wrong; a worker's words only after an ERROR."""
        lines = self.lines[-20:]
        if self.command.is_on_a_worker:
            starts = [i for i, line in enumerate(lines) if line.startswith("ERROR:")]
            lines = lines[starts[0] :] if starts else []
        return "\n".join(lines)


class FanOut:
    """Runs tasks at once and talks about them."""

    def __init__(self, *, quiet: bool = False):
        """Takes whether to show a task's output only if it fails."""
        self._quiet = quiet
        self._processes: dict[str, subprocess.Popen] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._cannot_say: Optional[OSError] = None

    def run(self, tasks: list[Task]) -> bool:
        """Runs all; True if every one ended well. Prints no table: `print_table` does.

        Raises:
            KeyboardInterrupt: Ctrl-C, after every gcloud here was ended.
            DeployError: standard output takes no more; every gcloud here was ended.
        """
        threads = [threading.Thread(target=self._run_task, args=(task,)) for task in tasks]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
                    if self._cannot_say is not None:
                        self._stop()
        except KeyboardInterrupt:
            self._stop()
            for thread in threads:
                thread.join()
            raise
        if self._cannot_say is not None:
            raise DeployError(f"standard output cannot be written: {self._cannot_say.strerror}")
        return all(task.returncode == 0 for task in tasks)

    def _run_task(self, task: Task) -> None:
        start = time.monotonic()
        for pause in (*(seconds * pace() for seconds in BACK_OFF_SECONDS), None):
            task.tries += 1
            returncode = self._run_once(task)
            if returncode != SSH_FAILED or pause is None or self._stopping.is_set():
                break
            self._say(task.where, f"ssh failed; trying again in {pause:g} s")
            self._stopping.wait(pause)
        task.returncode = None if self._stopping.is_set() and returncode else returncode
        task.seconds = time.monotonic() - start
        if self._quiet and returncode and not self._stopping.is_set():
            for line in task.lines:
                self._say(task.where, line)

    def _run_once(self, task: Task) -> int:
        if self._stopping.is_set():
            return SSH_FAILED
        task.lines.clear()
        process = start_process(task.command)
        with self._lock:
            self._processes[task.where] = process
            if self._stopping.is_set():
                process.terminate()
        ended = not task.command.end_mark
        stream = process.stderr if task.command.stdout else process.stdout
        assert stream is not None
        for line in stream:
            text = line.rstrip()
            if text == task.command.end_mark:
                ended = True
            elif not text.startswith(CHATTER):
                task.lines.append(text)
                if not self._quiet:
                    self._say(task.where, text)
        returncode = process.wait()
        return SSH_FAILED if returncode == 0 and not ended else returncode

    def _say(self, where: str, text: str) -> None:
        with self._lock:
            if self._cannot_say is None:
                try:
                    print(f"{where}: {text}", flush=True)
                except OSError as error:
                    self._cannot_say = error

    def _stop(self) -> None:
        self._stopping.set()
        with self._lock:
            for process in self._processes.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)


def start_process(command: Command) -> subprocess.Popen:
    """Starts a command in a session of its own, so that Ctrl-C reaches us first."""
    stdin = command.stdin.open("rb") if command.stdin else None
    stdout = command.stdout.open("wb") if command.stdout else None
    try:
        return subprocess.Popen(
            command.argv,
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE if stdout else subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    finally:
        for file in (stdin, stdout):
            if file is not None:
                file.close()


def print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Prints rows under each other; the first is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths))
        print("  " + line.rstrip())
    sys.stdout.flush()


def summarize(title: str, tasks: list[Task]) -> None:
    """Prints the table of what each task came to, and the errors with what they mean."""
    rows: list[Sequence[str]] = [("where", "result", "tries", "seconds", "last words")]
    for task in tasks:
        cells = (task.result, str(task.tries), f"{task.seconds:.0f}", task.last_words[:72])
        rows.append((task.where, *cells))
    print_table(title, rows)
    hints = {}
    for task in tasks:
        if task.returncode:
            hint = find_hint(task.error)
            if hint:
                hints.setdefault(hint, task.where)
    for hint, where in hints.items():
        print(f"  {where} -> {hint}")


def read_facts(task: Task) -> dict[str, str]:
    """The KEY=VALUE lines that a worker said."""
    pairs = (line.partition("=") for line in task.lines)
    return {key: value for key, equals, value in pairs if equals and key.isalpha()}


def say_what_was_left(tasks: list[Task]) -> None:
    """After Ctrl-C: who had finished, and where something may still run."""
    done = [task.where for task in tasks if task.returncode == 0]
    left = [task.where for task in tasks if task.returncode is None]
    print(f"\ninterrupted. Finished: {', '.join(done) or 'none'}", file=sys.stderr)
    if left:
        print(
            f"  not finished: {', '.join(left)}. What was started there may go on to its end; "
            "the same command again is harmless and waits for it",
            file=sys.stderr,
        )


def pace() -> float:
    """What every pause is multiplied with; tests set WAN_TPU_DEPLOY_PACE=0.01."""
    return float(os.environ.get("WAN_TPU_DEPLOY_PACE", "1"))
