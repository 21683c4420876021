"""kill -9 at random moments: every accepted job ends, once, and nothing half is served or left.

Real processes, databases and files. Each strike aims at one moment of a job's life, from its being
accepted to its expiry, with a random delay in it; the engine is the real one or the scripted one,
which makes many more strikes a minute.
"""

import collections
import contextlib
import hashlib
import random
import re
import threading
import time

import httpx
import psutil
import pytest

from tests.server.running import SCRIPTED, RunningServer, wait_for

NUM_JOBS = 10
REAL, SCRIPTED_JOB = {"num_frames": 5, "num_inference_steps": 3}, {"num_inference_steps": 12}
MOMENTS = (
    "start",
    "accept",
    "denoise",
    "decode",
    "rename",
    "engine",
    "both",
    "delete",
    "cancel",
    "drain",
    "idle",
)
VARIANTS = ("video", "thumbnail", "spritesheet")


class Storm:
    """A server, the jobs it has accepted, and what its clients have seen of them.

    Attributes:
        accepted: idempotency keys and ids of the jobs that the server said it has taken.
        stopped: jobs that a client cancelled or deleted, whether or not there was an answer.
        deleted: those of which the server said that they are deleted.
        engine_kills: times the engine was killed; each may cost one job, with a code.
    """

    def __init__(self, folder, seed, *, scripted=False, **settings):
        self.random = random.Random(seed)
        self.scripted = scripted
        own = {"engine": SCRIPTED} if scripted else {"warm_up": "64x64x5"}
        self.server = RunningServer(
            folder, **{"max_attempts": 1000, "max_failures": 1000, **own, **settings}
        )
        self.accepted = {}
        self.stopped, self.deleted = set(), set()
        self.engine_kills = 0
        self.seen = Witness(self)

    def accept(self, index):
        """Creates a job as a careful client does: until there is an answer, by one key."""
        key = f"job {index}"
        fields = SCRIPTED_JOB if self.scripted else REAL
        body = {"prompt": f"a red circle moving right {index}", "seed": index, **fields}
        response = self.server.client.post(
            "/v1/videos", json=body, headers={"Idempotency-Key": key}
        )
        assert response.status_code == 200, response.text
        assert self.accepted.setdefault(key, response.json()["id"]) == response.json()["id"]

    def fill_queue(self):
        """Creates jobs until ten are unfinished."""
        unfinished = sum(v["status"] in ("queued", "in_progress") for v in self.videos())
        for _ in range(NUM_JOBS - unfinished):
            self.accept(len(self.accepted))

    def strike(self, moment):
        """Kills at one moment and starts the server again."""
        getattr(self, f"strike_at_{moment}")()
        if moment != "engine":
            self.server.kill()
            self.server.start()
        self.accept(len(self.accepted))  # again, if the last one had no answer

    def strike_at_start(self):
        """While it starts for the second time: loading what survived, or compiling."""
        self.server.kill()
        self.server.start()
        time.sleep(self.random.uniform(0, 2 if self.scripted else 8))

    def strike_at_accept(self):
        """Between a request and its answer."""
        delay = self.random.uniform(0, 0.1)
        threading.Timer(delay, self.server.process.kill).start()
        with contextlib.suppress(httpx.TransportError):
            while True:
                self.accept(len(self.accepted))
        self.server.process.wait()

    def strike_at_denoise(self):
        self.wait_running(lambda video: video["stage"] == "denoise")
        time.sleep(self.random.uniform(0, 0.5))

    def strike_at_decode(self):
        self.wait_running(lambda video: video["stage"] == "decode")
        time.sleep(self.random.uniform(0, 0.1))

    def strike_at_rename(self):
        """About when the files are given their place and the database is told."""
        folder = self.server.data_dir / "videos"
        before = set(folder.iterdir())
        partial = self.server.data_dir / "partial"
        early = self.random.random() < 0.5
        wait_for_soon(
            lambda: (
                set(folder.iterdir()) - before
                or (early and list(partial.glob("*/spritesheet.jpg")))
                or self.all_ended()
            )
        )
        time.sleep(self.random.uniform(0, 0.01))

    def strike_at_engine(self):
        """The engine's process alone; the others go on."""
        self.wait_running(lambda video: video["stage"] is not None)
        self.kill_engine()

    def strike_at_both(self):
        """The engine, and a moment later the service, or the other way round."""
        self.wait_running(lambda video: video["stage"] is not None)
        self.kill_engine()
        time.sleep(self.random.uniform(0, 0.1))

    def kill_engine(self):
        for pid in self.server.engine_pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        self.engine_kills += 1

    def strike_at_delete(self):
        """While the running job is being deleted."""

        def delete(name):
            if self.server.client.delete(f"/v1/videos/{name}").status_code == 200:
                self.deleted.add(name)

        self.stop_one(delete)

    def strike_at_cancel(self):
        """While the running job is being cancelled."""
        self.stop_one(lambda name: self.server.client.post(f"/v1/videos/{name}/cancel"))

    def stop_one(self, ask):
        running = self.wait_running(lambda video: video["status"] == "in_progress")
        if running == "all ended":
            return
        self.stopped.add(running["id"])
        threading.Timer(self.random.uniform(0, 0.05), self.server.process.kill).start()
        with contextlib.suppress(httpx.TransportError):
            ask(running["id"])

    def strike_at_drain(self):
        """SIGTERM first, as a supervisor does that loses its patience."""
        self.wait_running(lambda video: video["status"] == "in_progress")
        self.server.terminate()
        time.sleep(self.random.uniform(0, 0.5))

    def strike_at_idle(self):
        """At any time at all: between jobs, while files expire."""
        time.sleep(self.random.uniform(0, 3))

    def wait_running(self, condition):
        """Waits for a running job that meets the condition, or until no job is left."""
        return wait_for(
            lambda: (
                next(filter(condition, self.videos()), None) or (self.all_ended() and "all ended")
            )
        )

    def all_ended(self):
        return all(v["status"] in ("completed", "failed") for v in self.videos())

    def videos(self):
        return all_videos(self.server.client)


