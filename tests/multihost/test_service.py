"""The real engine over real processes: video, cancel, a process killed in the middle, drain."""

import signal

import pytest

from server.engine.lockstep import EXIT_LOST
from tests.multihost.running import Slice
from wan_tpu.demo.recognition import judge_file
from wan_tpu.pipeline.video_file import read_frames

LONG = {"num_inference_steps": 60}
"""Half a minute on two cores: time enough to interfere."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Two processes of four devices each with wan-tiny, in the layout that uses every axis."""
    folder = tmp_path_factory.mktemp("slice")
    served = Slice(
        folder / "data",
        2,
        host_devices=4,
        layout="dp2-sp2-tp2",
        max_work=100,
        drain_seconds=300,
    )
    yield served.wait_ready()
    served.stop()


def file_of(found, video):
    return found.data_dir / "videos" / video["id"] / "video.mp4"


def test_a_video_of_both(found):
    done = found.finish(found.create("a red circle moving right on a black background", seed=1))
    assert done["status"] == "completed", done
    assert done["metadata"]["num_processes"] == 2
    assert done["metadata"]["num_devices"] == 8
    verdict = judge_file(file_of(found, done))
    assert (verdict.color, verdict.direction) == ("red", "right")


def test_cancel_in_the_middle(found):
    pids = found.pids()
    video = found.create(**LONG)
    found.wait_step(video, 3)
    found.client.post(f"/v1/videos/{video['id']}/cancel")
    assert found.finish(found.create(num_inference_steps=2))["status"] == "completed"
    assert found.finish(video)["error"]["code"] == "cancelled"
    assert found.pids() == pids


def test_a_size_that_must_be_compiled_first(found):
    """Process 0 waits for the other's compiler before it runs what both have to run."""
    done = found.finish(found.create(num_inference_steps=2, size="96x64"))
    assert done["status"] == "completed", done
    assert done["metadata"]["seconds"]["compile step"] > 0
    assert found.statuses(0) == []


def test_a_follower_killed_inside_a_collective(found):
    """Process 0's program fails because the other one is gone; that must not fail the job."""
    video = found.create(num_inference_steps=8, seed=2)
    found.wait_step(video, 3)
    found.members[1].send(signal.SIGKILL)
    assert found.wait_ended(0) == [EXIT_LOST]
    assert found.retrieve_later(video)["status"] == "queued"
    done = found.finish(video)
    assert done["status"] == "completed", done
    assert len(read_frames(file_of(found, done))) == 17
    assert found.log().count("code=completed") >= 1


def test_drain(found):
    video = found.create(num_inference_steps=12)
    found.wait_step(video, 2)
    for member in found.members.values():
        member.again = False
    before = [len(found.statuses(number)) for number in (0, 1)]
    found.terminate()
    for number in (0, 1):
        assert found.wait_ended(number, before[number] + 1)[-1] == 0
    assert len(read_frames(file_of(found, video))) == 17, "the running job was finished"
