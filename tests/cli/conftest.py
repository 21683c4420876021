"""The command line in processes of its own, or in this one where that would show no more."""

import os
import subprocess
import sys

import pytest

from wan_tpu.cli.main import main

COMMAND = [sys.executable, "-m", "wan_tpu.cli.main"]


@pytest.fixture(scope="session")
def environment():
    """No inherited device count."""
    return {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}


@pytest.fixture
def run(environment, tmp_path):
    """Runs a command in a folder of the test's; what it said as text."""

    def run(*arguments, env=None, **kwargs):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.run(
            [*COMMAND, *arguments],
            **(streams | kwargs),
            text=True,
            cwd=tmp_path,
            env=environment | (env or {}),
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def run_here(capsys, monkeypatch, tmp_path):
    """(exit code, standard output, standard error) of a command; starting Python takes seconds."""
    monkeypatch.chdir(tmp_path)
    # The command starts JAX for itself; this process has eight devices for its other tests.
    monkeypatch.setattr("wan_tpu.runtime.start", lambda **_: None)

    def run_here(*arguments: str) -> tuple[int | str | None, str, str]:
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse's own
            code = end.code
        return code, *capsys.readouterr()

    return run_here


@pytest.fixture
def refused(run_here):
    """The line that refuses a command, which has ended with 2 before anything but loading."""

    def refused(*arguments: str) -> str:
        code, output, error = run_here(*arguments)
        assert (code, output) == (2, "")
        *progress, line = error.strip().splitlines()
        assert all(each.endswith("] load") for each in progress)
        return line

    return refused
