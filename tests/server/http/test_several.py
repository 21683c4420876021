"""`n`: several jobs of one request, taken together or not at all, over real HTTP."""

import openai
import pytest

from tests.server.http.test_errors import check_shape
from tests.server.pictures import clip
from tests.server.running import wait_for
from wan_tpu.request import MAX_SEED

FEW = {"num_inference_steps": 2}


def seed_of(video):
    return video["metadata"]["request"]["seed"]


def post(server, key=None, **fields):
    headers = {} if key is None else {"Idempotency-Key": key}
    return server.client.post("/v1/videos", json={"prompt": "x", **FEW, **fields}, headers=headers)


def number_of_jobs(server):
    return len(server.client.get("/v1/videos?limit=100").json()["data"])


def test_n_jobs_have_the_seeds_that_follow_each_other(quick):
    """Red when all of them have one seed, or one is missing."""
    first = post(quick, n=4, seed=7).json()
    videos = first["videos"]
    assert {**videos[0], "videos": videos} == first
    assert [seed_of(each) for each in videos] == [7, 8, 9, 10]
    assert len({each["id"] for each in videos}) == 4
    assert [each["id"] for each in videos] == sorted(each["id"] for each in videos)
    for each in videos:
        assert quick.finish(each)["status"] == "completed"
    drawn = [seed_of(each) for each in post(quick, n=2).json()["videos"]]
    assert drawn[1] == drawn[0] + 1


@pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")
def test_the_client_of_openai_waits_for_the_first(quick):
    with openai.OpenAI(base_url=f"{quick.url}/v1", api_key="none") as client:
        more = {"extra_body": {**FEW, "n": 2}}
        video = client.videos.create_and_poll(prompt="x", poll_interval_ms=20, **more)
        assert (video.status, video.object) == ("completed", "video")
        assert "videos" not in client.videos.create(prompt="x", extra_body={"n": 1}).model_extra


def test_one_key_is_for_all_of_them_and_one_is_the_same_as_none(quick):
    first = post(quick, "together", n=3, seed=1).json()
    before = number_of_jobs(quick)
    again = post(quick, "together", n=3, seed=1).json()
    assert [v["id"] for v in again["videos"]] == [v["id"] for v in first["videos"]]
    check_shape(
        post(quick, "together", n=2, seed=1), 409, "idempotency_conflict", "Idempotency-Key"
    )
    assert number_of_jobs(quick) == before
    quick.client.delete(f"/v1/videos/{first['videos'][1]['id']}")
    left = post(quick, "together", n=3, seed=1).json()["videos"]
    assert [v["id"] for v in left] == [first["videos"][i]["id"] for i in (0, 2)]
    alone = post(quick, "alone", n=1, seed=1).json()
    assert "videos" not in alone
    assert post(quick, "alone", seed=1).json()["id"] == alone["id"]


def test_all_or_none_are_taken(start_server):
    """Red when the queue takes as many as it has room for, or more."""
    server = start_server(max_queued_jobs=4).wait_ready()
    running = server.create("slow", num_inference_steps=90)
    server.wait_until(running, "in_progress")
    check_shape(post(server, n=5), 400, "invalid_value", "n")
    assert len(post(server, n=2, seed=1).json()["videos"]) == 2
    error = check_shape(post(server, n=3), 429, "queue_full")
    assert error["message"] == "the queue is full: 2 jobs wait, and n asks for 3"
    assert number_of_jobs(server) == 3
    assert len(post(server, "two", n=2, seed=1).json()["videos"]) == 2
    server.kill()
    server.start()
    # It remembers which belong together, and the queue is full still.
    assert [seed_of(v) for v in post(server, "two", n=2, seed=1).json()["videos"]] == [1, 2]
    check_shape(post(server), 429, "queue_full")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"), ({"n": 11}, "n"), ({"n": "many"}, "n"), ({"n": True}, "n"),
        ({"n": 1.5}, "n"), ({"n": 3, "seed": MAX_SEED - 1}, "seed"),
    ],
)  # fmt: skip
def test_what_cannot_be(quick, fields, param):
    before = number_of_jobs(quick)
    check_shape(post(quick, **fields), 400, "invalid_value", param)
    assert number_of_jobs(quick) == before


def test_of_a_clip_too_which_stays_as_long_as_one_of_them(quick):
    form = {"prompt": (None, "x"), "n": (None, "2"), "input_reference": ("a.mp4", clip())}
    videos = quick.client.post("/v1/videos", files=form).json()["videos"]
    uploads = quick.data_dir / "uploads"
    for each in videos:
        wait_for(lambda: list(uploads.iterdir()))
        quick.client.delete(f"/v1/videos/{each['id']}")
    wait_for(lambda: not list(uploads.iterdir()))
