"""The API over real HTTP with the real engine on wan-tiny."""

import concurrent.futures
import io
import json
import re

import pytest
from PIL import Image

from tests.server.running import wait_for
from wan_tpu.demo.recognition import judge_file
from wan_tpu.pipeline.video_file import read_frames

PROMPT = "a red circle moving right on a black background"


@pytest.fixture(scope="module")
def finished(tiny):
    """A completed job that nobody deletes."""
    video = tiny.finish(tiny.create(PROMPT, seed=1, negative_prompt="blue"))
    assert video["status"] == "completed", video
    return video


@pytest.fixture
def content(tiny, finished):
    """Asks for the finished job's content."""

    def ask(method="GET", variant="video", **headers):
        url = f"/v1/videos/{finished['id']}/content?variant={variant}"
        return tiny.client.request(method, url, headers=headers)

    return ask


def test_the_video_shows_what_was_asked_for(content, tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(content().content)
    assert read_frames(path).shape == (17, 64, 64, 3)
    verdict = judge_file(path)
    assert (verdict.color, verdict.direction, verdict.background) == ("red", "right", "black")


def test_the_same_seed_gives_the_same_video(tiny, content):
    again = tiny.finish(tiny.create(PROMPT, seed=1, negative_prompt="blue"))
    response = tiny.client.get(f"/v1/videos/{again['id']}/content")
    assert response.content == content().content


def test_metadata_says_what_ran(finished):
    metadata = finished["metadata"]
    assert metadata["request"] == {
        "negative_prompt": "blue",
        "num_frames": 17,
        "fps": 8,
        "num_inference_steps": 12,
        "guidance_scale": 1.5,
        "flow_shift": 5.0,
        "seed": 1,
        "scheduler": "unipc",
    }
    assert metadata["layout"] == "single"
    assert metadata["vae"] == "flax"
    assert metadata["attention"]
    assert metadata["versions"]["wan_tpu"]
    assert {"text", "denoise", "decode"} <= metadata["seconds"].keys()


def test_thumbnail_and_spritesheet(finished, content):
    thumbnail = Image.open(io.BytesIO(content(variant="thumbnail").content))
    assert (thumbnail.format, thumbnail.size) == ("WEBP", (64, 64))
    sheet = finished["metadata"]["spritesheet"]
    assert sheet == {"columns": 5, "rows": 4, "frames": 17}
    image = Image.open(io.BytesIO(content(variant="spritesheet").content)).convert("RGB")
    assert image.size == (5 * 64, 4 * 64)
    # The circle moves right: the red of the first cell lies further left than that of the last.
    first, last = image.crop((0, 0, 64, 64)), image.crop((64, 192, 128, 256))
    assert reddest_column(first) + 16 < reddest_column(last)


def reddest_column(image):
    red, _, _ = image.split()
    columns = red.resize((image.width, 1), Image.Resampling.BOX).tobytes()
    return max(range(image.width), key=columns.__getitem__)


@pytest.mark.parametrize(
    ("variant", "media_type", "suffix"),
    [("video", "video/mp4", "mp4"), ("thumbnail", "image/webp", "webp"),
     ("spritesheet", "image/jpeg", "jpg")],
)  # fmt: skip
def test_content_headers(content, finished, variant, media_type, suffix):
    response = content(variant=variant)
    head = content("HEAD", variant=variant)
    assert response.headers["content-type"] == head.headers["content-type"] == media_type
    assert head.headers["content-length"] == str(len(response.content))
    assert head.content == b""
    assert response.headers["accept-ranges"] == "bytes"
    expected = f'inline; filename="{finished["id"]}-{variant}.{suffix}"'
    assert response.headers["content-disposition"] == expected
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("range_", "expected"),
    [("bytes=0-0", slice(0, 1)), ("bytes=10-19", slice(10, 20)), ("bytes=100-", slice(100, None)),
     ("bytes=-7", slice(-7, None)), ("bytes=5-99999999", slice(5, None))],
)  # fmt: skip
def test_a_range(content, range_, expected):
    whole = content().content
    response = content(Range=range_)
    assert response.status_code == 206
    assert response.content == whole[expected]
    start = range(len(whole))[expected][0]
    end = range(len(whole))[expected][-1]
    assert response.headers["content-range"] == f"bytes {start}-{end}/{len(whole)}"


