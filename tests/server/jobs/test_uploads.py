"""A job's picture through kills, deletions and expiry, with either database; scripted engine."""

import contextlib
import dataclasses
import json
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from server.jobs.job import Extended, Job, State, make_id
from server.jobs.rows import NEW_FIELDS, from_row, to_row
from server.keys import add_key
from tests.server.http.test_errors import check_shape
from tests.server.pictures import (
    accepted,
    clip,
    create_with,
    data_url,
    has,
    large_picture,
    picture,
    uploads,
)
from tests.server.running import ROOT, wait_for
from wan_tpu.checkpoints.models import WAN_TINY_TI2V
from wan_tpu.image.video import read_video
from wan_tpu.media import digest_of
from wan_tpu.request import make_request

RED, BLUE = picture(1), picture(2)
LONG = {"prompt": "slow", "num_inference_steps": 90}


@pytest.fixture
def start(start_server):
    return lambda **settings: start_server(model=WAN_TINY_TI2V, **settings)


def got_by_the_engine(server):
    return json.loads((server.data_dir / "media-0.json").read_text())["digests"]


def test_an_accepted_job_survives_kill_with_its_picture(start, database):
    server = start(database_url=database)  # the engine is not even ready yet
    video = accepted(create_with(server, RED))
    server.kill()
    server.start()
    assert server.finish(video)["status"] == "completed"
    assert got_by_the_engine(server) == [digest_of(RED)]
    assert has(server, RED), "the finished job still names it"


def test_kills_at_any_time_leave_every_accepted_job_its_picture(start):
    """Red when the answer comes before the bytes are on the disk, or the file before its bytes."""
    server = start()
    accepted_ids = {}

    def send():
        for number in range(10_000):
            data = large_picture(100_000, seed=number)
            with contextlib.suppress(Exception):
                response = create_with(server, data)
                if response.status_code == 200:
                    accepted_ids[response.json()["id"]] = data
                    continue
            return

    for round_number in range(3):
        sender = threading.Thread(target=send)
        sender.start()
        time.sleep(1.5 + 0.37 * round_number)
        server.kill()
        sender.join()
        server.start()
    assert len(accepted_ids) > 10
    for job_id, data in accepted_ids.items():
        assert server.retrieve({"id": job_id})["metadata"]["request"]["image"] == digest_of(data)
        assert has(server, data)
        assert (server.data_dir / "uploads" / digest_of(data)[7:]).read_bytes() == data
    assert not [path for path in (server.data_dir / "uploads").iterdir() if path.suffix == ".part"]


def test_the_picture_goes_with_the_last_job_that_names_it(start, database):
    server = start(database_url=database).wait_ready()
    first, second = (server.finish(accepted(create_with(server, RED))) for _ in range(2))
    other = server.finish(accepted(create_with(server, BLUE)))
    assert uploads(server) == {digest_of(RED), digest_of(BLUE)}
    server.client.delete(f"/v1/videos/{first['id']}")
    assert has(server, RED)
    server.kill()
    server.start()
    assert has(server, RED)
    server.client.delete(f"/v1/videos/{second['id']}")
    assert uploads(server) == {digest_of(BLUE)}
    server.client.delete(f"/v1/videos/{other['id']}")
    assert uploads(server) == set()


def test_the_picture_expires_with_its_job(start):
    server = start(expiry_seconds=2).wait_ready()
    server.finish(accepted(create_with(server, RED)))
    assert has(server, RED)
    wait_for(lambda: not uploads(server))


def extended(server, data, **fields):
    """The job that continues a clip."""
    body = {"prompt": "x", "num_inference_steps": 2, "num_frames": 5, "video": data_url(data)}
    return accepted(server.client.post("/v1/videos/extensions", json={**body, **fields}))


def test_an_extension_survives_kills_whole_or_not_at_all(start):
    """Red when the clip is not in its row, or a video is shown whose old frames are missing."""
    data = clip(num_frames=9)
    server = start()
    video = extended(server, data, prompt="slow", num_inference_steps=90)
    for step in (1, 2):
        server.wait_step(video, step)
        server.kill()
        server.start()
    assert server.retrieve(video)["metadata"]["extended"]["num_frames"] == 9
    assert len(uploads(server)) == 2, "the clip, and its last frame"
    again = extended(server, data, prompt="crashonce")  # made again within one life of the server
    server.client.post(f"/v1/videos/{video['id']}/cancel")
    done = server.finish(again)
    assert (done["status"], done["seconds"]) == ("completed", "1.5")
    content = server.client.get(f"/v1/videos/{done['id']}/content").content
    assert len(read_video(content, 8, 100)) == 13
    for each in (video, again):
        assert has(server, data)
        server.client.delete(f"/v1/videos/{each['id']}")
    assert uploads(server) == set()


def test_an_extension_whose_clip_is_lost_fails_alone(start):
    server = start().wait_ready()
    running = extended(server, clip(5), prompt="slow", num_inference_steps=90)
    gone = extended(server, clip(9))
    (server.data_dir / "uploads" / digest_of(clip(9))[7:]).unlink()
    server.client.post(f"/v1/videos/{running['id']}/cancel")
    error = server.finish(gone)["error"]
    assert error["code"] == "upload_lost"
    assert error["message"] == "the beginning of this video is gone from the server's disk"
    assert server.finish(server.create(num_inference_steps=2))["status"] == "completed"


