"""Jobs that are made together over HTTP: each has its own state, progress, cancel, file and end."""

import pytest

from tests.server.running import SCRIPTED, RunningServer
from wan_tpu.pipeline.video_file import read_frames

OTHER = {"num_inference_steps": 5}
"""Of another kind: holds the line up while those behind it gather."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = RunningServer(tmp_path_factory.mktemp("together") / "data", engine=SCRIPTED, batch=4)
    yield found.wait_ready()
    found.stop()


def gather(server, *prompts, steps=8):
    """Jobs of one kind, all of which wait when the first begins."""
    blocker = server.create("slow", **OTHER)
    server.wait_step(blocker, 1)
    made = [
        server.create(prompt, num_inference_steps=steps, seed=40 * i + 40)
        for i, prompt in enumerate(prompts)
    ]
    assert {server.retrieve(video)["status"] for video in made} == {"queued"}
    return made


def pixel_of(server, video):
    frames = read_frames(server.data_dir / "videos" / video["id"] / "video.mp4")
    assert len(frames) == 17
    return int(frames[0].mean())


def test_four_that_wait_are_made_together(server):
    before = server.metric("wan_tpu_jobs_made_together_sum")
    works = server.metric("wan_tpu_jobs_made_together_count")
    videos = gather(server, "one", "two", "three", "four")
    done = [server.finish(video) for video in videos]
    for i, video in enumerate(done):
        assert video["status"] == "completed", video
        assert video["metadata"]["made_together"] == 4
        assert video["prompt"] == ("one", "two", "three", "four")[i]
        assert abs(pixel_of(server, video) - (40 * i + 40)) < 4, "its own seed's frames"
    assert server.metric("wan_tpu_jobs_made_together_sum") == before + 5  # and what held them up
    assert server.metric("wan_tpu_jobs_made_together_count") == works + 2


def test_each_has_its_own_progress(server):
    videos = gather(server, "slow one", "slow two")
    for video in videos:
        assert server.wait_step(video, 2)["steps"] == 8
    for video in videos:
        assert server.finish(video)["metadata"]["made_together"] == 2


def test_who_is_cancelled_leaves_the_others(server):
    videos = gather(server, "slow one", "slow two", "slow three", steps=12)
    server.wait_step(videos[1], 2)
    server.client.post(f"/v1/videos/{videos[1]['id']}/cancel")
    ended = [server.finish(video) for video in videos]
    assert ended[1]["error"]["code"] == "cancelled"
    assert [ended[i]["metadata"]["made_together"] for i in (0, 2)] == [3, 3]


def test_who_fails_fails_alone(server):
    videos = gather(server, "one", "nan", "full", "four")
    ended = [server.finish(video) for video in videos]
    assert [video["status"] for video in ended] == ["completed", "failed", "failed", "completed"]
    assert [ended[i]["error"]["code"] for i in (1, 2)] == ["bad_numbers", "disk_full"]


def test_a_crash_gives_all_back_and_each_is_made_alone(server):
    """What crashed it cannot take others down a second time; it is one failure of the engine."""
    failures = server.metric("wan_tpu_engine_failures_total")
    videos = gather(server, "one", "crash", "three", "four")
    ended = [server.finish(video) for video in videos]
    assert [video["status"] for video in ended] == ["completed", "failed", "completed", "completed"]
    assert ended[1]["error"]["code"] == "engine_crashed"
    for i in (0, 2, 3):
        assert "made_together" not in ended[i]["metadata"]
        pixel_of(server, ended[i])
    assert server.metric("wan_tpu_engine_failures_total") == failures + 2, "together, alone"


def test_an_end_gives_all_back_and_none_is_made_twice(tmp_path):
    server = RunningServer(
        tmp_path / "data", engine=SCRIPTED, batch=4, batch_wait_seconds=60, drain_seconds=0
    )
    try:
        server.wait_ready()
        steps = {"num_inference_steps": 8}
        videos = [server.create(f"slow {i}", seed=40 * i + 40, **steps) for i in range(4)]
        server.wait_step(videos[3], 2)  # nobody began before the fourth had come
        server.terminate()
        assert server.process.wait(60) == 0
        server.start()
        server.wait_ready()
        done = [server.finish(video) for video in videos]
        assert [video["status"] for video in done] == ["completed"] * 4
        assert [video["metadata"]["made_together"] for video in done] == [4] * 4, (
            "no attempt counts"
        )
        for i, video in enumerate(done):
            assert abs(pixel_of(server, video) - (40 * i + 40)) < 4
        assert len(list((tmp_path / "data" / "videos").iterdir())) == 4
    finally:
        server.stop()