def test_several_ranges(content):
    whole = content().content
    response = content(Range="bytes=0-9,20-29")
    assert response.status_code == 206
    boundary = re.fullmatch(
        r"multipart/byteranges; boundary=(\w+)", response.headers["content-type"]
    )
    parts = response.content.split(b"--" + boundary[1].encode())
    bodies = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts[1:3]]
    assert bodies == [whole[0:10], whole[20:30]]


def test_a_range_outside(content):
    response = content(Range="bytes=99999999-")
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{len(content().content)}"
    assert response.json()["error"]["code"] == "range_not_satisfiable"


@pytest.mark.parametrize("range_", ["bytes=", "lines=1-2", "bytes=abc", "bytes=9-1"])
def test_a_range_that_is_none(content, range_):
    response = content(Range=range_)
    assert response.status_code in (200, 400)
    if response.status_code == 400:
        assert response.json()["error"]["code"] == "invalid_range"


def test_a_file_that_the_client_has_is_not_sent_again(content):
    etag = content().headers["etag"]
    for tags in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        response = content(**{"If-None-Match": tags})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == etag
    assert content(**{"If-None-Match": '"other"'}).status_code == 200
    assert content(**{"Range": "bytes=0-3", "If-Range": etag}).status_code == 206
    assert content(**{"Range": "bytes=0-3", "If-Range": '"other"'}).status_code == 200


def test_events_from_the_queue_to_the_end(tiny):
    running = tiny.create(PROMPT, num_inference_steps=60)
    waiting = tiny.create(PROMPT, num_inference_steps=20)
    seen = list(tiny.events(waiting))
    assert {name for name, _ in seen} == {"video"}
    videos = [video for _, video in seen]
    assert videos[0]["queue_position"] == 2 or videos[0]["queue_position"] == 1
    statuses = [video["status"] for video in videos]
    assert list(dict.fromkeys(statuses)) == ["queued", "in_progress", "completed"]
    steps = [video["step"] for video in videos if video["stage"] == "denoise"]
    assert steps == sorted(steps)
    assert {video["steps"] for video in videos if video["stage"] == "denoise"} == {20}
    progress = [video["progress"] for video in videos]
    assert progress == sorted(progress)
    assert progress[-1] == 100
    assert any(video["seconds_left"] for video in videos if video["stage"] == "denoise")
    assert videos[-1] == tiny.retrieve(waiting)
    assert tiny.retrieve(running)["status"] == "completed"


def test_a_cancelled_job_of_the_real_engine_stops_long_before_its_end(tiny):
    video = tiny.create(PROMPT, num_inference_steps=1000)
    tiny.wait_step(video, 5)
    before = tiny.metric("wan_tpu_denoising_steps_total")
    tiny.client.post(f"/v1/videos/{video['id']}/cancel")
    tiny.finish(tiny.create(PROMPT, num_inference_steps=1))
    assert tiny.metric("wan_tpu_denoising_steps_total") - before < 100


def test_events_of_a_job_that_is_deleted(quick):
    video = quick.create("slow", num_inference_steps=90)
    seen = []
    for event in quick.events(video):
        if not seen:
            quick.client.delete(f"/v1/videos/{video['id']}")
        seen.append(event)
    assert seen[-1] == ("deleted", {"id": video["id"]})


def test_event_streams_are_bounded_and_let_go(start_server):
    server = start_server(max_event_streams=1).wait_ready()
    video = server.create("slow", num_inference_steps=90)
    url = f"/v1/videos/{video['id']}/events"
    with server.client.stream("GET", url):
        assert server.client.get(url).json()["error"]["code"] == "too_many_streams"

    def free():
        with server.client.stream("GET", url) as response:
            return response.status_code == 200

    wait_for(free)


