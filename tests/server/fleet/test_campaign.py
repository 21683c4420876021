"""Sixty jobs of three keys while twenty times somebody is killed without a word.

Whoever ends is started again, as systemd or Kubernetes does. At the end each job that was accepted
has ended once, as its client was told, and nothing lies about. What is drawn follows from a seed:
`WAN_TPU_TEST_SEED`, or one of its own in the slow set.
"""

import collections
import concurrent.futures
import contextlib
import json
import os
import random
import secrets
import signal
import time

import httpx
import hypothesis
import openai
import psutil
import pytest
import sqlalchemy as sa

from tests.multihost.running import Supervised, clean_environment, free_port
from tests.server.fleet.servers import S3Server, TemporalServer
from tests.server.fleet.whole import OWNERS, Stores
from tests.server.pictures import picture
from tests.server.postgres import Postgres
from tests.server.running import PATIENCE_SECONDS, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning"),
]

STRIKES = 20
JOBS = ("plain",) * 12 + ("picture",) * 4 + ("cancel",) * 2 + ("delete",) * 2
"""Of each key."""

KINDS = ("slice", "engine", "follower", "API", "Temporal", "PostgreSQL", "S3")
CAMPAIGN_SECONDS = 3 * PATIENCE_SECONDS
"""Until the last job has ended, on a machine with other work."""


def draw_seed():
    given = os.environ.get("WAN_TPU_TEST_SEED")
    if given is not None:
        return int(given)
    return 1 if hypothesis.settings().derandomize else secrets.randbits(16)


class Member:
    """A server of the API, or the processes of a slice."""

    def __init__(self, stores, name, settings, *, processes=1):
        self.name = name
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        common = {"port": port, "min_free_bytes": 0, **settings}
        if processes > 1:
            common |= {"coordinator": f"127.0.0.1:{free_port()}", "processes": processes}
        self.processes = []
        for number in range(processes):
            mine = {"data_dir": stores.folder / name if number == 0 else "/nonexistent/follower"}
            mine |= {"process_id": number} if processes > 1 else {}
            given = {f"WAN_TPU_{k.upper()}": str(v) for k, v in (common | mine).items()}
            log = stores.folder / f"{name}-{number}.log"
            self.processes.append(Supervised(log, clean_environment(**given, **stores.environment)))

    def is_ready(self):
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False

    def pids(self, number=0):
        """Of a process and its engine; empty where there are none now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.processes[number].process.pid)
            engines = [c for c in process.children() if "server.engine.process" in c.cmdline()]
            return {each.pid for each in (process, *engines)}
        return set()

    def strike(self, *, number=0, engine=False):
        """Kills a process, or its engine's; returns what tells that it is whole again."""
        before = self.pids(number)
        own = self.processes[number].process.pid
        victims = before - {own} if engine else {own}
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        follows = self._follows(number)

        def is_whole():
            # Process 0 is ready until it notices that another is lost.
            is_back = number == 0 or self._follows(number) > follows
            return is_back and not victims & self.pids(number) and self.is_ready()

        return is_whole

    def _follows(self, number):
        """How often a process has begun to follow process 0."""
        return self.processes[number].log().count("ready: this process makes what process 0")

    def log(self):
        return "".join(each.log() for each in self.processes)

    def stop(self):
        for each in self.processes:
            each.end()


