"""Pictures and clips over HTTP, as clients send them; real server, scripted engine."""

import json
import threading

import openai
import pytest

from server.http import guard
from tests.server.http.test_errors import check_shape
from tests.server.picture_server import MODULE
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
from wan_tpu.media import digest_of

PNG = picture()
LIMIT = 300_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    found = RunningServer(
        folder / "data",
        module=MODULE,
        engine=SCRIPTED,
        max_upload_bytes=LIMIT,
        max_queued_jobs=100_000,
    )
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
        ("data:image/png;base64,", "unsupported_file", "neither PNG, JPEG, WebP nor MP4"),
        (5, "invalid_value", "got 5"),
        (True, "invalid_value", "got True"),
        ([PNG.hex()], "invalid_value", "got a list"),
        ({}, "invalid_value", "got an object with nothing"),
        ({"file_id": "file-1"}, "invalid_value", "an object with 'file_id'; the one field it may"),
        ({"image_url": 7}, "invalid_value", "got 7"),
        ({"image_url": ["x"]}, "invalid_value", "got lists or objects in an object"),
        ({"image_url": {"url": "x"}}, "invalid_value", "got lists or objects in an object"),
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
    files = [
        ("prompt", (None, "x")),
        ("input_reference", reference),
        ("input_reference", reference),
    ]
    check_shape(server.client.post("/v1/videos", files=files), 400, "invalid_form")
    files = [("prompt", (None, "x")), ("last_image", reference)]
    check_shape(server.client.post("/v1/videos", files=files), 400, "unknown_field", "last_image")


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
    check_shape(create_with(server, large_picture(2 * LIMIT)), 413, "body_too_large")


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


def test_a_model_of_text_takes_none(quick):
    """Whatever it is, in every form; and nothing of it is stored."""
    words = "wan-tiny is a text-to-video model and takes no image"
    for response in (
        create_with(quick, PNG),
        create_with(quick, b"png"),
        post_json(quick, data_url(PNG)),
        post_json(quick, {"image_url": data_url(PNG)}),
        post_json(quick, "fox.png"),
    ):
        error = check_shape(response, 400, "unknown_field", "input_reference")
        assert error["message"] == words
    assert uploads(quick) == set()
    check_shape(create_with(quick, large_picture(200_000)), 413, "body_too_large")