FIELDS = {
    "prompt": PROMPT,
    "model": "wan-tiny",
    "size": "96x64",
    "num_frames": 5,
    "fps": 4,
    "num_inference_steps": 3,
    "guidance_scale": 2.5,
    "flow_shift": 3.5,
    "seed": 2**53 + 1,
    "scheduler": "euler",
    "negative_prompt": "überall Blau",
}


def test_json_and_multipart_say_the_same(quick):
    by_json = quick.client.post("/v1/videos", json=FIELDS)
    form = {name: (None, str(value)) for name, value in FIELDS.items()}
    by_form = quick.client.post("/v1/videos", files=form)
    assert by_json.status_code == by_form.status_code == 200, by_form.text
    for response in (by_json, by_form):
        video = response.json()
        request = video["metadata"]["request"]
        assert {name: request[name] for name in request} == {name: FIELDS[name] for name in request}
        assert (video["prompt"], video["size"]) == (FIELDS["prompt"], FIELDS["size"])
        assert response.headers["openai-poll-after-ms"] == "500"


@pytest.mark.parametrize(
    ("seconds", "fps", "num_frames", "reported"),
    [("2", 8, 17, "2"), (2.0, 8, 17, "2"), ("5", 16, 81, "5"), (1, 15, 17, "1.067"),
     ("0.1", 8, 1, "0"), (4, None, 33, "4")],
)  # fmt: skip
def test_seconds_become_the_nearest_number_of_frames(quick, seconds, fps, num_frames, reported):
    video = quick.create(seconds=seconds, fps=fps, num_inference_steps=1)
    assert video["metadata"]["request"]["num_frames"] == num_frames
    assert video["seconds"] == reported


def test_a_waiting_job_counts_what_is_before_it(start_server):
    server = start_server().wait_ready()
    server.finish(server.create("slow", num_inference_steps=5))
    running = server.create("slow", num_inference_steps=50)
    first, second = (server.create("slow", num_inference_steps=5) for _ in range(2))
    server.wait_step(running, 5)
    wait_for(lambda: server.retrieve(first)["seconds_left"] < 10)  # it counts down while it waits
    left = [server.retrieve(video)["seconds_left"] for video in (running, first, second)]
    assert left[0] < left[1] < left[2]
    assert left[2] - left[1] == pytest.approx(1, abs=0.5)


def test_seconds_and_frames_may_agree(quick):
    assert quick.create(seconds="2", num_frames=17, num_inference_steps=1)["seconds"] == "2"


def test_a_seed_is_chosen_and_reported(quick):
    seeds = {quick.create(num_inference_steps=1)["metadata"]["request"]["seed"] for _ in range(5)}
    assert len(seeds) == 5


def test_idempotency_key(quick):
    def post(key, **fields):
        return quick.client.post(
            "/v1/videos",
            json={"prompt": PROMPT, "num_inference_steps": 1, **fields},
            headers={"Idempotency-Key": key},
        )

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = {r.json()["id"] for r in pool.map(lambda _: post("one"), range(8))}
    assert len(ids) == 1
    form = {"prompt": (None, PROMPT), "num_inference_steps": (None, "1")}
    same = quick.client.post("/v1/videos", files=form, headers={"Idempotency-Key": "one"})
    assert same.json()["id"] in ids
    assert post("two").json()["id"] not in ids
    other = post("one", seed=5)
    assert other.status_code == 409
    assert other.json()["error"]["code"] == "idempotency_conflict"
    assert post("x" * 256).json()["error"]["param"] == "Idempotency-Key"


def test_idempotency_key_survives_a_restart(start_server):
    server = start_server()
    ids = set()
    for _ in range(2):
        response = server.client.post(
            "/v1/videos", json={"prompt": PROMPT}, headers={"Idempotency-Key": "one"}
        )
        ids.add(response.json()["id"])
        server.kill()
        server.start()
    assert len(ids) == 1


