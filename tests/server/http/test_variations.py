"""Remix, edit, extend over HTTP, with the unmodified client; real server, scripted engine."""

import io
import json

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from server.keys import add_key
from tests.server.http.test_errors import check_shape
from tests.server.pictures import accepted, clip, data_url, has, picture, uploads
from tests.server.running import SCRIPTED, RunningServer
from wan_tpu.checkpoints.models import WAN_TINY_TI2V
from wan_tpu.image.video import read_video
from wan_tpu.media import digest_of

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")

QUICK = {"num_inference_steps": 2}
NEW = "something else"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variations") / "data"
    found = RunningServer(folder, model=WAN_TINY_TI2V, engine=SCRIPTED)
    yield found.wait_ready()
    found.stop()


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def first(server):
    """A completed video."""
    return server.finish(server.create("x", seed=7, guidance_scale=3, num_frames=9, **QUICK))


def content_of(server, video):
    return server.client.get(f"/v1/videos/{video['id']}/content").content


def frames_of(data):
    return read_video(data, 8, 1000)


def seen_by_the_engine(server):
    return json.loads((server.data_dir / "media-0.json").read_text())["request"]


def as_json(made):
    return json.loads(made.model_dump_json())


def test_remix(server, client, first):
    made = client.videos.remix(first["id"], prompt=NEW)
    assert (made.prompt, made.remixed_from_video_id) == (NEW, first["id"])
    assert (made.size, made.seconds) == (first["size"], first["seconds"])
    request = made.metadata["request"]
    assert {**first["metadata"]["request"], "strength": 0.8, "video": request["video"]} == request
    assert request["video"] == digest_of(content_of(server, first))
    assert server.finish(as_json(made))["status"] == "completed"
    assert seen_by_the_engine(server) == {"video": request["video"]}
    assert as_json(client.videos.retrieve(made.id))["remixed_from_video_id"] == first["id"]


def test_a_remix_takes_other_settings(server, client, first):
    other = {"strength": 0.5, "seed": 8, "num_frames": 5, "num_inference_steps": 4}
    made = client.videos.remix(first["id"], prompt=NEW, extra_body=other)
    assert other.items() <= made.metadata["request"].items()
    form = {"prompt": (None, NEW), "strength": (None, "0.5")}
    video = accepted(server.client.post(f"/v1/videos/{first['id']}/remix", files=form))
    assert video["metadata"]["request"]["strength"] == 0.5


def test_a_seed_of_any_kind_is_another_one(server, first):
    for seed in (-1, None):
        body = {"prompt": NEW, "seed": seed}
        made = accepted(server.client.post(f"/v1/videos/{first['id']}/remix", json=body))
        assert made["metadata"]["request"]["seed"] != 7


LEVELS = [1.0, 0.75, 0.5]


def remix(server, source, **fields):
    body = {"prompt": NEW, **fields}
    return server.client.post(f"/v1/videos/{source['id']}/remix", json=body)


def test_a_preset_holds_as_a_whole_or_not_at_all(server):
    source = server.finish(server.create("x", fast="fastwan-3", num_frames=5))
    wanted = {name: source["metadata"]["request"][name] for name in ("fast", "sigmas", "scheduler")}
    request = accepted(remix(server, source))["metadata"]["request"]
    assert wanted.items() <= request.items()
    error = check_shape(
        remix(server, source, num_inference_steps=9), 400, "invalid_value", "num_inference_steps"
    )
    assert "the preset fastwan-3 has 3" in error["message"]
    assert error["message"].endswith(
        f"fast is as for {source['id']}: null, or empty text, does without"
    )
    for none in (False, None, ""):
        request = accepted(remix(server, source, fast=none, num_inference_steps=9))["metadata"]
        assert not {"fast", "sigmas"} & request["request"].keys()
        assert request["request"]["guidance_scale"] > 1
    own = accepted(remix(server, source, sigmas=LEVELS))["metadata"]["request"]
    assert ("fast" in own, own["sigmas"]) == (False, LEVELS)


def test_noise_levels_hold_until_something_else_says_the_steps(server):
    source = server.finish(server.create("x", sigmas=LEVELS, num_frames=5, guidance_scale=3))
    held = accepted(remix(server, source))["metadata"]["request"]
    assert (held["sigmas"], held["guidance_scale"]) == (LEVELS, 3)
    for fields in ({"num_inference_steps": 4}, {"flow_shift": 3}, {"sigmas": None}):
        request = accepted(remix(server, source, **fields))["metadata"]["request"]
        assert "sigmas" not in request
        assert request["guidance_scale"] == 3
    fast = accepted(remix(server, source, fast="fastwan-3"))["metadata"]["request"]
    assert (fast["fast"], fast["guidance_scale"]) == ("fastwan-3", 1)


