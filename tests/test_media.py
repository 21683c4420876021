"""Pictures and clips beside a request: bytes by digest, and what their first bytes are."""

import hashlib

import pytest

from wan_tpu import media
from wan_tpu.errors import InputError, MediaError
from wan_tpu.media import NO_MEDIA, Media, digest_of, media_type_of
from wan_tpu.request import VideoRequest, make_request

RED, BLUE = b"\x89PNG\r\n\x1a\nred", b"\x89PNG\r\n\x1a\nblue"


def test_bytes_are_found_by_their_digest():
    found = Media.of(RED, BLUE)
    assert found[f"sha256:{hashlib.sha256(RED).hexdigest()}"] == RED
    assert len(found) == 2
    assert dict(NO_MEDIA) == {}


def test_bytes_of_another_digest_are_refused_and_named():
    with pytest.raises(MediaError) as caught:
        Media({digest_of(RED): BLUE})
    assert str(caught.value) == (
        f"bytes that should be {digest_of(RED)} are {digest_of(BLUE)}, {len(BLUE)} bytes"
    )


def test_too_many_bytes_are_refused(monkeypatch):
    monkeypatch.setattr(media, "MAX_MEDIA_BYTES", len(RED) + len(BLUE) - 1)
    with pytest.raises(MediaError, match="have 23 bytes together, at most 22 are taken"):
        Media.of(RED, BLUE)


def test_a_request_gets_exactly_what_it_names():
    request = make_request("a fox", image=digest_of(RED))
    assert request.media == {"image": digest_of(RED)}
    assert dict(Media.of(RED, BLUE).only(request.media)) == {digest_of(RED): RED}
    with pytest.raises(MediaError) as caught:
        Media.of(BLUE).only(request.media)
    assert str(caught.value) == (
        f"the request's image is {digest_of(RED)}, whose bytes did not come"
    )


def test_two_roles_may_have_one_picture():
    request = make_request("a fox", image=digest_of(RED), last_image=digest_of(RED))
    assert len(Media.of(RED).only(request.media)) == 1


@pytest.mark.parametrize("role", media.ROLES)
@pytest.mark.parametrize(
    "value", ["", "fox.png", "sha256:abc", "sha256:" + "A" * 64, "sha256:" + "a" * 65, 7, b"x"]
)
def test_a_field_is_a_digest_or_nothing(role, value):
    with pytest.raises(InputError, match=f"{role} must be the digest of a file, sha256: and 64"):
        VideoRequest(prompt="a fox", **{role: value})


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (RED, "image/png"),
        (b"\xff\xd8\xff\xe0rest", "image/jpeg"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "video/mp4"),
        (b"\0\0\0\x20ftypmp42", "video/mp4"),
        (b"\0\0\0\x18ftypheic", None),
        (b"\0\0\0\x1cftypavif", None),
        (b"\0\0\0\x1cftypcrx ", None),
        (b"\0\0\0\x14ftypqt  ", "video/quicktime"),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "video/quicktime"),
        (b"\0\1\0\0moov", "video/quicktime"),
        (b"The wide world", None),
        (b"\x1aE\xdf\xa3\x9fB\x86\x81\1B\x82\x84webmB\x87", "video/webm"),
        (b"\x1aE\xdf\xa3\xa3B\x86\x81\1B\x82\x88matroskaB\x87", "video/x-matroska"),
        (b"\x1aE\xdf\xa3\xa3B\x86\x81\1B\x82\x85otherB\x87", None),
        (b"RIFF\x10\0\0\0WAVE", None),
        (b"GIF89a", None),
        (b"<svg/>", None),
        (b"\x89PNG", None),
        (b"", None),
    ],
)
def test_types_are_told_by_the_first_bytes(data, kind):
    assert media_type_of(data) == kind
