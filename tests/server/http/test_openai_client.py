"""The official client, unmodified, against the real engine."""

import numpy as np
import openai
import pytest

from wan_tpu.image.video import read_video

# The client says of every call that the service it was first made for is going to end; ours is not.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")

PROMPT = "a red circle moving right on a black background"


@pytest.fixture
def client(tiny):
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="not-needed", max_retries=0) as client:
        yield client


def test_create_and_poll_and_download(client, tmp_path):
    video = client.videos.create_and_poll(
        prompt=PROMPT, model="wan-tiny", size="64x64", seconds="2", extra_body={"seed": 1}
    )
    assert video.status == "completed", video.error
    assert (video.seconds, video.size, video.model) == ("2", "64x64", "wan-tiny")
    assert (video.progress, video.prompt, video.error) == (100, PROMPT, None)
    assert video.expires_at > video.completed_at >= video.created_at
    for variant, magic in (("video", b"ftyp"), ("thumbnail", b"WEBP"), ("spritesheet", b"JFIF")):
        content = client.videos.download_content(video.id, variant=variant)
        content.write_to_file(tmp_path / variant)
        assert magic in (tmp_path / variant).read_bytes()[:16]


def test_create_retrieve_and_delete(client):
    video = client.videos.create(prompt=PROMPT, extra_body={"num_inference_steps": 2})
    assert video.status == "queued"
    assert client.videos.retrieve(video.id).id == video.id
    deleted = client.videos.delete(video.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (video.id, "video.deleted", True)
    with pytest.raises(openai.NotFoundError) as error:
        client.videos.retrieve(video.id)
    assert (error.value.code, error.value.param) == ("not_found", "video_id")


def test_list_goes_through_all_pages_in_both_orders(client):
    created = [
        client.videos.create(prompt=f"{PROMPT} {i}", extra_body={"num_inference_steps": 1}).id
        for i in range(5)
    ]
    ours = [v.id for v in client.videos.list(limit=2, order="asc") if v.id in created]
    assert ours == created
    ours = [v.id for v in client.videos.list(limit=2) if v.id in created]
    assert ours == created[::-1]
    page = client.videos.list(limit=2, after=created[4])
    assert [v.id for v in page.data] == created[3:1:-1]
    assert page.has_more
    # A page whose last job was deleted meanwhile is no dead end.
    client.videos.delete(created[2])
    assert [v.id for v in client.videos.list(limit=2, after=created[2]).data] == created[1::-1]
    for job in (*created[:2], *created[3:]):
        client.videos.delete(job)


def test_errors_are_of_the_clients_classes(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.videos.create(prompt=PROMPT, size="60x64")
    assert error.value.param == "size"
    assert "nearest: 48 or 64" in error.value.message
    with pytest.raises(openai.NotFoundError) as error:
        client.videos.create(prompt=PROMPT, model="sora-2")
    assert error.value.code == "model_not_found"
    assert "wan-tiny" in error.value.message
    with pytest.raises(openai.BadRequestError) as error:
        client.videos.create(prompt=PROMPT, input_reference=("a.png", b"png", "image/png"))
    assert error.value.param == "input_reference"


def test_content_before_its_time(client):
    video = client.videos.create(prompt=PROMPT)
    with pytest.raises(openai.ConflictError) as error:
        client.videos.download_content(video.id)
    assert error.value.code == "video_not_ready"
    client.videos.delete(video.id)


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("wan-tiny", "wan-tpu")
    assert model.defaults["size"] == "64x64"
    assert model.inputs == client.models.retrieve("wan-tiny").inputs == [[], ["video"]]


def test_remix_and_edit_make_a_video_anew(client, tmp_path):
    """The square of the first video stays where it was and takes the new prompt's colour."""
    first = client.videos.create_and_poll(prompt=PROMPT, extra_body={"seed": 3})
    content = client.videos.download_content(first.id).read()
    (tmp_path / "first.mp4").write_bytes(content)
    new = PROMPT.replace("red", "blue")
    strength = {"strength": 0.9}
    made = [
        client.videos.remix(first.id, prompt=new, extra_body=strength),
        client.videos.edit(prompt=new, video=tmp_path / "first.mp4", extra_body=strength),
        client.videos.edit(prompt=new, video=content, extra_body=strength),
    ]
    assert [each.remixed_from_video_id for each in made] == [first.id, None, None]
    for each in made:
        done = client.videos.poll(each.id)
        assert done.status == "completed", done.error
        assert (done.size, done.seconds) == (first.size, first.seconds)
        frames = read_video(client.videos.download_content(done.id).read(), 8, 100).astype(int)
        assert colour_of(frames[8]) == "blue"
    assert colour_of(read_video(content, 8, 100).astype(int)[8]) == "red"


def colour_of(frame):
    """Of most pixels that have one: of the three at which brightness is the most above others."""
    strongest = frame.argmax(axis=-1)[frame.max(axis=-1) - frame.min(axis=-1) > 80]
    assert len(strongest) > 30, "there is nothing to be seen"
    return ("red", "green", "blue")[np.bincount(strongest, minlength=3).argmax()]


def test_a_video_of_words_alone_cannot_be_extended(client):
    video = client.videos.create_and_poll(prompt=PROMPT, extra_body={"num_inference_steps": 2})
    content = client.videos.download_content(video.id).read()
    with pytest.raises(openai.BadRequestError) as error:
        client.videos.extend(prompt=PROMPT, seconds="2", video=content)
    assert error.value.param == "video"
    assert "wan-tiny is a text-to-video model and takes text alone, or a video" in str(error.value)
