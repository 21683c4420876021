"""A whole fleet of real processes on loopback, and what must be true of it once it is quiet."""

import asyncio
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import signal

import httpx
import openai
import sqlalchemy as sa
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from server.files.media import FILE_NAMES
from server.keys import add_key
from tests.server.running import SCRIPTED, RunningServer
from wan_tpu.checkpoints.models import WAN_TINY_TI2V
from wan_tpu.fleet.address import parse_fleet
from wan_tpu.storage.bucket import open_bucket

OWNERS = ("ann", "bob", "eve")
HEARTBEAT_SECONDS = 3


class InTurn(httpx.BaseTransport):
    """Sends each request to the next server, as a load balancer does."""

    def __init__(self, urls):
        self._urls = itertools.cycle([httpx.URL(url) for url in urls])
        self._transport = httpx.HTTPTransport()

    def handle_request(self, request):
        url = next(self._urls)
        request.url = request.url.copy_with(host=url.host, port=url.port)
        return self._transport.handle_request(request)

    def close(self):
        self._transport.close()


class Stores:
    """What a fleet stands on: a namespace, a database and a folder of a bucket of its own.

    Attributes:
        settings: of all its servers, without their prefix.
        environment: of all its servers.
        keys: API keys by owner.
    """

    def __init__(self, folder, temporal, s3, database):
        self.folder, self.database = folder, database
        self.environment = s3.environment | {"SCRIPTED_ENGINE_MARKS": str(folder)}
        self.settings = {
            "fleet": temporal.new_fleet(),
            "files": f"{s3.url}/{folder.name}",
            "model": WAN_TINY_TI2V,
            "engine": SCRIPTED,
        }
        self.keys = {owner: add_key(folder / "keys", owner) for owner in OWNERS}

    def of_api(self, **settings):
        """Settings of a server of the API."""
        given = {
            "role": "api",
            "database_url": self.database,
            "api_keys_file": self.folder / "keys",
            "fleet_heartbeat_seconds": HEARTBEAT_SECONDS,
            "trash_seconds": 0.1,
            "allowed_hosts": "fleet",
        }
        return self.settings | given | settings

    def of_slice(self, name, **settings):
        """Settings of a slice."""
        return self.settings | {"role": "slice", "slice_name": name} | settings

    @contextlib.contextmanager
    def client(self, owner, urls, **given):
        """OpenAI's client, unmodified; its requests go to servers of the API in turn."""
        with openai.OpenAI(
            base_url="http://fleet/v1",
            api_key=self.keys[owner],
            http_client=httpx.Client(transport=InTurn(urls), timeout=60),
            **given,
        ) as client:
            yield client

    def sql(self, text, **values):
        """What a statement returns, as dictionaries."""
        engine = sa.create_engine(self.database, poolclass=sa.NullPool)
        with engine.begin() as connection:
            found = connection.execute(sa.text(text), values)
            return [dict(row) for row in found.mappings()] if found.returns_rows else []

    def row(self, job_id):
        (row,) = self.sql("SELECT * FROM jobs WHERE id = :id", id=job_id)
        return row

    def state(self, job_id):
        """State, starts that count, and slice."""
        row = self.row(job_id)
        return row["state"], row["attempts"], row["slice"]

    def objects(self):
        """Keys of all that the bucket has of jobs, and their bytes' SHA-256."""
        return asyncio.run(self._objects())

    async def _objects(self):
        bucket = open_bucket(self.settings["files"])
        keys = [stat.key for stat in await bucket.list("videos/")]
        return {key: hashlib.sha256(await bucket.get(key)).hexdigest() for key in keys}

    async def temporal(self):
        """A client of its namespace."""
        address = parse_fleet(self.settings["fleet"])
        return await Client.connect(address.target, namespace=address.namespace)

    def are_waiting(self, job_ids):
        """Whether all of these jobs wait for a slice."""
        if self.sql("SELECT 1 FROM jobs WHERE workflow_at IS NULL"):
            return False

        async def look():
            client = await self.temporal()
            handles = [client.get_workflow_handle(job_id) for job_id in job_ids]
            return await asyncio.gather(*(handle.describe() for handle in handles))

        return all(each.raw_description.pending_activities for each in asyncio.run(look()))

    def open_workflows(self):
        """Ids of jobs that are under way in Temporal."""

        async def look():
            client = await self.temporal()
            wanted = "ExecutionStatus = 'Running'"
            return [each.id async for each in client.list_workflows(wanted)]

        return asyncio.run(look())

    def is_known_to_temporal(self, job_id):
        async def look():
            client = await self.temporal()
            try:
                await client.get_workflow_handle(job_id).fetch_history()
            except RPCError as error:
                return error.status != RPCStatusCode.NOT_FOUND
            return True

        return asyncio.run(look())

    def left_over(self):
        """What a quiet fleet may not have, as sentences: objects that nobody knows or misses,
        notes that are not carried out, workflows under way."""
        rows = self.sql("SELECT * FROM jobs")
        objects = self.objects()
        wanted = {key: sha256 for row in rows for key, sha256 in _files_of(row).items()}
        known = {row["id"] for row in rows}
        found = [f"{key} is missing" for key in wanted.keys() - objects.keys()]
        for key, sha256 in objects.items():
            _, job_id, folder, *_ = key.split("/")
            if key in wanted:
                found += [f"{key} has other bytes"] if sha256 != wanted[key] else []
            elif folder != "uploads" or job_id not in known:
                found.append(f"{key} is nobody's")
        for table in ("deletions", "cancellations"):
            found += [f"{table}: {row}" for row in self.sql(f"SELECT * FROM {table}")]
        return found + [f"{each} is open" for each in self.open_workflows()]


def _files_of(row):
    """Keys and SHA-256 of a row's files."""
    if row["state"] != "completed":
        return {}
    metadata = json.loads(row["metadata"])
    folder = f"videos/{row['id']}/{metadata['start']}"
    return {
        f"{folder}/{name}": metadata["files"][variant]["sha256"].removeprefix("sha256:")
        for variant, name in FILE_NAMES.items()
    }


class WholeFleet(Stores):
    """Two servers of the API and slices, as processes.

    Attributes:
        apis: two.
        slices: by name.
    """

    def __init__(self, folder, temporal, s3, database, *, names, **settings):
        super().__init__(folder, temporal, s3, database)
        with concurrent.futures.ThreadPoolExecutor() as threads:
            apis = [
                threads.submit(self._start, f"api-{number}", self.of_api(**settings))
                for number in (1, 2)
            ]
            slices = {
                name: threads.submit(self._start, name, self.of_slice(name)) for name in names
            }
        self.apis = [each.result() for each in apis]
        self.slices = {name: each.result() for name, each in slices.items()}

    def _start(self, name, settings):
        return RunningServer(
            self.folder / name, environment=self.environment, **settings
        ).wait_ready()

    def urls(self):
        return [api.url for api in self.apis]

    def start_again(self, *servers):
        """Those that have ended, all at once."""
        ended = [server for server in servers if server.process.poll() is not None]
        with concurrent.futures.ThreadPoolExecutor() as threads:
            list(threads.map(RunningServer.start, ended))
        for server in ended:
            server.wait_ready()

    def freeze(self, name):
        """Stops a slice as SIGSTOP does; its engine goes on, and finishes what it is at."""
        self.slices[name].process.send_signal(signal.SIGSTOP)

    def thaw(self, name):
        self.slices[name].process.send_signal(signal.SIGCONT)

    def close(self):
        for server in (*self.apis, *self.slices.values()):
            server.stop()
