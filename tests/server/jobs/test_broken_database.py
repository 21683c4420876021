"""A database that is frozen, stopped, replaced or loses its answers while jobs run.

Real servers, a real PostgreSQL, the scripted engine. Whatever happens, every answer is right or a
503 with Retry-After within seconds, the same key gives the same job, and every job that was
accepted ends.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest
import sqlalchemy as sa

from server.jobs.board import Board
from server.jobs.store import Store
from tests.server.broken_line import BrokenLine
from tests.server.jobs.test_board import make_job
from tests.server.postgres import Postgres, new_database
from tests.server.running import ROOT, SCRIPTED, RunningServer, wait_for

WITHIN_SECONDS = 20
"""For an answer, on a machine that has other things to do: twice the time that two calls take."""

QUICK = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def own_postgres():
    """One that nobody else uses."""
    with contextlib.closing(Postgres()) as postgres:
        yield postgres


@pytest.fixture
def url(own_postgres):
    with new_database(own_postgres.url) as url:
        yield url


@pytest.fixture
def start(tmp_path, url):
    """Starts servers on the database, each with a folder of its own."""
    started = []

    def start_(folder="data", **settings):
        settings = {
            "engine": SCRIPTED,
            "database_url": url,
            "database_timeout_seconds": 2,
            **settings,
        }
        started.append(RunningServer(tmp_path / folder, **settings))
        return started[-1]

    yield start_
    for server in started:
        server.stop()


def post(server, key=None, prompt="quick", **fields):
    headers = {} if key is None else {"Idempotency-Key": key}
    body = {"prompt": prompt, **QUICK, **fields}
    return server.client.post("/v1/videos", json=body, headers=headers)


def rows(url):
    """States of the jobs in the database by id."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT id, state FROM jobs")).all()
    engine.dispose()
    return {row.id: row.state for row in found}


def listed(server):
    return {v["id"]: v["status"] for v in server.client.get("/v1/videos?limit=100").json()["data"]}


def is_turned_away(response):
    error = response.json()["error"]
    return (response.status_code, error["code"], int(response.headers["Retry-After"]) > 0) == (
        503,
        "database_unavailable",
        True,
    )


def check_away(server, running, waiting):
    """What a server says whose database is away."""
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        posts = [pool.submit(post, server, f"away {i}") for i in range(8)]
        assert all(is_turned_away(each.result()) for each in posts)
    assert time.monotonic() - began < WITHIN_SECONDS, "all were told, not one after the other"
    assert is_turned_away(server.client.delete(f"/v1/videos/{waiting['id']}"))
    assert is_turned_away(server.client.post(f"/v1/videos/{waiting['id']}/cancel"))
    assert server.retrieve(running)["status"] in ("in_progress", "queued")
    assert server.retrieve(waiting)["status"] == "queued"
    ready = server.client.get("/readyz")
    assert ready.status_code == 503
    assert any("database" in reason for reason in ready.json()["missing"])


def check_back(server, url, *accepted):
    """What it says once the database is there again."""
    server.wait_ready()
    for video in accepted:
        assert server.finish(video)["status"] == "completed"
    first = post(server, "away 1")
    assert first.status_code == 200, first.text
    assert post(server, "away 1").json()["id"] == first.json()["id"]
    server.finish(first.json())
    expected = {video["id"] for video in (*accepted, first.json())}
    assert listed(server) == dict.fromkeys(expected, "completed")
    assert rows(url) == listed(server), "no ghosts"


def start_two_jobs(server):
    server.wait_ready()
    running = server.create("slow", num_inference_steps=10)
    waiting = server.create("slow waiting", num_inference_steps=2)
    server.wait_step(running, 1)
    return running, waiting


def test_frozen(start, url, own_postgres):
    """Red when a call waits for an answer for ever: no connection ends, TCP is well."""
    server = start()
    jobs = start_two_jobs(server)
    own_postgres.freeze()
    try:
        check_away(server, *jobs)
    finally:
        own_postgres.thaw()
    check_back(server, url, *jobs)


def test_stopped_and_started(start, url, own_postgres):
    server = start()
    jobs = start_two_jobs(server)
    own_postgres.stop()
    try:
        check_away(server, *jobs)
    finally:
        own_postgres.start()
    check_back(server, url, *jobs)
    assert server.process.poll() is None, "it has taken its own lock again"
    with pytest.raises(AssertionError, match="another server uses the database"):
        start("second")


