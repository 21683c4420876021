"""Pictures and longer videos with the official client, unmodified, and a real model.

wan-tiny-ti2v animates a picture of a shape as the prompt says.
"""

import io
import json

import numpy as np
import openai
import pytest
from PIL import Image

from tests.server.http.test_errors import check_shape
from tests.server.pictures import data_url, has
from wan_tpu.demo import data
from wan_tpu.demo.judge import decibels
from wan_tpu.demo.recognition import judge_frames
from wan_tpu.image.video import read_video
from wan_tpu.media import digest_of

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")

RIGHT = "a red square moving right on a black background"
LEFT = RIGHT.replace("right", "left")
DOWN = RIGHT.replace("right", "down")
PICTURE = data.make_picture(
    data.parse_prompt(RIGHT), np.random.default_rng(4), data.MIDDLE_WORLD
)  # [height, width, 3]: the shape is near the middle, where it may go anywhere


@pytest.fixture
def client(tiny_ti2v):
    url = f"{tiny_ti2v.url}/v1"
    with openai.OpenAI(base_url=url, api_key="not-needed", max_retries=0) as client:
        yield client


def as_file(kind):
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, kind, quality=95)
    return file.getvalue()


def frames_of(client, video):
    return read_video(client.videos.download_content(video.id).read(), 8, 1000)


def done(client, video):
    finished = client.videos.poll(video.id)
    assert finished.status == "completed", finished.error
    return finished


@pytest.fixture(scope="module")
def first(tiny_ti2v):
    """A video that begins with the picture, and goes right."""
    with openai.OpenAI(base_url=f"{tiny_ti2v.url}/v1", api_key="x") as client:
        made = client.videos.create_and_poll(
            prompt=RIGHT,
            input_reference=("a.png", as_file("PNG"), "image/png"),
            extra_body={"seed": 1},
        )
        assert made.status == "completed", made.error
        stages = made.metadata["seconds"]
        assert {"encode", "denoise"} <= stages.keys()
        assert not [s for s in stages if s.startswith("compile")], "each way is warmed up"
        yield made


def test_a_picture_moves_as_the_prompt_says(client, first, tmp_path):
    """By path and as bytes, PNG and JPEG; the first frame is the picture."""
    path = tmp_path / "square.jpg"
    path.write_bytes(as_file("JPEG"))
    by_path = client.videos.create(prompt=LEFT, input_reference=path, extra_body={"seed": 2})
    by_bytes = client.videos.create(
        prompt=DOWN, input_reference=as_file("PNG"), extra_body={"seed": 2}
    )
    for video, prompt in ((first, RIGHT), (by_path, LEFT), (by_bytes, DOWN)):
        finished = done(client, video)
        assert (finished.size, finished.seconds) == ("128x128", "2")
        frames = frames_of(client, video)
        assert decibels(frames[0], PICTURE) >= 28, "the first frame is the picture"
        verdict = judge_frames(frames)
        assert all(verdict.right_words(data.parse_prompt(prompt)).values()), (prompt, verdict)
    assert by_path.metadata["request"]["image"] == digest_of(path.read_bytes())
    assert by_bytes.metadata["request"]["image"] == digest_of(as_file("PNG"))


def test_a_data_url_in_extra_body(client):
    """As this client sends it: the text field `input_reference[image_url]`."""
    url = data_url(as_file("PNG"))
    made = client.videos.create(
        prompt=RIGHT,
        extra_body={"input_reference": {"image_url": url}, "num_inference_steps": 2},
    )
    assert made.metadata["request"]["image"] == digest_of(as_file("PNG"))
    client.videos.delete(made.id)


def test_an_extension_goes_on_where_the_video_ends(client, first):
    before = frames_of(client, first)
    content = client.videos.download_content(first.id).read()
    made = client.videos.extend(
        prompt=LEFT, video=("first.mp4", content), seconds="2", extra_body={"seed": 3}
    )
    finished = done(client, made)
    assert (finished.seconds, finished.size) == ("4", first.size)
    frames = frames_of(client, finished)
    assert len(frames) == 33
    assert min(decibels(a, b) for a, b in zip(frames, before, strict=False)) >= 35
    assert decibels(frames[17], frames[16]) > 15, "no seam: the square has moved a little"
    assert judge_frames(frames[:17]).direction == "right"
    assert judge_frames(frames[16:]).direction == "left"


def test_an_extension_by_id_and_its_remix(client, tiny_ti2v, first):
    body = {"prompt": LEFT, "video": {"id": first.id}, "seconds": "1", "num_inference_steps": 4}
    longer = tiny_ti2v.finish(tiny_ti2v.client.post("/v1/videos/extensions", json=body).json())
    assert (longer["status"], longer["seconds"]) == ("completed", "3"), longer["error"]
    assert longer["remixed_from_video_id"] == first.id
    content = client.videos.download_content(longer["id"]).read()
    made = client.videos.remix(
        longer["id"], prompt=RIGHT.replace("red", "blue"), extra_body={"strength": 0.9}
    )
    client.videos.delete(longer["id"])
    finished = done(client, made)
    assert (finished.seconds, finished.remixed_from_video_id) == ("3", longer["id"])
    assert has(tiny_ti2v, content), "its own copy of what it was made from"
    assert judge_frames(frames_of(client, finished)).color == "blue"


def test_what_the_model_takes(client, tiny_ti2v):
    model = client.models.retrieve("wan-tiny-ti2v")
    assert model.inputs == [[], ["image"], ["video"]]
    assert model.defaults["strength"] == 0.8
    both = {"input_reference": data_url(as_file("PNG")), "last_image": data_url(as_file("PNG"))}
    body = json.dumps({"prompt": RIGHT, **both})
    response = tiny_ti2v.client.post(
        "/v1/videos", content=body, headers={"Content-Type": "application/json"}
    )
    error = check_shape(response, 400, "invalid_value", "last_image")
    assert error["message"].startswith("wan-tiny-ti2v is a text-and-image-to-video model and takes")
