"""The fleet under measurement: real servers, and what each of them counts.

Two servers of the API; slices whose engine sleeps a fifth of a second a step, so that what grows is
the fleet and not the work of this machine.
"""

import asyncio
import collections
import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psutil
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from server.demo.backing import free_ports
from server.demo.fleet import Fleet
from server.jobs.job import State
from server.jobs.tables import jobs
from wan_tpu.errors import InputError, OutputError

ENGINE = "tests.server.scripted_engine"
STEP_SECONDS = 0.2
"""Of a job with the prompt `slow`."""

APIS = 2
PATIENCE_SECONDS = 300.0
LOOK_SECONDS = 0.2
LAG_SECONDS = 2.5
"""After which Temporal shows all that it has counted."""

AT_ONCE = 16
NAMESPACE = "default"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One job that was made; times are unix seconds of this machine.

    Attributes:
        slice: that made it.
        started: when Temporal gave it to the slice.
        handed_in: when Temporal had the slice's result.
        recorded: when its last row was written.
        engine_seconds: that the engine took, over all its stages.
    """

    slice: str
    started: float
    handed_in: float
    recorded: float
    engine_seconds: float


class MeasuredFleet:
    """A fleet that runs.

    Attributes:
        fleet: its processes.
        ports: of the servers of the API.
    """

    def __init__(self, fleet: Fleet):
        """Starts the servers behind it, and those of its API.

        Raises:
            BackingError: one of them does not start.
        """
        self.fleet = fleet
        self.ports = free_ports(APIS)
        self._own_commits = 0
        self._slices: dict[str, subprocess.Popen[bytes]] = {}
        self._names = iter(f"slice-{number}" for number in range(1, 10_000))
        fleet.environment |= {
            "WAN_TPU_ENGINE": f"{ENGINE}:ScriptedEngine",
            "WAN_TPU_MAX_WORK": "1000",
            "WAN_TPU_MAX_QUEUED_JOBS": "100000",
            "WAN_TPU_MAX_QUEUED_JOBS_PER_KEY": "100000",
            "WAN_TPU_MAX_REQUESTS_PER_SECOND": "100000",
        }
        for backing in fleet.backing:
            backing.start()
        address = fleet.postgres.url.replace("postgresql:", "postgresql+psycopg:")
        self.database = sa.create_engine(address, isolation_level="AUTOCOMMIT")
        self._apis = [fleet.add_api(port) for port in self.ports]
        self.wait(lambda: fleet.ask("/readyz"))

    @property
    def num_slices(self) -> int:
        """That were started and not ended."""
        return len(self._slices)

    def have(self, number: int) -> None:
        """Has so many slices, all of them ready."""
        while len(self._slices) > number:
            name, slice_ = self._slices.popitem()
            slice_.send_signal(signal.SIGTERM)
            slice_.wait()
        while len(self._slices) < number:
            name = next(self._names)
            self._slices[name] = self.fleet.add_slice(name)
        self.wait(lambda: set(self._slices) <= set(self._idle()))

    def end(self, name: str, how: signal.Signals) -> float:
        """Ends a slice, and says when by this machine's clock."""
        slice_ = self._slices.pop(name)
        at = time.time()
        slice_.send_signal(how)
        return at

    def post(self, number: int, steps: int) -> list[str]:
        """Queues so many jobs of so many steps; returns their ids."""
        body = {"prompt": "slow", "num_inference_steps": steps}
        return [self.fleet.ask("/v1/videos", body)["id"] for _ in range(number)]

    def wait(self, condition: Any) -> None:
        """Returns once the condition holds; a server that does not answer yet has none.

        Raises:
            OutputError: a server has ended, or it never holds; with the servers' last words.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if condition():
                    return
            ended = [each for each in (*self._apis, *self._slices.values()) if each.poll()]
            if ended or time.monotonic() > deadline:
                raise OutputError(f"a server ended, or waits: {self.fleet.last_words()}")
            time.sleep(LOOK_SECONDS)

    def wait_finished(self, job_ids: Sequence[str]) -> None:
        """Returns once these jobs have ended; asks the table alone, which costs the fleet little.

        Raises:
            OutputError: one of them failed, or they never end.
        """
        count = sa.func.count()
        failed = count.filter(jobs.c.state == State.FAILED)
        made = count.filter(jobs.c.state == State.COMPLETED)
        wanted = sa.select(failed, made).where(jobs.c.id.in_(job_ids))

        def are_made() -> bool:
            self._own_commits += 1
            with self.database.connect() as connection:
                row = connection.execute(wanted).one()
            if row[0]:
                raise OutputError(f"{row[0]} jobs failed: {self.fleet.last_words()}")
            return row[1] == len(job_ids)

        self.wait(are_made)

    def made(self, job_ids: Sequence[str]) -> list[Made]:
        """How these jobs were made, by Temporal's histories and the table."""
        wanted = sa.select(jobs.c.id, jobs.c.finished_at, jobs.c.metadata)
        with self.database.connect() as connection:
            rows = connection.execute(wanted.where(jobs.c.id.in_(job_ids))).all()
        events = asyncio.run(self._histories([row.id for row in rows]))
        found = []
        for row, (started, handed_in) in zip(rows, events, strict=True):
            told = json.loads(row.metadata)
            made = Made(
                slice=told["slice"],
                started=started,
                handed_in=handed_in,
                recorded=row.finished_at,
                engine_seconds=sum(told["seconds"].values()),
            )
            found.append(made)
        return found

    def taken_up(self, job_id: str) -> list[tuple[float, str]]:
        """When slices said that they had taken a job up, and which, in order."""
        return asyncio.run(self._taken_up(job_id))

    def counts(self) -> dict[str, float]:
        """What the servers behind the fleet have counted so far, by name.

        Returns:
            `temporal NAME`: calls of this fleet that its frontend answered; `persistence NAME`:
            what these, and its own timers and queues, asked of its database; `s3 NAME`: requests;
            `postgres NAME`: of the fleet's own database, less what is asked here.
        """
        found: collections.defaultdict[str, float] = collections.defaultdict(float)
        for name, labels, value in _samples(self.fleet.temporal.metrics):
            if labels.get("namespace") != NAMESPACE:
                continue
            if name == "service_requests_total" and labels["service_name"] == "frontend":
                found[f"temporal {labels['operation']}"] += value
            elif name == "persistence_requests_total":
                found[f"persistence {labels['operation']}"] += value
        for name, labels, value in _samples(self.fleet.s3.metrics):
            if name == "SeaweedFS_s3_request_seconds_count":
                found[f"s3 {labels['type']}"] += value
        text = """SELECT xact_commit AS commits, tup_inserted AS inserts, tup_updated AS updates,
            (SELECT wal_bytes FROM pg_stat_wal) AS "wal bytes"
            FROM pg_stat_database WHERE datname = current_database()"""
        with self.database.connect() as connection:
            row = connection.execute(sa.text(text)).mappings().one()
        found |= {f"postgres {name}": float(value) for name, value in row.items()}
        self._own_commits += 1
        found["postgres commits"] -= self._own_commits
        return found

    def cpu_seconds(self) -> dict[str, float]:
        """Processor seconds so far, by what they went into."""
        fleet = self.fleet
        slices = [psutil.Process(each.pid) for each in self._slices.values()]
        return {
            "PostgreSQL": _cpu_of([psutil.Process(fleet.postgres.pid)], with_children=True),
            "Temporal": _cpu_of([psutil.Process(fleet.temporal.pid)]),
            "S3": _cpu_of([psutil.Process(fleet.s3.pid)]),
            "APIs": _cpu_of([psutil.Process(each.pid) for each in self._apis]),
            "slices": _cpu_of(slices),
            "engines": _cpu_of([child for each in slices for child in each.children()]),
        }

    def stop_slices(self) -> None:
        """Ends them at once."""
        _kill(self._slices.values())
        self._slices.clear()

    def stop_apis(self) -> None:
        """Ends the servers of the API at once; what is behind them goes on."""
        _kill(self._apis)
        self._apis.clear()

    async def is_waiting(self, job_id: str) -> bool:
        """Whether a job's workflow has asked for a slice."""
        client = await Client.connect(self.fleet.temporal.address)
        try:
            found = await client.get_workflow_handle(job_id).describe()
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise
            return False  # it is to be started yet
        return bool(found.raw_description.pending_activities)

    def _idle(self) -> list[str]:
        found = self.fleet.ask("/v1/slices")["data"]
        return [each["id"] for each in found if each["state"] == "ready"]

    async def _histories(self, job_ids: Sequence[str]) -> list[tuple[float, float]]:
        client = await Client.connect(self.fleet.temporal.address)
        places = asyncio.Semaphore(AT_ONCE)

        async def of(job_id: str) -> tuple[float, float]:
            async with places:
                history = await client.get_workflow_handle(job_id).fetch_history()
            ours = {
                event.event_id
                for event in history.events
                if event.activity_task_scheduled_event_attributes.activity_type.name == "generate"
            }
            started = max(
                event.event_time.ToNanoseconds()
                for event in history.events
                if event.activity_task_started_event_attributes.scheduled_event_id in ours
            )
            handed_in = max(
                event.event_time.ToNanoseconds()
                for event in history.events
                if event.activity_task_completed_event_attributes.scheduled_event_id in ours
            )
            return started / 1e9, handed_in / 1e9

        return await asyncio.gather(*(of(job_id) for job_id in job_ids))

    async def _taken_up(self, job_id: str) -> list[tuple[float, str]]:
        client = await Client.connect(self.fleet.temporal.address)
        history = await client.get_workflow_handle(job_id).fetch_history()
        found = []
        for event in history.events:
            told = event.workflow_execution_signaled_event_attributes
            if told.signal_name == "started":
                _, name = await client.data_converter.decode(told.input.payloads, [int, str])
                found.append((event.event_time.ToNanoseconds() / 1e9, name))
        return found