def all_videos(client):
    """Page after page."""
    videos, page = [], {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = {"after": page["last_id"]} if page["last_id"] else {}
        page = client.get("/v1/videos", params={"limit": 100, **after}).json()
        videos += page["data"]
    return videos


class Witness:
    """A client that never sleeps: downloads what is completed, notes what it was given."""

    def __init__(self, storm):
        self.storm = storm
        self.digests = collections.defaultdict(set)
        self.completed = {}
        self.ended = set()
        self.problems = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        choose = random.Random(1)
        while not self._stop.wait(0.02):
            try:
                # No TLS here; loading the certificates would take more than all the rest.
                url = self.storm.server.url
                with httpx.Client(base_url=url, timeout=30, verify=False) as client:
                    self._look(client, choose)
            except (httpx.TransportError, ValueError):
                continue  # it was just killed

    def _look(self, client, choose):
        videos = all_videos(client)
        for video in videos:
            name, ended = video["id"], self.completed.get(video["id"])
            now = (video["status"], video["completed_at"], video["metadata"].get("seconds"))
            if ended is not None and now != ended:
                self.problems.append(f"{name} was {ended} and is {now}")
            if video["status"] == "completed":
                self.completed[name] = now
            if video["status"] in ("completed", "failed"):
                self.ended.add(name)
        for video in choose.sample(videos, min(5, len(videos))):
            name, ended = video["id"], self.completed.get(video["id"])
            variant = choose.choice(VARIANTS)
            answer = client.get(f"/v1/videos/{name}/content?variant={variant}")
            gone = client.get(f"/v1/videos/{name}").status_code == 404
            if gone:
                continue  # it was deleted, or has expired
            if answer.status_code == 200:
                self.digests[name, variant].add(hashlib.sha256(answer.content).digest())
            elif answer.status_code != 409 or ended is not None:
                self.problems.append(f"{name} {variant}: {answer.status_code}")


def wait_for_soon(condition):
    """`wait_for` without a pause worth mentioning: the moments it looks for are short."""
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def check_end(storm, *, expires=False):
    """Every job ended as it must, and nothing else is left."""
    server = storm.server
    wait_for(storm.all_ended)
    videos = {video["id"]: video for video in storm.videos()}
    accepted = set(storm.accepted.values())
    assert videos.keys() <= accepted - storm.deleted
    assert expires or accepted - storm.stopped <= videos.keys()
    failed = {name for name, video in videos.items() if video["status"] == "failed"}
    assert len(failed - storm.stopped) <= storm.engine_kills
    assert {videos[name]["error"]["code"] for name in failed} <= {"engine_crashed", "cancelled"}
    for name in videos.keys() - failed:
        for variant in VARIANTS:
            answer = server.client.get(f"/v1/videos/{name}/content?variant={variant}")
            if answer.status_code == 404 and expires:
                continue
            assert answer.status_code == 200
            digest = hashlib.sha256(answer.content).digest()
            assert storm.seen.digests[name, variant] <= {digest}, (name, variant)
    assert storm.seen.problems == []
    ends = collections.Counter(
        re.findall(r'"job ended".* job=(\S+).* code=completed', server.log())
    )
    assert not [name for name, times in ends.items() if times > 1]
    if expires:
        assert accepted - storm.stopped <= ends.keys() | storm.seen.ended
        wait_for(lambda: not storm.videos())
    check_files(storm)


def check_files(storm):
    """The database's completed jobs have their files, and nobody else has any."""
    server = storm.server
    completed = {v["id"] for v in storm.videos() if v["status"] == "completed"}
    wait_for(lambda: {path.name for path in (server.data_dir / "videos").iterdir()} == completed)
    for name in completed:
        found = {path.name for path in (server.data_dir / "videos" / name).iterdir()}
        assert found == {"video.mp4", "thumbnail.webp", "spritesheet.jpg"}
    for folder in ("partial", "deleting"):
        path = server.data_dir / folder
        wait_for(lambda path=path: not path.exists() or not list(path.iterdir()))
    # What a kill has left of a job that was just deleted is nobody's any more.
    trash = server.data_dir / "trash"
    aside = {path.name.rpartition("-")[2] for path in trash.iterdir()} if trash.exists() else set()
    assert aside <= storm.stopped, aside
    assert "traceback" not in server.log()
    server.kill()


def storm_over(folder, moments, seed, **options):
    print(f"seed {seed}, moments {' '.join(moments)}, {options}")
    storm = Storm(folder, seed, **options)
    try:
        with storm.seen:
            for moment in moments:
                storm.fill_queue()
                storm.strike(moment)
            storm.fill_queue()
            wait_for(storm.all_ended)
        check_end(storm, expires="expiry_seconds" in options)
    finally:
        storm.server.stop()


def some_moments(seed, number):
    choose = random.Random(seed)
    return ["accept", *(choose.choice(MOMENTS) for _ in range(number - 1))]


def some_seed():
    return random.SystemRandom().randrange(2**32)


def test_a_few_kills(tmp_path):
    """The same three in every run of the tests; the slow ones draw theirs."""
    storm_over(tmp_path / "data", ("accept", "engine", "rename"), 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_of_the_real_engine(tmp_path, database):
    seed = some_seed()
    storm_over(tmp_path / "data", some_moments(seed, 12), seed, database_url=database)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_forty_kills(tmp_path, database):
    seed = some_seed()
    moments = some_moments(seed, 40)
    storm_over(tmp_path / "data", moments, seed, scripted=True, database_url=database)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_forty_kills_while_jobs_expire(tmp_path, database):
    seed = some_seed()
    options = {"scripted": True, "database_url": database, "expiry_seconds": 6}
    storm_over(tmp_path / "data", some_moments(seed, 40), seed, **options)