def test_edit_of_a_file(server, client, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip(num_frames=9))
    for video in (path, path.read_bytes(), ("any", path.read_bytes(), "text/plain")):
        made = client.videos.edit(prompt=NEW, video=video, extra_body=QUICK)
        assert made.metadata["request"]["video"] == digest_of(clip(num_frames=9))
        assert (made.size, made.seconds, made.remixed_from_video_id) == ("128x128", "1", None)
    assert server.finish(as_json(made))["status"] == "completed"


@pytest.mark.parametrize("way", ["json", "form"])
def test_edit_of_a_completed_video(server, first, way):
    if way == "json":
        kind = {"json": {"prompt": NEW, "video": {"id": first["id"]}}}
    else:
        kind = {"files": {"prompt": (None, NEW), "video[id]": (None, first["id"])}}
    made = accepted(server.client.post("/v1/videos/edits", **kind))
    assert made["remixed_from_video_id"] == first["id"]
    assert made["metadata"]["request"]["seed"] == 7


def test_extend_a_completed_video(server, client, first):
    made = client.videos.extend(prompt=NEW, video=("a.mp4", content_of(server, first)), seconds="1")
    by_id = {"prompt": NEW, "video": {"id": first["id"]}, "seconds": "1"}
    video = accepted(server.client.post("/v1/videos/extensions", json=by_id))
    for each, source in ((as_json(made), None), (video, first["id"])):
        assert each["remixed_from_video_id"] == source
        assert (each["seconds"], each["size"]) == ("2", first["size"])
        assert each["metadata"]["request"]["num_frames"] == 9
        assert each["metadata"]["extended"] == {
            "video": digest_of(content_of(server, first)),
            "num_frames": 9,
        }
        assert has(server, content_of(server, first))
    assert video["metadata"]["request"]["guidance_scale"] == 3
    done = server.finish(video)
    assert done["status"] == "completed", done["error"]
    assert done["seconds"] == "2"
    whole, before = frames_of(content_of(server, done)), frames_of(content_of(server, first))
    assert len(whole) == 17, "the frame where both meet is there once"
    error = np.abs(whole[:9].astype(int) - before).max()
    assert error <= 4, "the old frames come first"
    levels = whole[9:].mean(axis=(1, 2, 3))  # those of the scripted engine, without its first
    assert np.abs(levels - [255 * index // 9 for index in range(1, 9)]).max() <= 4
    assert done["metadata"]["spritesheet"]["frames"] == 17
    last = server.client.get(f"/v1/videos/{done['id']}/inputs/image").content
    picture_of_it = np.asarray(Image.open(io.BytesIO(last)))
    assert np.array_equal(picture_of_it, before[-1])
    clip_of_it = server.client.get(f"/v1/videos/{done['id']}/inputs/extended").content
    assert clip_of_it == content_of(server, first)


def test_an_extended_video_is_extended_and_remixed(server, client, first):
    body = {"prompt": NEW, "video": {"id": first["id"]}, "num_frames": 5}
    longer = server.finish(accepted(server.client.post("/v1/videos/extensions", json=body)))
    body["video"]["id"] = longer["id"]
    longest = server.finish(accepted(server.client.post("/v1/videos/extensions", json=body)))
    assert longest["seconds"] == "2"
    assert len(frames_of(content_of(server, longest))) == 17
    made = client.videos.remix(longest["id"], prompt=NEW)
    assert (made.seconds, made.metadata["request"]["num_frames"]) == ("2", 17)


def test_a_clip_of_another_size_is_made_to_fit(server, client):
    size = {"size": "64x64", **QUICK}
    data = clip(num_frames=5, size=(96, 48))
    made = client.videos.extend(prompt=NEW, video=data, seconds="1", extra_body=size)
    done = server.finish(as_json(made))
    assert frames_of(content_of(server, done)).shape == (13, 64, 64, 3)
    own = client.videos.extend(prompt=NEW, video=clip(5, (96, 64)), seconds="1", extra_body=QUICK)
    assert own.size == "96x64", "a size that the model makes stays"


def test_a_source_may_go_while_the_job_waits(server):
    first = server.finish(server.create("x", num_frames=13, **QUICK))  # no other test's bytes
    slow = server.create("slow", num_inference_steps=90)
    server.wait_step(slow, 1)
    source = content_of(server, first)
    remix = {"prompt": NEW}
    made = [accepted(server.client.post(f"/v1/videos/{first['id']}/remix", json=remix))]
    body = {"prompt": NEW, "video": {"id": first["id"]}, "num_frames": 5}
    made.append(accepted(server.client.post("/v1/videos/extensions", json=body)))
    server.client.delete(f"/v1/videos/{first['id']}")
    assert has(server, source)
    server.client.post(f"/v1/videos/{slow['id']}/cancel")
    for video in made:
        done = server.finish(video)
        assert done["status"] == "completed", done["error"]
        assert done["remixed_from_video_id"] == first["id"]
        server.client.delete(f"/v1/videos/{video['id']}")
    assert not has(server, source)


def test_a_repetition_is_known_also_when_its_source_is_gone(server, first):
    def remix(prompt=NEW):
        headers = {"Idempotency-Key": f"remix of {first['id']}"}
        path = f"/v1/videos/{first['id']}/remix"
        return server.client.post(path, json={"prompt": prompt}, headers=headers)

    made = accepted(remix())
    assert accepted(remix())["id"] == made["id"]
    server.client.delete(f"/v1/videos/{first['id']}")
    assert accepted(remix())["id"] == made["id"]
    check_shape(remix("other"), 409, "idempotency_conflict", "Idempotency-Key")


def test_sources_that_are_none(server, first):
    def ask(video_id):
        by_id = {"prompt": NEW, "video": {"id": video_id}, "seconds": 1}
        return {
            "video_id": server.client.post(f"/v1/videos/{video_id}/remix", json={"prompt": NEW}),
            "video": server.client.post("/v1/videos/extensions", json=by_id),
        }

    for field, response in ask("video_" + "0" * 32).items():
        check_shape(response, 404, "not_found", field)
    failed = server.finish(server.create("boom"))
    waiting = server.create("slow", num_inference_steps=90)
    for response in ask(waiting["id"]).values():
        check_shape(response, 409, "video_not_ready")
    for response in ask(failed["id"]).values():
        check_shape(response, 409, "video_failed")
    server.client.post(f"/v1/videos/{waiting['id']}/cancel")
    (server.data_dir / "videos" / first["id"] / "video.mp4").write_bytes(b"other")
    for response in ask(first["id"]).values():
        check_shape(response, 410, "files_lost")
    before = uploads(server)
    for body, code, field in (
        ({"video": {"id": 5}}, "not_found", "video"),
        ({"video": {"file_id": "f"}}, "invalid_value", "video"),
        ({"video": "https://example.com/a.mp4"}, "invalid_value", "video"),
        ({"video": data_url(picture())}, "unsupported_file", "video"),
        ({"video": data_url(clip()[:500])}, "invalid_value", "video"),
        ({"video": [1]}, "invalid_value", "video"),
        ({}, "missing_field", "video"),
        ({"video": None}, "missing_field", "video"),
        (
            {"video": {"id": first["id"]}, "input_reference": "x"},
            "unknown_field",
            "input_reference",
        ),
    ):
        for route in ("edits", "extensions"):
            response = server.client.post(f"/v1/videos/{route}", json={"prompt": NEW, **body})
            check_shape(response, 404 if code == "not_found" else 400, code, field)
    assert uploads(server) == before


def test_a_clip_that_is_too_long_is_not_continued(server):
    data = clip(num_frames=8 * 17 + 1)
    body = {"prompt": NEW, "video": data_url(data)}
    response = server.client.post("/v1/videos/extensions", json=body)
    error = check_shape(response, 400, "too_long", "video")
    assert "137 frames at 8 fps" in error["message"]


def test_what_a_text_model_takes(quick):
    body = {"prompt": NEW, "video": data_url(clip())}
    response = quick.client.post("/v1/videos/extensions", json=body)
    error = check_shape(response, 400, "invalid_value", "video")
    assert error["message"] == (
        "a video is continued from its last frame as an image, and wan-tiny is a text-to-video "
        "model and takes text alone, or a video, not an image"
    )
    assert uploads(quick) == set()


def test_videos_of_other_keys_are_none(tmp_path):
    keys = tmp_path / "keys"
    ada, eve = add_key(keys, "ada"), add_key(keys, "eve")
    server = RunningServer(
        tmp_path / "data", model=WAN_TINY_TI2V, engine=SCRIPTED, api_keys_file=keys
    )
    try:
        server.client.headers["Authorization"] = f"Bearer {ada}"
        first = server.finish(server.create("x", **QUICK))
        made = server.finish(
            accepted(server.client.post(f"/v1/videos/{first['id']}/remix", json={"prompt": NEW}))
        )
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {eve}"}) as other:
            for path, body, field in (
                (f"{first['id']}/remix", {"prompt": NEW}, "video_id"),
                ("edits", {"prompt": NEW, "video": {"id": first["id"]}}, "video"),
                ("extensions", {"prompt": NEW, "video": {"id": first["id"]}}, "video"),
            ):
                check_shape(other.post(f"/v1/videos/{path}", json=body), 404, "not_found", field)
            response = other.get(f"/v1/videos/{made['id']}/inputs/video")
            check_shape(response, 404, "not_found", "video_id")
    finally:
        server.stop()
