"""What a service refuses, and how it says what it cannot use; real processes where that matters."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest
import sqlalchemy as sa

from server.jobs.tables import SCHEMA
from server.keys import add_key
from server.service import open_service
from server.settings import Settings
from tests.server.running import ROOT, wait_for
from wan_tpu.errors import WanTpuError

QUICK = {"num_inference_steps": 2}
SLOW = {"num_inference_steps": 90}


def file(path):
    path.touch()
    return path


def noise(folder):
    folder.mkdir()
    (folder / "jobs.sqlite").write_bytes(os.urandom(4096))
    return folder


UNUSABLE = {
    "a file": lambda t: {"DATA_DIR": file(t / "file")},
    "below a file": lambda t: {"DATA_DIR": file(t / "file") / "data"},
    "where nothing can be made": lambda t: {"DATA_DIR": "/proc/wan"},
    "a damaged database": lambda t: {"DATA_DIR": noise(t / "data")},
    "a closed port": lambda t: {"DATABASE_URL": "postgresql+psycopg://u:secret@127.0.0.1:1/x"},
    "as providers write it": lambda t: {"DATABASE_URL": "postgres://u:secret@127.0.0.1:1/x"},
    "no such name": lambda t: {"DATABASE_URL": "postgresql://u:secret@host.invalid/x"},
    "foo": lambda t: {"DATABASE_URL": "foo://bar"},
    "mysql": lambda t: {"DATABASE_URL": "mysql://u:secret@h/x"},
    "words": lambda t: {"DATABASE_URL": "not a url, secret"},
    "a folder as database": lambda t: {"DATABASE_URL": f"sqlite:///{t}"},
    "memory": lambda t: {"DATABASE_URL": "sqlite://"},
}


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_used_is_said_in_a_line(tmp_path, make):
    given = {"data_dir": tmp_path / "data"}
    given |= {name.lower(): value for name, value in make(tmp_path).items()}
    with pytest.raises(WanTpuError) as caught:
        open_service(Settings(**given))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", ["a file", "a damaged database", "as providers write it"])
def test_the_line_is_all_that_is_said(tmp_path, kind):
    given = {"DATA_DIR": tmp_path / "data", "PORT": 0, **UNUSABLE[kind](tmp_path)}
    environment = {f"WAN_TPU_{name}": str(value) for name, value in given.items()}
    others = {name: value for name, value in os.environ.items() if "WAN_TPU_" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "server"],
        cwd=ROOT,
        env={**others, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("wan-tpu: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("word", ["never", "inf", "Infinity", "none", ""])
def test_never_is_a_time_to_expire(monkeypatch, word):
    monkeypatch.setenv("WAN_TPU_EXPIRY_SECONDS", word)
    assert Settings().expiry_seconds is None


@pytest.mark.parametrize("name", ["MAX_WORK", "JOB_TIMEOUT_SECONDS", "MAX_REQUESTS_PER_SECOND"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_other_numbers_are_numbers(monkeypatch, name, value):
    monkeypatch.setenv(f"WAN_TPU_{name}", value)
    with pytest.raises(ValueError, match="finite"):
        Settings()


def test_videos_that_never_expire(start_server):
    server = start_server(expiry_seconds="never").wait_ready()
    video = server.finish(server.create(**QUICK))
    assert video["expires_at"] is None
    (listed,) = server.client.get("/v1/videos").json()["data"]
    assert listed == video
    server.kill()
    server.start()
    assert server.retrieve(video) == video


def test_infinity_of_an_earlier_release_is_never(start_server):
    server = start_server().wait_ready()
    video = server.finish(server.create(**QUICK))
    server.kill()
    with sqlite3.connect(server.data_dir / "jobs.sqlite") as connection:
        connection.execute("UPDATE jobs SET expires_at = 9e999")
    connection.close()
    server.start()
    assert server.retrieve(video)["expires_at"] is None
    assert server.client.get("/v1/videos").status_code == 200


def test_a_row_of_a_newer_version_does_not_stop_the_start(start_server):
    server = start_server().wait_ready()
    running = server.create("slow", **SLOW)
    newer, older = server.create("newer", **QUICK), server.create("older", **QUICK)
    server.wait_step(running, 1)
    server.kill()
    with sqlite3.connect(server.data_dir / "jobs.sqlite") as connection:
        connection.execute(
            "UPDATE jobs SET request = json_set(request, '$.image', 'x') WHERE id = ?",
            (newer["id"],),
        )
        connection.execute("UPDATE jobs SET state = 'paused' WHERE id = ?", (running["id"],))
    connection.close()
    server.start()
    assert server.finish(older)["status"] == "completed"
    for video in (newer, running):
        shown = server.retrieve(video)
        assert (shown["status"], shown["error"]["code"]) == ("failed", "unreadable")
    with sqlite3.connect(server.data_dir / "jobs.sqlite") as connection:
        rows = dict(connection.execute("SELECT id, state FROM jobs").fetchall())
    connection.close()
    assert rows[running["id"]] == "paused"
    assert rows[newer["id"]] == "queued"
    assert server.client.delete(f"/v1/videos/{newer['id']}").status_code == 200


def test_a_database_that_somebody_else_locks_is_said(start_server):
    server = start_server(database_timeout_seconds=1).wait_ready()
    video = server.finish(server.create(**QUICK))
    other = sqlite3.connect(server.data_dir / "jobs.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        for refused in (
            server.client.post("/v1/videos", json={"prompt": "x"}),
            server.client.delete(f"/v1/videos/{video['id']}"),
        ):
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "database_unavailable"
            assert int(refused.headers["Retry-After"]) > 0
        assert "locked" in server.client.get("/readyz").text
        wait_for(lambda: server.metric("wan_tpu_database_available") == 0)  # by the housekeeping
        assert server.client.get(f"/v1/videos/{video['id']}/content").status_code == 200
    finally:
        other.execute("ROLLBACK")
        other.close()
    server.wait_ready()
    assert server.client.delete(f"/v1/videos/{video['id']}").status_code == 200


def test_a_database_that_is_replaced_under_a_server_ends_it(start_server):
    server = start_server().wait_ready()
    server.create("slow", **SLOW)
    path = server.data_dir / "jobs.sqlite"
    shutil.copy(path, server.data_dir / "backup")
    (server.data_dir / "backup").rename(path)
    assert server.process.wait(60) == 1
    assert "was removed or replaced" in server.log()


def test_the_users_own_files_stay(start_server, tmp_path):
    """`data/videos` is what many projects call their own clips."""
    clips = tmp_path / "data" / "videos"
    clips.mkdir(parents=True)
    (clips / "clip1.mp4").write_bytes(b"clip")
    with pytest.raises(AssertionError, match="was never a server's"):
        start_server()
    assert [path.name for path in clips.iterdir()] == ["clip1.mp4"]


def test_the_way_back_to_the_release_before(start_server):
    server = start_server().wait_ready()
    video = server.finish(server.create(**QUICK))
    server.kill()
    command = [sys.executable, "-m", "server", "downgrade"]
    done = subprocess.run(
        command, cwd=ROOT, env=server.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    engine = sa.create_engine(f"sqlite:///{server.data_dir / 'jobs.sqlite'}")
    with engine.connect() as connection:
        before = connection.execute(sa.text("SELECT * FROM alembic_version")).scalar()
        assert before == f"{SCHEMA - 1:04}"
        assert connection.execute(sa.text("SELECT id FROM jobs")).scalar() == video["id"]
    engine.dispose()
    server.start()
    assert server.client.get(f"/v1/videos/{video['id']}/content").status_code == 200


@pytest.fixture
def start_with_keys(start_server, tmp_path):
    """A server and the headers of each of two keys."""

    def start(**settings):
        keys = tmp_path / "keys"
        headers = {
            name: {"Authorization": f"Bearer {add_key(keys, name)}"} for name in ("ada", "bob")
        }
        return start_server(api_keys_file=keys, **settings).wait_ready(), headers

    return start


def create(server, headers, prompt="quick", **fields):
    body = {"prompt": prompt, **QUICK, **fields}
    return server.client.post("/v1/videos", json=body, headers=headers)


def get(server, headers, video):
    return server.client.get(f"/v1/videos/{video['id']}", headers=headers).json()


def finish(server, headers, response):
    video = response.json()
    return wait_for(
        lambda: (now := get(server, headers, video))["status"] in ("completed", "failed") and now
    )


def test_one_key_cannot_fill_the_queue(start_with_keys):
    server, keys = start_with_keys(max_queued_jobs=8)
    create(server, keys["ada"], "slow", **SLOW)
    answers = [create(server, keys["ada"]) for _ in range(10)]
    taken = [a.status_code for a in answers].count(200)
    assert taken <= 3
    assert answers[-1].json()["error"]["code"] == "queue_full"
    assert create(server, keys["bob"]).status_code == 200


def test_without_keys_all_of_the_queue_is_everybodys():
    assert Settings(max_queued_jobs=8).queue_share == 8
    assert Settings(max_queued_jobs=8, api_keys_file="keys").queue_share == 2
    assert Settings(max_queued_jobs=8, max_queued_jobs_per_key=5).queue_share == 5


def test_finished_jobs_of_a_key_are_bounded(start_with_keys):
    """The oldest without a video make place; videos are never dropped before their time."""
    server, keys = start_with_keys(max_finished_jobs_per_key=3)
    ada = keys["ada"]
    for _ in range(2):
        finish(server, ada, create(server, ada, "boom"))
    videos = [finish(server, ada, create(server, ada)) for _ in range(3)]
    listed = server.client.get("/v1/videos", headers=ada).json()["data"]
    assert [video["id"] for video in listed] == [video["id"] for video in reversed(videos)]
    refused = create(server, ada)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert create(server, keys["bob"]).status_code == 200
    server.client.delete(f"/v1/videos/{videos[0]['id']}", headers=ada)
    assert create(server, ada).status_code == 200


def test_bytes_of_a_key_are_bounded(start_with_keys):
    server, keys = start_with_keys(max_kept_bytes_per_key=1)
    ada = keys["ada"]
    video = finish(server, ada, create(server, ada))
    refused = create(server, ada)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert create(server, keys["bob"]).status_code == 200
    server.kill()
    server.start()
    assert create(server, ada).status_code == 429, "it is counted again at the start"
    server.client.delete(f"/v1/videos/{video['id']}", headers=ada)
    assert create(server, ada).status_code == 200


def test_a_key_of_idempotency_is_free_when_its_job_is_deleted(quick):
    headers = {"Idempotency-Key": f"again {time.time()}"}
    first = quick.client.post("/v1/videos", json={"prompt": "x", **QUICK}, headers=headers).json()
    assert quick.client.delete(f"/v1/videos/{first['id']}").status_code == 200
    second = quick.client.post("/v1/videos", json={"prompt": "x", **QUICK}, headers=headers)
    assert second.status_code == 200
    assert second.json()["id"] != first["id"]
