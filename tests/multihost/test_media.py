"""A job's pictures and clips reach every process; real processes, sockets, database and HTTP.

The engine is the scripted one, which leaves what it got in a file for each process.
"""

import json
import signal
import time

import pytest

from server.engine.lockstep import EXIT_LOST
from tests.server.pictures import accepted, clip, create_with, large_picture, picture
from tests.server.running import wait_for
from wan_tpu.checkpoints.models import WAN_TINY_TI2V
from wan_tpu.image.video import read_video
from wan_tpu.media import digest_of

LARGE = 20_000_000


@pytest.fixture
def start(start_slice, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()

    def start_with(num_processes=3, **settings):
        environment = {"SCRIPTED_ENGINE_MARKS": str(marks)}
        found = start_slice(
            num_processes,
            model=WAN_TINY_TI2V,
            environment=environment,
            max_upload_bytes=LARGE,
            **settings,
        )
        found.marks = marks
        return found.wait_ready()

    return start_with


def got(found, number):
    """What the engine of one process got, once it has."""
    path = found.marks / f"media-{number}.json"
    wait_for(path.exists)
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("role", "data"), [("image", picture()), ("video", clip(1000)), ("image", large_picture(LARGE))]
)
def test_every_engine_gets_the_same_bytes(start, role, data):
    found = start(peer_timeout_seconds=3)
    done = found.finish(accepted(create_with(found, data)))
    assert done["status"] == "completed", done
    expected = {
        "request": {role: digest_of(data)},
        "got": {role: len(data)},
        "digests": [digest_of(data)],
    }
    assert [got(found, number) for number in (0, 1, 2)] == [expected] * 3
    assert found.finish(found.create(num_inference_steps=2))["status"] == "completed"
    assert found.statuses(0) == found.statuses(1) == found.statuses(2) == []


def test_an_extension_is_made_by_all_and_written_by_one(start):
    found = start(2)
    data = clip(num_frames=9)
    files = {"prompt": (None, "x"), "num_frames": (None, "5"), "video": ("a.mp4", data)}
    video = accepted(found.client.post("/v1/videos/extensions", files=files))
    done = found.finish(video)
    assert (done["status"], done["seconds"]) == ("completed", "1.5"), done
    content = found.client.get(f"/v1/videos/{video['id']}/content").content
    assert len(read_video(content, 8, 100)) == 13
    image = done["metadata"]["request"]["image"]
    assert got(found, 0)["digests"] == got(found, 1)["digests"] == [image]


def test_a_cancelled_job_with_a_picture_leaves_the_next_one_whole(start):
    found = start(2)
    video = accepted(
        create_with(found, large_picture(LARGE), prompt="slow", num_inference_steps=90)
    )
    found.wait_step(video, 2)
    found.client.post(f"/v1/videos/{video['id']}/cancel")
    done = found.finish(accepted(create_with(found, picture(7))))
    assert done["status"] == "completed"
    assert got(found, 1)["digests"] == [digest_of(picture(7))]
    assert found.statuses(0) == []


def test_a_follower_that_stops_while_it_receives_is_noticed(start):
    """Red when process 0's heartbeats wait behind the bytes that the follower does not read."""
    found = start(2, peer_timeout_seconds=3, max_attempts=2)
    found.members[1].send(signal.SIGSTOP)
    began = time.monotonic()
    video = accepted(create_with(found, large_picture(LARGE)))
    assert found.wait_ended(0) == [EXIT_LOST]
    assert time.monotonic() - began < 30
    assert "has sent nothing for 4 s" in found.log()
    found.members[1].send(signal.SIGCONT)
    done = found.finish(video)
    assert done["status"] == "completed", done
    assert got(found, 1)["digests"] == [digest_of(large_picture(LARGE))]


def test_what_process_0_has_lost_fails_its_job_alone(start):
    found = start(2)
    running = accepted(create_with(found, picture(1), prompt="slow", num_inference_steps=90))
    damaged = accepted(create_with(found, picture(2)))
    (found.data_dir / "uploads" / digest_of(picture(2))[7:]).write_bytes(b"other")
    found.client.post(f"/v1/videos/{running['id']}/cancel")
    assert found.finish(damaged)["error"]["code"] == "upload_lost"
    assert found.finish(found.create(num_inference_steps=2))["status"] == "completed"
    assert found.statuses(0) == found.statuses(1) == []