@contextlib.contextmanager
def running_fleet() -> Iterator[MeasuredFleet]:
    """A fleet of two servers of the API and no slice, on folders and ports of its own.

    Raises:
        InputError: this is no checkout: the engine that sleeps is one of the tests'.
        BackingError: a program is missing, or does not start.
    """
    if importlib.util.find_spec("tests") is None or importlib.util.find_spec(ENGINE) is None:
        raise InputError(f"this needs a checkout, and to be run in its folder, for {ENGINE}")
    with (
        tempfile.TemporaryDirectory(prefix="wan-tpu-fleet-") as folder,
        contextlib.closing(Fleet(pathlib.Path(folder), with_page=False)) as fleet,
    ):
        measured = MeasuredFleet(fleet)
        try:
            yield measured
        finally:
            measured.database.dispose()


def _kill(servers: Iterable["subprocess.Popen[bytes]"]) -> None:
    for server in servers:
        server.kill()
        server.wait()


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What was counted between, without what was not."""
    found = {name: value - before.get(name, 0.0) for name, value in after.items()}
    return {name: value for name, value in found.items() if value}


def per(counts: dict[str, float], number: float) -> dict[str, float]:
    """Each count of one of so many."""
    return {name: value / number for name, value in counts.items()}


def total(counts: dict[str, float], kind: str) -> float:
    """Of all counts of a kind, the first word of their names."""
    return sum(value for name, value in counts.items() if name.partition(" ")[0] == kind)


def _samples(address: str) -> Iterator[tuple[str, dict[str, str], float]]:
    with urllib.request.urlopen(address, timeout=30) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def _cpu_of(processes: Sequence[psutil.Process], *, with_children: bool = False) -> float:
    if with_children:
        processes = [*processes, *(child for each in processes for child in each.children())]
    times = [each.cpu_times() for each in processes]
    return sum(each.user + each.system for each in times)