class Campaign:
    """The fleet, whoever strikes it, and what its clients were told.

    Attributes:
        told: by job's id, what its client wants of it: `plain`, `picture`, `cancel`, `delete`.
        struck: kind of each strike, and seconds until all was whole again.
    """

    def __init__(self, folder, temporal, s3, postgres, seed):
        self.temporal, self.s3, self.postgres = temporal, s3, postgres
        self.random = random.Random(seed)
        self.seed = seed
        self.stores = Stores(folder, temporal, s3, postgres.url)
        api = self.stores.of_api(max_attempts=50)
        self.apis = [Member(self.stores, f"api-{number}", api) for number in (1, 2)]
        self.slices = [
            Member(self.stores, name, self.stores.of_slice(name), processes=processes)
            for name, processes in (("one", 1), ("two", 1), ("pair", 2))
        ]
        self.told = {}
        self.struck = []
        self._whole = []
        self._crashed = set()

    @property
    def members(self):
        return (*self.apis, *self.slices)

    def ask_for_jobs(self, owner):
        """What one client does, whoever is away meanwhile."""
        drawn = random.Random(f"{self.seed} {owner}")
        urls = [api.url for api in self.apis]
        kinds = drawn.sample(JOBS, len(JOBS))
        mine = []
        with self.stores.client(owner, urls, max_retries=200) as client:
            for number, kind in enumerate(kinds):
                time.sleep(drawn.uniform(0, 6))
                body = {"num_inference_steps": drawn.randint(2, 15), "num_frames": 5}
                job = client.videos.create(
                    prompt="slow",
                    size="64x64",
                    extra_body=body,
                    extra_headers={"Idempotency-Key": f"{owner} {number}"},
                    **{"input_reference": ("a.png", picture(number), "image/png")}
                    if kind == "picture"
                    else {},
                )
                assert job.id not in self.told
                self.told[job.id] = kind
                mine.append(job.id)
                if kind in ("cancel", "delete"):
                    time.sleep(drawn.uniform(0, 4))
                    self._end(client, job.id, kind)
                    if kind == "delete":
                        mine.remove(job.id)
                if mine:
                    client.videos.retrieve(drawn.choice(mine))
                listed = {video.id for video in client.videos.list(limit=100)}
                assert listed == set(mine), "the list has all that was accepted, and nothing else"

    def _end(self, client, job_id, kind):
        if kind == "delete":
            # Asked again because the answer was lost, it is gone.
            with contextlib.suppress(openai.NotFoundError):
                client.videos.delete(job_id)
            return
        try:
            client.post(f"/videos/{job_id}/cancel", cast_to=object)
        except openai.ConflictError as error:
            if "is completed already" in error.message:
                self.told[job_id] = "plain"

    def strike(self):
        """Twenty times, each kind at least twice."""
        kinds = [*KINDS, *KINDS, *self.random.choices(KINDS, k=STRIKES - 2 * len(KINDS))]
        self.random.shuffle(kinds)
        with concurrent.futures.ThreadPoolExecutor(STRIKES) as threads:
            for kind in kinds:
                time.sleep(self.random.uniform(1, 8))
                whole = self._strike(kind)
                began = time.monotonic()
                self._whole.append(threads.submit(self._wait_whole, kind, whole, began))
        for each in self._whole:
            each.result()

    def _wait_whole(self, kind, whole, began):
        wait_for(whole)
        self.struck.append((kind, time.monotonic() - began))

    def _strike(self, kind):
        match kind:
            case "slice":
                return self.random.choice(self.slices).strike()
            case "engine":
                return self._victim().strike(engine=True)
            case "follower":
                return self.slices[2].strike(number=1)
            case "API":
                return self.random.choice(self.apis).strike()
        server = {"Temporal": self.temporal, "PostgreSQL": self.postgres, "S3": self.s3}[kind]
        for each in self._whole:  # it may still be away from the last time
            each.result()
        getattr(server, "strike", server.kill)()
        away = self.random.uniform(0, 5)

        def is_whole():
            time.sleep(away)
            server.start()
            return wait_for(lambda: all(member.is_ready() for member in self.members))

        return is_whole

    def _victim(self):
        """A slice whose engine has not crashed at the job that it has: the second time counts."""
        rows = wait_for(self._running)
        for member in self.random.sample(self.slices, len(self.slices)):
            job = rows.get(member.name, "none")
            if job == "none" or job not in self._crashed:
                self._crashed.add(job)
                return member
        return self.slices[2]  # which is lost as a whole, and its engine's end is no crash

    def _running(self):
        with contextlib.suppress(sa.exc.OperationalError):
            rows = self.stores.sql("SELECT id, slice FROM jobs WHERE state = 'in_progress'")
            return {"nobody": "none"} | {row["slice"]: row["id"] for row in rows}
        return None

    def unfinished(self):
        rows = self.stores.sql("SELECT id, state FROM jobs WHERE finished_at IS NULL")
        return [(row["id"], row["state"]) for row in rows]

    def close(self):
        for member in self.members:
            member.stop()


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    with contextlib.ExitStack() as opened:
        backing = [
            opened.enter_context(contextlib.closing(make()))
            for make in (TemporalServer, S3Server, Postgres)
        ]
        backing[0].start()
        backing[1].start()
        for name, value in backing[1].environment.items():
            monkeypatch.setenv(name, value)
        yield opened.enter_context(
            contextlib.closing(Campaign(tmp_path, *backing, seed=draw_seed()))
        )


def test_whoever_is_killed_every_job_ends_once(campaign):
    print(f"seed {campaign.seed}")
    wait_for(lambda: all(member.is_ready() for member in campaign.members))
    with concurrent.futures.ThreadPoolExecutor() as threads:
        working = [threads.submit(campaign.ask_for_jobs, owner) for owner in OWNERS]
        campaign.strike()
        for each in working:
            each.result()
    wait_for(lambda: not campaign.unfinished(), CAMPAIGN_SECONDS)
    seconds = collections.defaultdict(list)
    for kind, took in campaign.struck:
        seconds[kind].append(round(took, 1))
    print(f"seconds until all was whole again: {dict(seconds)}")
    assert len(campaign.struck) == STRIKES

    stores, told = campaign.stores, campaign.told
    assert len(told) == len(OWNERS) * len(JOBS)
    rows = {row["id"]: row for row in stores.sql("SELECT * FROM jobs")}
    deleted = {job_id for job_id, kind in told.items() if kind == "delete"}
    assert rows.keys() == told.keys() - deleted
    starts = collections.Counter(row["attempts"] for row in rows.values())
    print(f"jobs by starts that count: {dict(starts)}")
    for job_id, row in rows.items():
        ended = (row["state"], row["error_code"])
        is_cancelled = told[job_id] == "cancel"
        assert ended == (("failed", "cancelled") if is_cancelled else ("completed", None)), row
        if not is_cancelled:
            assert json.loads(row["metadata"])["slice"] in ("one", "two", "pair")
    wait_for(lambda: not stores.left_over())
    # Temporal forgets what was under way when it has time.
    wait_for(
        lambda: not [each for each in deleted if stores.is_known_to_temporal(each)],
        CAMPAIGN_SECONDS,
    )
    for member in campaign.slices:
        assert not list((stores.folder / member.name / "scratch").iterdir())
    for member in campaign.members:
        assert "Traceback" not in member.log(), member.name
