"""The command line in processes of its own."""

import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "wan_tpu.cli.main"]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """One cache of compiled programs for all runs; no inherited device count."""
    keep = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return keep | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


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