def test_a_running_job_that_is_deleted_leaves_nothing(start):
    server = start().wait_ready()
    video = accepted(create_with(server, RED, **LONG))
    server.wait_step(video, 1)
    server.client.delete(f"/v1/videos/{video['id']}")
    assert uploads(server) == set()
    assert server.finish(accepted(create_with(server, BLUE)))["status"] == "completed"


def test_a_picture_that_is_lost_fails_its_job_alone(start):
    server = start().wait_ready()
    running = accepted(create_with(server, RED, **LONG))
    gone, damaged = (accepted(create_with(server, data)) for data in (BLUE, picture(3)))
    (server.data_dir / "uploads" / digest_of(BLUE)[7:]).unlink()
    (server.data_dir / "uploads" / digest_of(picture(3))[7:]).write_bytes(b"\x89PNG other")
    server.client.post(f"/v1/videos/{running['id']}/cancel")
    error = server.finish(gone)["error"]
    assert error["code"] == "upload_lost"
    assert error["message"] == "the image of this video is gone from the server's disk"
    error = server.finish(damaged)["error"]
    assert error["code"] == "upload_lost"
    assert "the image of this video is damaged: bytes that should be sha256:" in error["message"]
    assert server.finish(accepted(create_with(server, BLUE)))["status"] == "completed"
    assert server.client.get("/readyz").status_code == 200, "no fault of the engine's"


def test_pictures_count_among_what_a_key_may_keep(start, tmp_path):
    keys = tmp_path / "keys"
    key = add_key(keys, "ada")
    server = start(api_keys_file=keys, max_kept_bytes_per_key=250_000)
    server.client.headers["Authorization"] = f"Bearer {key}"
    server.wait_ready()
    size = 100_000
    first = accepted(create_with(server, large_picture(size, seed=1), **LONG))
    accepted(create_with(server, large_picture(size, seed=2)))
    error = check_shape(create_with(server, large_picture(size, seed=3)), 429, "quota_exceeded")
    assert "would take 300000 bytes, and 250000 may be kept" in error["message"]
    accepted(create_with(server, large_picture(size, seed=2)))  # one that is there already
    server.client.headers["Idempotency-Key"] = "one"
    third = accepted(create_with(server, large_picture(40_000, seed=4)))
    again = create_with(server, large_picture(40_000, seed=4))
    assert accepted(again)["id"] == third["id"], "a repetition, whatever there is by now"
    del server.client.headers["Idempotency-Key"]
    server.client.delete(f"/v1/videos/{third['id']}")
    server.client.delete(f"/v1/videos/{first['id']}")
    accepted(create_with(server, large_picture(size, seed=3)))


def job_with(**fields):
    request = make_request("x", size="64x64", frames=1, fps=8, steps=2, **fields)
    return Job(id=make_id(), owner="", model="m", request=request, created_at=1.0)


def test_rows_of_text_jobs_are_as_they_were():
    """A release that knows no pictures reads them, finished or not."""
    row = to_row(job_with())
    assert row["version"] == 1
    assert not set(NEW_FIELDS) & json.loads(row["request"]).keys()


def test_rows_with_a_picture_are_read_back_and_are_not_for_older_releases():
    job = job_with(image=digest_of(RED))
    row = to_row(job)
    assert row["version"] == 3
    assert from_row(row) == job
    assert job.media == {digest_of(RED)}


def test_rows_of_videos_made_from_others_are_read_back():
    extended = Extended(video=digest_of(BLUE), num_frames=9)
    job = dataclasses.replace(
        job_with(image=digest_of(RED), guidance_scale_2=2.5), source_id=make_id(), extended=extended
    )
    row = to_row(job)
    assert row["version"] == 3
    assert from_row(row) == job
    assert job.media == {digest_of(RED), digest_of(BLUE)}
    assert job.num_frames == 9
    for wrong in ({"video": "x", "num_frames": 9}, {"video": digest_of(BLUE)}, 5, {"other": 1}):
        fields = json.loads(row["request"]) | {"extended": wrong}
        assert from_row({**row, "request": json.dumps(fields)}).is_unreadable


def test_what_an_unreadable_row_names_is_kept():
    """Of a newer release, which may be started again: its pictures are not ours to remove."""
    row = to_row(job_with(image=digest_of(RED)))
    row["request"] = json.dumps({**json.loads(row["request"]), "control": digest_of(BLUE)})
    job = from_row(row)
    assert job.is_unreadable
    assert job.state == State.FAILED
    assert job.media == {digest_of(RED), digest_of(BLUE)}


def test_pictures_of_rows_that_cannot_be_read_stay_through_a_start(start):
    server = start().wait_ready()
    video = server.finish(accepted(create_with(server, RED)))
    server.kill()
    with contextlib.closing(sqlite3.connect(server.data_dir / "jobs.sqlite")) as database:
        database.execute("UPDATE jobs SET state = 'planned'")
        database.commit()
    server.start()
    assert server.retrieve(video)["error"]["code"] == "unreadable"
    assert has(server, RED)


def test_a_picture_survives_a_downgrade_and_the_way_back(start):
    server = start().wait_ready()
    running = accepted(create_with(server, BLUE, **LONG))
    waiting = accepted(create_with(server, RED))
    server.wait_step(running, 1)
    server.kill()
    for command in ("downgrade", "adopt"):
        words = [sys.executable, "-m", "server", command]
        subprocess.run(words, cwd=ROOT, env=server.environment, check=True, capture_output=True)
    server.start()
    server.client.delete(f"/v1/videos/{running['id']}")
    assert server.finish(waiting)["status"] == "completed"
    assert got_by_the_engine(server) == [digest_of(RED)]
    assert uploads(server) == {digest_of(RED)}