def test_failed_over_to_a_copy_without_the_last_changes(start, url, own_postgres):
    """What clients were told holds: jobs the copy lacks are there again, deleted ones are not."""
    server = start()
    server.wait_ready()
    early = server.finish(server.create(**QUICK))
    deleted = server.finish(server.create(**QUICK))
    own_postgres.copy()
    server.wait_ready()
    server.client.delete(f"/v1/videos/{deleted['id']}")
    late = post(server, "late").json()
    server.finish(late)
    running, waiting = start_two_jobs(server)
    own_postgres.fail_over_to_copy()
    server.wait_ready()
    for video in (running, waiting):
        assert server.finish(video)["status"] == "completed"
    assert post(server, "late").json()["id"] == late["id"]
    expected = {video["id"] for video in (early, late, running, waiting)}
    wait_for(lambda: rows(url) == dict.fromkeys(expected, "completed"))
    server.kill()
    server.start()
    assert listed(server) == dict.fromkeys(expected, "completed")
    for name in expected:
        assert server.client.get(f"/v1/videos/{name}/content").status_code == 200


@pytest.mark.parametrize("first", ["a job ends", "a key is used again"])
def test_a_write_that_comes_before_the_failover_is_noticed(url, own_postgres, first):
    """Red when the row that the copy lacks, or has, decides: a job is forgotten, or comes back."""

    async def scenario(board):
        deleted = await board.accept(make_job("key"))
        own_postgres.copy()
        await board.check()
        await board.delete([deleted.id])
        running, again = await board.accept(make_job()), await board.accept(make_job("key"))
        await board.claim(running.id)
        own_postgres.fail_over_to_copy()
        if first == "a job ends":
            assert await board.complete(running.id, {})
        else:
            await board.delete([again.id])
            again = await board.accept(make_job("key"))
            assert again.id != deleted.id
        states = {job.id: str(job.state) for job in (board.find(running.id), again)}
        assert rows(url) == states
        await board.check()
        assert rows(url) == states
        await board.close()

    with contextlib.closing(Store(url, timeout_seconds=4)) as store:
        board = Board(store, keep_seconds=60, max_attempts=3, timeout_seconds=5)
        board.load(store.load(), lambda job: True)
        asyncio.run(scenario(board))


@pytest.fixture
def line(own_postgres):
    with contextlib.closing(BrokenLine(own_postgres.socket_path)) as line:
        yield line


def by_line(url, line):
    parsed = sa.make_url(url).set(host="127.0.0.1", port=line.port, query={})
    return parsed.render_as_string(hide_password=False)


def test_the_answer_to_a_commit_is_lost(start, url, line):
    """Red when a lost answer is taken for no commit: 500 for ever, ghosts, a stopped queue."""
    server = start(database_url=by_line(url, line))
    server.wait_ready()
    running = server.create("slow", num_inference_steps=15)
    server.wait_step(running, 1)

    line.lose_answer(b"INSERT INTO jobs")
    accepted = post(server, "once")
    assert line.lost.is_set()
    assert accepted.status_code == 200, accepted.text
    assert post(server, "once").json()["id"] == accepted.json()["id"]

    line.lose_answer(b"INSERT INTO jobs", silent=True)
    first = post(server, "twice")
    assert line.lost.is_set()
    assert first.status_code == 200 or is_turned_away(first)
    server.wait_ready()
    second = post(server, "twice")
    assert second.status_code == 200
    if first.status_code == 200:
        assert second.json()["id"] == first.json()["id"]

    unwanted = server.create("unwanted", **QUICK)
    line.lose_answer(b"DELETE FROM jobs")
    assert server.client.delete(f"/v1/videos/{unwanted['id']}").status_code == 200
    assert line.lost.is_set()
    assert server.client.get(f"/v1/videos/{unwanted['id']}").status_code == 404

    line.lose_answer(b"UPDATE jobs")  # the running one's: its end
    for video in (running, accepted.json(), second.json()):
        assert server.finish(video)["status"] == "completed"
    assert line.lost.is_set()
    assert listed(server) == rows(url)
    assert len(rows(url)) == 3


