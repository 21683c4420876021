"""Pictures and clips over HTTP, as clients send them; real server, scripted engine."""

import io
import json
import struct
import threading
import zlib

import av
import numpy as np
import openai
import pytest
from PIL import Image

from server.http import guard
from tests.server.http.test_errors import check_shape
from tests.server.pictures import (
    accepted,
    clip,
    create_with,
    data_url,
    large_picture,
    picture,
    uploads,
)
from tests.server.running import SCRIPTED, RunningServer
from wan_tpu.checkpoints.models import WAN_TINY_TI2V
from wan_tpu.media import digest_of

PNG = picture()
LIMIT = 300_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    found = RunningServer(
        folder / "data",
        model=WAN_TINY_TI2V,
        engine=SCRIPTED,
        max_upload_bytes=LIMIT,
        max_queued_jobs=100_000,
    )
    yield found.wait_ready()
    found.stop()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """With a model that takes a first picture, a last one, or both, and needs one."""
    folder = tmp_path_factory.mktemp("both") / "data"
    found = RunningServer(folder, model="wan2.2-i2v-a14b", engine=SCRIPTED)
    yield found.wait_ready()
    found.stop()


def seen_by_the_engine(server):
    return json.loads((server.data_dir / "media-0.json").read_text())


def post_json(server, reference, **fields):
    body = {"prompt": "x", "num_inference_steps": 2, "input_reference": reference, **fields}
    return server.client.post("/v1/videos", json=body)


@pytest.mark.parametrize(
    ("role", "data"),
    [
        ("image", PNG),
        ("image", picture(kind="JPEG")),
        ("image", picture(kind="WEBP")),
        ("video", clip()),
        ("image", large_picture(LIMIT)),
    ],
    ids=["png", "jpeg", "webp", "mp4", "as large as may be"],
)
@pytest.mark.parametrize("way", ["form", "data url", "object"])
def test_the_engine_gets_what_was_sent(server, role, data, way):
    match way:
        case "form":
            video = accepted(create_with(server, data))
        case "data url":
            video = accepted(post_json(server, data_url(data)))
        case "object":
            video = accepted(post_json(server, {"image_url": data_url(data)}))
    assert video["metadata"]["request"][role] == digest_of(data)
    assert server.finish(video)["status"] == "completed"
    assert seen_by_the_engine(server) == {
        "request": {role: digest_of(data)},
        "got": {role: len(data)},
        "digests": [digest_of(data)],
    }


@pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")
def test_the_official_client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        made = client.videos.create(
            prompt="x",
            input_reference=("fox.png", PNG, "image/png"),
            extra_body={"num_inference_steps": 2},
        )
    assert made.metadata["request"]["image"] == digest_of(PNG)


