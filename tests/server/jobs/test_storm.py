"""kill -9 at random moments: every accepted job is completed, once, and nothing half is served.

Real files; the real engine, and the scripted one on each database for many kills in little time.
Each kill aims at one moment of a job's life, with a random delay in it.
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
import sqlalchemy as sa

from tests.server.running import SCRIPTED, RunningServer, wait_for

NUM_JOBS = 10
JOB = {"num_frames": 5, "num_inference_steps": 3}
MOMENTS = ("start", "accept", "denoise", "decode", "rename", "engine", "delete")
VARIANTS = ("video", "thumbnail", "spritesheet")


class Storm:
    """A server, the jobs it has accepted, and what its clients have seen of them.

    Attributes:
        accepted: idempotency keys and ids of the jobs that the server said it has taken.
        unwanted: ids that were to be deleted; those the server said are deleted, too.
        engine_kills: times the engine alone was killed; each may cost one job, with a code.
    """

    def __init__(self, folder, seed, **settings):
        self.random = random.Random(seed)
        settings = {"warm_up": "64x64x5", "max_attempts": 1000, "max_failures": 1000, **settings}
        self.server = RunningServer(folder, **settings)
        self.accepted = {}
        self.unwanted, self.deleted = set(), set()
        self.engine_kills = 0
        self.seen = Witness(self)

    def accept(self, index):
        """Creates a job as a careful client does: until there is an answer, by one key."""
        key = f"job {index}"
        body = {"prompt": f"a red circle moving right {index}", "seed": index, **JOB}
        response = self.server.client.post(
            "/v1/videos", json=body, headers={"Idempotency-Key": key}
        )
        assert response.status_code == 200, response.text
        if self.accepted.get(key) not in self.unwanted:
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
        time.sleep(self.random.uniform(0, 8))

    def strike_at_accept(self):
        """Between a request and its answer."""
        delay = self.random.uniform(0, 0.1)
        threading.Timer(delay, self.server.process.kill).start()
        with contextlib.suppress(httpx.TransportError):
            while True:
                self.accept(len(self.accepted))
        self.server.process.wait()

    def strike_at_delete(self):
        """Between a deletion and its answer: of a finished job, if there is one, and its files."""
        videos = sorted(self.videos(), key=lambda video: video["status"] != "completed")
        name = videos[0]["id"]
        self.unwanted.add(name)
        threading.Timer(self.random.uniform(0, 0.05), self.server.process.kill).start()
        with contextlib.suppress(httpx.TransportError):
            if self.server.client.delete(f"/v1/videos/{name}").status_code == 200:
                self.deleted.add(name)
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
        """The engine's process alone: its job fails with a code, the others go on."""
        self.wait_running(lambda video: video["stage"] is not None)
        for process in psutil.Process(self.server.process.pid).children():
            process.kill()
        self.engine_kills += 1

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
        return self.server.client.get("/v1/videos?limit=100").json()["data"]


class Witness:
    """A client that never sleeps: downloads what is completed, notes what it was given."""

    def __init__(self, storm):
        self.storm = storm
        self.digests = collections.defaultdict(set)
        self.completed = {}
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
                with httpx.Client(base_url=self.storm.server.url, timeout=30) as client:
                    self._look(client, choose)
            except (httpx.TransportError, ValueError):
                continue  # it was just killed

    def _look(self, client, choose):
        videos = client.get("/v1/videos?limit=100").json()["data"]
        for video in videos:
            name, ended = video["id"], self.completed.get(video["id"])
            now = (video["status"], video["completed_at"], video["metadata"].get("seconds"))
            if ended is not None and now != ended:
                self.problems.append(f"{name} was {ended} and is {now}")
            if video["status"] == "completed":
                self.completed[name] = now
        for video in choose.sample(videos, min(5, len(videos))):
            name, ended = video["id"], self.completed.get(video["id"])
            variant = choose.choice(VARIANTS)
            answer = client.get(f"/v1/videos/{name}/content?variant={variant}")
            if answer.status_code == 200:
                self.digests[name, variant].add(hashlib.sha256(answer.content).digest())
            elif name not in self.storm.unwanted and (
                answer.status_code != 409 or ended is not None
            ):
                self.problems.append(f"{name} {variant}: {answer.status_code}")


def wait_for_soon(condition):
    """`wait_for` without a pause worth mentioning: the moments it looks for are short."""
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def check_end(storm):
    """Every job ended as it must, and nothing else is left."""
    server, folder = storm.server, storm.server.data_dir
    wait_for(storm.all_ended)
    videos = {video["id"]: video for video in storm.videos()}
    expected_names = set(storm.accepted.values())
    assert expected_names - storm.unwanted <= videos.keys() <= expected_names - storm.deleted
    failed = [video for video in videos.values() if video["status"] == "failed"]
    assert len(failed) <= storm.engine_kills
    assert {video["error"]["code"] for video in failed} <= {"engine_crashed"}
    completed = videos.keys() - {video["id"] for video in failed}
    for name in completed:
        for variant in VARIANTS:
            answer = server.client.get(f"/v1/videos/{name}/content?variant={variant}")
            assert answer.status_code == 200
            digest = hashlib.sha256(answer.content).digest()
            assert storm.seen.digests[name, variant] <= {digest}, (name, variant)
    assert storm.seen.problems == []
    ends = collections.Counter(re.findall(r'"job ended" job=(\S+).* code=completed', server.log()))
    assert not [name for name, times in ends.items() if times > 1]
    server.kill()
    expected = {f"videos/{name}" for name in completed} | {
        f"videos/{name}/{file}"
        for name in completed
        for file in ("video.mp4", "thumbnail.webp", "spritesheet.jpg")
    }
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    database = {f"jobs.sqlite{suffix}" for suffix in ("", "-wal", "-shm", "-ballast")}
    own = {"lock", "wan-tpu.json", "partial", "videos", "deleting"}
    assert found - database == own | expected
    url = server.environment.get("WAN_TPU_DATABASE_URL", f"sqlite:///{folder / 'jobs.sqlite'}")
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT id, state FROM jobs")).all()
    engine.dispose()
    assert dict(map(tuple, rows)) == {name: video["status"] for name, video in videos.items()}


def storm_over(folder, moments, seed, **settings):
    print(f"seed {seed}, moments {' '.join(moments)}")
    storm = Storm(folder, seed, **settings)
    try:
        with storm.seen:
            for moment in moments:
                storm.fill_queue()
                storm.strike(moment)
            storm.fill_queue()
            wait_for(storm.all_ended)
        check_end(storm)
    finally:
        storm.server.stop()


def some_seed():
    return random.SystemRandom().randrange(2**32)


def test_a_few_kills(tmp_path):
    storm_over(tmp_path / "data", ("accept", "engine", "rename"), some_seed())


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    seed = some_seed()
    choose = random.Random(seed)
    moments = ["accept", *(choose.choice(MOMENTS) for _ in range(19))]
    storm_over(tmp_path / "data", moments, seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_kills_with_the_scripted_engine(tmp_path, database):
    seed = some_seed()
    choose = random.Random(seed)
    moments = ["accept", "delete", "rename", *(choose.choice(MOMENTS) for _ in range(27))]
    storm_over(tmp_path / "data", moments, seed, engine=SCRIPTED, database_url=database)