def test_models(quick):
    (model,) = quick.client.get("/v1/models").json()["data"]
    assert model["id"] == "wan-tiny"
    assert model["defaults"] == {
        "size": "64x64",
        "seconds": "2",
        "num_frames": 17,
        "fps": 8,
        "num_inference_steps": 12,
        "guidance_scale": 1.5,
        "flow_shift": 5.0,
        "negative_prompt": "",
        "scheduler": "unipc",
        "guidance_scale_2": None,
        "strength": 0.8,
    }
    assert model["limits"]["size_multiple"] == [16, 16]
    assert model["limits"]["max_work"] == 8 * 64 * 64 * 17 * 12
    assert model["sizes"] == ["64x64"]
    assert model["schedulers"] == ["unipc", "euler", "renoise"]


def test_health_and_metrics(quick):
    assert quick.client.get("/livez").json() == {"status": "live"}
    assert quick.client.get("/readyz").json() == {"status": "ready", "missing": []}
    quick.finish(quick.create(num_inference_steps=3))
    response = quick.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert quick.metric("wan_tpu_ready") == 1
    assert quick.metric("wan_tpu_queue_length") == 0
    assert quick.metric('wan_tpu_jobs_total{outcome="completed"}') >= 1
    assert quick.metric("wan_tpu_denoising_steps_total") >= 3
    assert quick.metric('wan_tpu_stage_seconds_count{stage="denoise"}') >= 1
    assert "hbm" not in response.text


def test_not_ready_says_what_is_missing(start_server):
    server = start_server()
    response = server.client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["missing"][0].startswith("the engine is not ready: ")
    assert server.metric('wan_tpu_missing{what="the engine is not ready"}') == 1
    server.wait_ready()
    assert "wan_tpu_missing{" not in server.client.get("/metrics").text
    assert response.json()["error"]["code"] == "not_ready"
    server.wait_ready()


def test_the_log_names_the_job(quick):
    video = quick.finish(quick.create(num_inference_steps=1))

    def said(*words):
        lines = [line for line in quick.log().splitlines() if f"job={video['id']}" in line]
        return any(all(word in line for word in words) for line in lines)

    assert said('message="job started"')
    wait_for(lambda: said('message="job ended"', "code=completed"))  # after clients may know it


def test_the_openapi_document_describes_every_route(quick):
    document = quick.client.get("/openapi.json").json()
    operations = {
        f"{method} {path}" for path, methods in document["paths"].items() for method in methods
    }
    assert operations == {
        "post /v1/videos",
        "get /v1/videos",
        "get /v1/videos/{video_id}",
        "delete /v1/videos/{video_id}",
        "post /v1/videos/{video_id}/cancel",
        "post /v1/videos/{video_id}/ticket",
        "get /v1/videos/{video_id}/content",
        "get /v1/videos/{video_id}/events",
        "get /v1/videos/{video_id}/inputs/{role}",
        "post /v1/videos/{video_id}/remix",
        "post /v1/videos/edits",
        "post /v1/videos/extensions",
        "get /v1/models",
        "get /v1/models/{model_id}",
        "post /v1/profiles",
        "get /v1/profiles",
        "get /v1/profiles/{profile_id}",
        "delete /v1/profiles/{profile_id}",
        "get /v1/profiles/{profile_id}/content",
        "get /livez",
        "get /readyz",
        "get /metrics",
    }
    create = document["paths"]["/v1/videos"]["post"]
    assert create["requestBody"]["content"].keys() == {"application/json", "multipart/form-data"}
    assert {"200", "400", "409", "413", "415", "429", "503"} <= create["responses"].keys()
    assert "422" not in json.dumps(document)


def test_the_page_and_its_files(quick):
    page = quick.client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-cache"
    names = re.findall(r'(?:src|href)="/?(web/[^"]+)"', page.text)
    assert names
    for name in names:
        response = quick.client.get(f"/{name}")
        assert response.status_code == 200, name
        etag = {"If-None-Match": response.headers["etag"]}
        assert quick.client.get(f"/{name}", headers=etag).status_code == 304
    assert quick.client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert quick.client.get("/web/index.html").status_code == 404