def test_rows_that_vanish_do_not_stop_the_queue(start, url):
    server = start()
    running, gone = start_two_jobs(server)
    last = server.create(**QUICK)
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            sa.text("DELETE FROM jobs WHERE id IN (:a, :b)"), {"a": gone["id"], "b": running["id"]}
        )
    engine.dispose()
    assert server.finish(last)["status"] == "completed"
    for video in (running, gone):
        assert server.client.get(f"/v1/videos/{video['id']}").status_code == 404
    assert "Traceback" not in server.log()
    assert listed(server) == {last["id"]: "completed"} == rows(url)


def test_a_server_that_was_replaced_ends_without_writing(start, url, tmp_path):
    """The first one sleeps, its lock is lost, a second one is started and owns the jobs."""
    first = start()
    running, waiting = start_two_jobs(first)
    os.kill(first.process.pid, signal.SIGSTOP)
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        )
    engine.dispose()
    second = start("second")
    assert set(listed(second)) == {running["id"], waiting["id"]}
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.process.wait(60) == 1
    assert "belongs to another server now" in first.log()
    for video in (running, waiting):
        done = second.finish(video)
        assert done["status"] == "completed"
    assert rows(url) == listed(second)


def test_another_folder_does_not_get_the_jobs(start, url):
    """Another machine's, with nothing in it: its server would show no video at all."""
    first = start()
    first.wait_ready()
    first.finish(first.create(**QUICK))
    first.kill()
    with pytest.raises(AssertionError, match="do not belong together"):
        start("second")
    first.start()
    assert list(listed(first).values()) == ["completed"]


def test_the_way_to_adopt_is_a_command(start, url, tmp_path):
    first = start()
    first.wait_ready()
    video = first.finish(first.create(**QUICK))
    first.kill()
    environment = {**first.environment, "WAN_TPU_DATA_DIR": str(tmp_path / "second")}
    done = subprocess.run(
        [sys.executable, "-m", "server", "adopt"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "belong together from now on" in done.stderr
    second = start("second")
    shown = second.retrieve(video)
    assert shown["status"] == "completed"
    assert shown["error"]["code"] == "files_lost"
    answer = second.client.get(f"/v1/videos/{video['id']}/content")
    assert answer.status_code == 410
    assert answer.json()["error"]["code"] == "files_lost"
    assert second.client.delete(f"/v1/videos/{video['id']}").status_code == 200


def test_a_file_that_was_cut_short_is_not_served(start, url):
    server = start()
    server.wait_ready()
    video = server.finish(server.create(**QUICK))
    noted = video["metadata"]["files"]["video"]
    answer = server.client.get(f"/v1/videos/{video['id']}/content")
    assert answer.headers["ETag"] == f'"{noted["sha256"]}"'
    assert len(answer.content) == noted["bytes"]
    path = server.data_dir / "videos" / video["id"] / "video.mp4"
    path.write_bytes(path.read_bytes()[:100])
    refused = server.client.get(
        f"/v1/videos/{video['id']}/content", headers={"If-None-Match": answer.headers["ETag"]}
    )
    assert refused.status_code == 410
    assert json.loads(refused.content)["error"]["code"] == "files_lost"


@pytest.mark.slow
def test_everything_in_turn(start, url, own_postgres):
    """Freezes, stops and restarts at changing moments while a careful client goes on."""
    server = start(max_attempts=1000)
    server.wait_ready()
    accepted = {}
    for turn in range(12):
        for index in range(4):
            key = f"{turn} {index}"

            def accept(key=key):
                with contextlib.suppress(httpx.TransportError):
                    response = post(server, key, "slow", num_inference_steps=3)
                    assert response.status_code == 200 or is_turned_away(response)
                    return response.status_code == 200 and response.json()["id"]

            accepted[key] = wait_for(accept)
        if turn % 3 == 0:
            own_postgres.freeze()
            time.sleep(turn / 2)
            own_postgres.thaw()
        elif turn % 3 == 1:
            own_postgres.stop()
            time.sleep(turn / 2)
            own_postgres.start()
        else:
            own_postgres.freeze()
            server.kill()
            own_postgres.thaw()
            server.start()
    for name in accepted.values():
        assert server.finish({"id": name})["status"] == "completed"
    assert rows(url) == listed(server) == dict.fromkeys(accepted.values(), "completed")