def test_a_request_of_text_alone_names_no_picture(server):
    assert not {"image", "last_image", "video"} & server.create()["metadata"]["request"].keys()


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("fox.png", "invalid_value", "got 'fox.png'"),
        ("https://example.com/fox.png", "invalid_value", "input_reference must be a file of a"),
        ("data:image/png,abc", "invalid_value", "such as data:image/png;base64,"),
        ("data:image/png;base64,%%%", "invalid_value", "a data URL that cannot be decoded"),
        ("data:image/png;base64,aGVsbG8=", "unsupported_file", "it begins with b'hello'"),
        ("data:image/png;base64,", "unsupported_file", "MOV, WebM nor Matroska: it is empty"),
        (5, "invalid_value", "got 5"),
        (True, "invalid_value", "got True"),
        ([PNG.hex()], "invalid_value", "got a list"),
        ({}, "invalid_value", "got an object with nothing"),
        ({"file_id": "file-1"}, "invalid_value", "an object with 'file_id'; the one field it may"),
        ({"image_url": 7}, "invalid_value", "got 7"),
        ({"image_url": ["x"]}, "invalid_value", "got a list in an object"),
        ({"image_url": {"url": "x"}}, "invalid_value", "got an object in an object"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_picture(server, reference, code, words):
    before = uploads(server)
    error = check_shape(post_json(server, reference), 400, code, "input_reference")
    assert words in error["message"]
    assert uploads(server) == before


@pytest.mark.parametrize(
    "data", [b"GIF89a....", b"<svg xmlns='x'/>", b"png", b"\0\0\0\x18ftypheic"], ids=str
)
def test_what_a_file_says_it_is_does_not_count(server, data):
    files = {"prompt": (None, "x"), "input_reference": ("fox.png", data, "image/png")}
    response = server.client.post("/v1/videos", files=files)
    check_shape(response, 400, "unsupported_file", "input_reference")


def test_an_empty_file_is_no_picture(server):
    files = {"prompt": (None, "x"), "input_reference": ("fox.png", b"", "image/png")}
    response = server.client.post("/v1/videos", files=files)
    check_shape(response, 400, "unsupported_file", "input_reference")


def test_two_files(server):
    reference = ("fox.png", PNG, "image/png")
    twice = [("prompt", (None, "x")), *[("input_reference", reference)] * 2]
    response = server.client.post("/v1/videos", files=twice)
    check_shape(response, 400, "invalid_value", "input_reference")
    many = [("prompt", (None, "x")), *[("input_reference", reference)] * 3]
    check_shape(server.client.post("/v1/videos", files=many), 400, "invalid_form")
    elsewhere = {"prompt": (None, "x"), "seed": reference}
    error = check_shape(
        server.client.post("/v1/videos", files=elsewhere), 400, "unknown_field", "seed"
    )
    assert "the fields that take one are: input_reference and last_image" in error["message"]


@pytest.mark.parametrize("name", ["input_reference[image_url]", "input_reference"])
def test_a_data_url_in_a_form(server, name):
    """As OpenAI's clients send what is in `extra_body`; larger than fields of forms usually are."""
    data = large_picture(LIMIT)
    form = {"prompt": (None, "x"), "size": (None, "64x64"), name: (None, data_url(data))}
    video = accepted(server.client.post("/v1/videos", files=form))
    assert video["metadata"]["request"]["image"] == digest_of(data)
    form = {"prompt": (None, "x"), f"{name}[]": (None, "a.png")}
    response = server.client.post("/v1/videos", files=form)
    assert check_shape(response, 400, None, response.json()["error"]["param"])


def test_a_form_may_not_say_it_twice(server):
    url = data_url(PNG)
    for names in (
        ("input_reference[image_url]", "input_reference[image_url]"),
        ("input_reference", "input_reference[image_url]"),
        ("input_reference[image_url]", "input_reference"),
    ):
        form = [("prompt", (None, "x")), *((name, (None, url)) for name in names)]
        response = server.client.post("/v1/videos", files=form)
        error = check_shape(response, 400, "invalid_value", "input_reference")
        assert error["message"] == "input_reference is there more than once"


def test_text_beside_a_file_is_still_utf_8(server):
    """Red when the whole form is no longer looked at because a file is in it."""
    files = [("prompt", (None, b"\xff\xfe")), ("input_reference", ("fox.png", PNG, "image/png"))]
    check_shape(server.client.post("/v1/videos", files=files), 400, "invalid_form")


@pytest.mark.parametrize("way", ["form", "data url"])
def test_a_picture_that_is_too_large(server, way):
    data = large_picture(LIMIT + 1)
    send = create_with if way == "form" else lambda s, d: post_json(s, data_url(d))
    error = check_shape(send(server, data), 413, "upload_too_large", "input_reference")
    assert error["message"] == f"input_reference has {LIMIT + 1} bytes, at most {LIMIT} are taken"


def test_a_body_that_is_too_large_for_any_picture(server):
    check_shape(create_with(server, large_picture(4 * LIMIT)), 413, "body_too_large")


def test_other_routes_have_their_old_limit(server):
    """Red when every route takes megabytes."""
    video = server.create()
    response = server.client.post(f"/v1/videos/{video['id']}/cancel", content=bytes(200_000))
    check_shape(response, 413, "body_too_large")


def test_a_repetition_is_known_by_its_picture(server):
    headers = {"Idempotency-Key": "with a picture"}

    def send(data):
        files = {"prompt": (None, "x"), "input_reference": ("a", data, "image/png")}
        return server.client.post("/v1/videos", files=files, headers=headers)

    first = accepted(send(PNG))
    assert accepted(send(PNG))["id"] == first["id"]
    as_json = {"prompt": "x", "input_reference": data_url(PNG)}
    again = server.client.post("/v1/videos", json=as_json, headers=headers)
    assert accepted(again)["id"] == first["id"]
    before = uploads(server)
    other = picture(99)
    check_shape(send(other), 409, "idempotency_conflict", "Idempotency-Key")
    assert uploads(server) == before, "nothing is left of a request that was refused"


def test_many_at_once_are_all_taken_or_told_to_come_again(server):
    answers = []

    def send(number):
        data = large_picture(LIMIT, seed=number)
        answers.append((digest_of(data), create_with(server, data)))

    threads = [threading.Thread(target=send, args=(n,)) for n in range(3 * guard.MOST_LARGE_BODIES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = {digest for digest, answer in answers if answer.status_code == 200}
    assert len(taken) >= guard.MOST_LARGE_BODIES
    assert taken <= uploads(server)
    for _, answer in answers:
        if answer.status_code != 200:
            check_shape(answer, 503, "too_many_uploads")
            assert int(answer.headers["Retry-After"]) >= 1
    accepted(create_with(server, large_picture(LIMIT)))


def test_a_model_of_text_takes_no_picture(quick):
    """In every form; and nothing of it is stored."""
    words = "wan-tiny is a text-to-video model and takes text alone, or a video, not an image"
    for response in (
        create_with(quick, PNG),
        post_json(quick, data_url(PNG)),
        post_json(quick, {"image_url": data_url(PNG)}),
    ):
        error = check_shape(response, 400, "invalid_value", "input_reference")
        assert error["message"] == words
    both = {"prompt": "x", "last_image": data_url(PNG), "input_reference": data_url(clip())}
    error = check_shape(
        quick.client.post("/v1/videos", json=both), 400, "invalid_value", "last_image"
    )
    assert error["message"].endswith("not a last image and a video")
    assert uploads(quick) == set()


def animated(kind):
    file = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def huge():
    """A PNG of a few bytes that says that it has 100,000 x 100,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        PNG[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]
    )


def sound():
    """An MP4 without a video."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate, samples.pts = 44_100, 0
        for packet in (*stream.encode(samples), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (PNG[: len(PNG) // 2], "damaged"),
        (PNG[:60], "damaged"),
        (clip()[:600], "damaged"),
        (animated("PNG"), "animated"),
        (animated("WEBP"), "animated"),
        (huge(), "100000x100000"),
        (picture(size=(3, 2000)), "2000x3"),
        (sound(), "no video"),
    ],
    ids=["cut", "head alone", "clip cut", "APNG", "animated WebP", "huge", "strip", "sound"],
)
def test_what_cannot_be_decoded_leaves_nothing(server, data, words):
    before = uploads(server)
    error = check_shape(create_with(server, data), 400, "invalid_value", "input_reference")
    assert words in error["message"]
    assert "\n" not in error["message"]
    assert uploads(server) == before


def test_of_two_pictures_the_one_to_blame_is_named(both):
    cut = PNG[: len(PNG) // 2]
    for first, last, code, field in (
        (PNG, cut, "invalid_value", "last_image"),
        (cut, PNG, "invalid_value", "input_reference"),
        (PNG, clip(), "unsupported_file", "last_image"),
        (PNG, b"", "unsupported_file", "last_image"),
    ):
        response = post_json(both, data_url(first), last_image=data_url(last))
        check_shape(response, 400, code, field)
    assert uploads(both) == set()


def test_a_first_and_a_last_picture(both):
    """The last one as a file, and as the text that OpenAI's client can send."""
    size = {"prompt": "x", "size": "64x64", "num_frames": "5", "num_inference_steps": "2"}
    other = picture(1)
    text = {name: (None, value) for name, value in size.items()}
    for last in (("b.png", other, "image/png"), (None, data_url(other))):
        files = {**text, "input_reference": ("a.png", PNG, "image/png"), "last_image": last}
        video = accepted(both.client.post("/v1/videos", files=files))
        request = video["metadata"]["request"]
        assert (request["image"], request["last_image"]) == (digest_of(PNG), digest_of(other))
        assert both.finish(video)["status"] == "completed"
        assert sorted(seen_by_the_engine(both)["got"]) == ["image", "last_image"]
    files = {**text, "last_image": ("b.png", other, "image/png")}
    video = accepted(both.client.post("/v1/videos", files=files))
    assert {"image", "last_image"} & video["metadata"]["request"].keys() == {"last_image"}
    error = check_shape(
        both.client.post("/v1/videos", json=size), 400, "missing_field", "input_reference"
    )
    assert "takes an image, or an image and a last image" in error["message"]
    assert "and none was given" in error["message"]
    error = check_shape(post_json(both, data_url(clip())), 400, "invalid_value", "input_reference")
    assert "not a video" in error["message"]
    remix = both.client.post(f"/v1/videos/{video['id']}/remix", json={"prompt": "x"})
    check_shape(remix, 400, "invalid_value", "video_id")


def test_strength_belongs_to_a_video(server):
    error = check_shape(create_with(server, PNG, strength=0.5), 400, "invalid_value", "strength")
    assert error["message"].endswith("no video is given")
    video = accepted(create_with(server, clip(), strength=0.5))
    assert video["metadata"]["request"]["strength"] == 0.5
    response = create_with(server, clip(), strength=0.1)  # of two steps, none
    assert check_shape(response, 400, "invalid_value", "strength")["message"].count("\n") == 0


def test_a_clip_says_size_and_length(server):
    video = accepted(create_with(server, clip(num_frames=9, size=(96, 64))))
    assert (video["size"], video["seconds"]) == ("160x96", "1")
    video = accepted(create_with(server, clip(num_frames=9), num_frames=5, size="96x64"))
    assert (video["size"], video["seconds"]) == ("96x64", "0.5")
    error = check_shape(
        create_with(server, clip(num_frames=9), num_frames=13), 400, None, "num_frames"
    )
    assert "9" in error["message"]


def test_inputs_are_sent_back_as_they_came(server):
    video = accepted(create_with(server, PNG))
    response = server.client.get(f"/v1/videos/{video['id']}/inputs/image")
    assert response.content == PNG
    assert response.headers["content-type"] == "image/png"
    part = server.client.get(
        f"/v1/videos/{video['id']}/inputs/image", headers={"Range": "bytes=0-7"}
    )
    assert (part.status_code, part.content) == (206, PNG[:8])
    response = server.client.get(f"/v1/videos/{video['id']}/inputs/video")
    error = check_shape(response, 404, "not_found", "role")
    assert error["message"].endswith("is made from image, and no 'video'")
    (server.data_dir / "uploads" / digest_of(PNG)[7:]).rename(server.data_dir / "elsewhere")
    response = server.client.get(f"/v1/videos/{video['id']}/inputs/image")
    check_shape(response, 410, "files_lost")
    (server.data_dir / "elsewhere").rename(server.data_dir / "uploads" / digest_of(PNG)[7:])
