"""A request against a model's description; no weights."""

import dataclasses

import pytest

from wan_tpu.checkpoints.models import describe_model
from wan_tpu.errors import InputError, MediaError
from wan_tpu.media import ROLES, digest_of
from wan_tpu.pipeline import check
from wan_tpu.pipeline.check import check_request
from wan_tpu.request import VideoRequest

DIGEST = digest_of(b"a picture")


@pytest.mark.parametrize(
    ("role", "words"), [("image", "image"), ("last_image", "last image"), ("video", "video")]
)
@pytest.mark.parametrize("name", ["wan-tiny", "wan2.1-t2v-14b"])
def test_a_model_of_text_takes_no_picture(name, role, words):
    request = VideoRequest(prompt="a fox", **{role: DIGEST})
    with pytest.raises(MediaError) as caught:
        check_request(describe_model(name), request)
    assert str(caught.value) == f"{name} is a text-to-video model and takes no {words}"
    assert isinstance(caught.value, InputError)


def test_a_model_that_takes_one_role_takes_no_other(monkeypatch):
    """As for a model of image to video."""
    monkeypatch.setattr(check, "media_roles", lambda description: ("image",))
    model = describe_model("wan-tiny")
    request = VideoRequest(prompt="a fox", image=DIGEST)
    complete, _ = check_request(model, request)
    assert complete.media == {"image": DIGEST}
    with pytest.raises(MediaError, match="wan-tiny takes image and no video"):
        check_request(model, dataclasses.replace(request, video=DIGEST))


def test_text_alone_is_taken():
    complete, _ = check_request(describe_model("wan-tiny"), VideoRequest(prompt="a fox"))
    assert complete.media == {}
    assert all(getattr(complete, role) is None for role in ROLES)
