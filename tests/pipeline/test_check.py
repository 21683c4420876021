"""A request against a model's description; no weights."""

import dataclasses
import itertools

import pytest

from tests.pipeline.media import make_clip, make_png
from wan_tpu import family
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.errors import GeometryError, InputError, MediaError
from wan_tpu.family import ModelKind
from wan_tpu.media import ROLES, Media, digest_of
from wan_tpu.pipeline.check import check, check_request
from wan_tpu.request import GenerationDefaults, VideoRequest

DIGEST = digest_of(b"a picture")
KINDS = [each for each in vars(family).values() if isinstance(each, ModelKind)]
ROLE_SETS = [
    frozenset(roles) for n in range(len(ROLES) + 1) for roles in itertools.combinations(ROLES, n)
]


def model_of(kind: ModelKind, **changes):
    """wan-tiny, of another kind: nothing but the kind and the defaults is looked at."""
    model = describe_model("wan-tiny")
    defaults = dataclasses.replace(model.defaults, **changes)
    return dataclasses.replace(model, kind=kind, defaults=defaults)


def naming(roles, **fields) -> VideoRequest:
    return VideoRequest(prompt="a fox", **dict.fromkeys(roles, DIGEST), **fields)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.words)
def test_every_model_takes_its_sets_of_pictures_and_no_others(kind):
    for roles in ROLE_SETS:
        if roles in kind.inputs:
            complete, _ = check_request(model_of(kind), naming(roles))
            assert set(complete.media) == roles
        else:
            with pytest.raises(MediaError, match=f"wan-tiny is {kind.words} and takes"):
                check_request(model_of(kind), naming(roles))


def test_a_model_of_text_says_what_it_takes():
    with pytest.raises(MediaError) as caught:
        check_request(describe_model("wan-tiny"), naming(["image"]))
    assert str(caught.value) == (
        "wan-tiny is a text-to-video model and takes text alone, or a video, not an image"
    )
    assert isinstance(caught.value, InputError)


def test_text_alone_is_taken():
    complete, _ = check_request(describe_model("wan-tiny"), VideoRequest(prompt="a fox"))
    assert complete.media == {}
    assert all(getattr(complete, role) is None for role in ROLES)


def test_a_second_guidance_needs_a_second_expert():
    request = VideoRequest(prompt="a fox", guidance_scale_2=3.0)
    with pytest.raises(InputError, match="guidance_scale_2 is 3, of a second transformer, and"):
        check_request(describe_model("wan-tiny"), request)
    complete, _ = check_request(model_of(family.TEXT_TO_VIDEO_A14B), request)
    assert complete.guidance_scale_2 == 3.0


def test_strength_needs_a_video():
    request = VideoRequest(prompt="a fox", strength=0.5)
    with pytest.raises(InputError, match=r"strength is 0\.5 and there is no video"):
        check_request(describe_model("wan-tiny"), request)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 49, 50])
def test_a_strength_that_leaves_no_step_names_one_that_leaves_some(steps):
    request = naming(["video"], num_inference_steps=steps, strength=0.9 / steps)
    with pytest.raises(InputError, match="leaves none to run") as caught:
        check_request(describe_model("wan-tiny"), request)
    works = float(str(caught.value).rpartition(" ")[2])
    complete, _ = check_request(
        describe_model("wan-tiny"), dataclasses.replace(request, strength=works)
    )
    assert complete.num_steps >= 1


def test_the_steps_that_run_are_those_of_diffusers():
    """Cut off: 0.29 of 100 are 28 in floating point, there and here."""
    for steps, strength, run in ((50, 0.8, 40), (4, 0.3, 1), (100, 0.29, 28), (10, 1.0, 10)):
        request = naming(["video"], num_inference_steps=steps, strength=strength)
        assert check_request(describe_model("wan-tiny"), request)[0].num_steps == run


def test_one_frame_is_not_both_first_and_last():
    model = model_of(family.IMAGE_TO_VIDEO_A14B)
    with pytest.raises(GeometryError, match="at least 5 frames"):
        check_request(model, naming(["image", "last_image"], num_frames=1))
    for role in ("image", "last_image"):
        check_request(model, naming([role], num_frames=1))


LARGE = GenerationDefaults()  # 832x480, 81 frames, 16 frames per second


def sizes_of(kind, request, *contents, **changes):
    """Size and length of a request whose first picture are these bytes."""
    defaults = dataclasses.asdict(LARGE) | changes
    model = model_of(kind, **{name: defaults[name] for name in ("width", "height", "num_frames")})
    complete, geometry = check_request(model, request, Media.of(*contents))
    assert (complete.width, complete.height) == (geometry.width, geometry.height)
    return complete.width, complete.height, complete.num_frames


def test_the_size_comes_from_the_picture_where_it_is_open():
    landscape, portrait = make_png(320, 180), make_png(180, 320)
    kind = family.IMAGE_TO_VIDEO_A14B
    request = VideoRequest(prompt="a fox", image=digest_of(landscape))
    assert sizes_of(kind, request, landscape) == (832, 464, 81)
    request = VideoRequest(prompt="a fox", image=digest_of(portrait))
    assert sizes_of(kind, request, portrait) == (464, 832, 81)
    request = VideoRequest(prompt="a fox", image=digest_of(portrait), width=80, height=48)
    assert sizes_of(kind, request, portrait) == (80, 48, 81)
    both = VideoRequest(prompt="a fox", image=digest_of(portrait), last_image=digest_of(landscape))
    assert sizes_of(kind, both, landscape, portrait) == (464, 832, 81)


def test_the_length_comes_from_the_clip_where_it_is_open():
    """The most that the clip has at the model's frame rate, and no more than the model's own."""
    clip = make_clip(frames=24, fps=8)  # three seconds
    kind = family.TEXT_TO_VIDEO
    request = VideoRequest(prompt="a fox", video=digest_of(clip), width=64, height=64, fps=8)
    assert sizes_of(kind, request, clip) == (64, 64, 21)
    assert sizes_of(kind, request, clip, num_frames=17) == (64, 64, 17)
    twice = dataclasses.replace(request, fps=16)
    assert sizes_of(kind, twice, clip) == (64, 64, 45)
    with pytest.raises(MediaError, match=r"has 24 frames at 8 .* 25 were asked for; at most 21"):
        sizes_of(kind, dataclasses.replace(request, num_frames=25), clip)


def test_bytes_that_are_no_picture_are_refused():
    text = b"This is no picture."
    request = VideoRequest(prompt="a fox", image=digest_of(text))
    with pytest.raises(MediaError, match="PNG, JPEG"):
        check_request(model_of(family.IMAGE_TO_VIDEO), request, Media.of(text))
    with pytest.raises(MediaError, match="did not come"):
        check_request(model_of(family.IMAGE_TO_VIDEO), naming(["image"]), Media.of(text))


def test_an_error_says_of_which_picture_it_is():
    png = make_png(64, 64)
    for roles in (("image", "last_image"), ("last_image", "image")):
        names = dict(zip(roles, (digest_of(png), digest_of(png[:-30])), strict=True))
        request = VideoRequest(prompt="a fox", **names)
        with pytest.raises(MediaError, match=f"^{roles[1].replace('_', ' ')}: the PNG picture is"):
            check_request(model_of(family.IMAGE_TO_VIDEO_A14B), request, Media.of(png, png[:-30]))


def test_a_complete_request_needs_no_bytes():
    """Planned and compiled for as if they were there."""
    png = make_png(320, 180)
    model = model_of(family.IMAGE_TO_VIDEO)
    request = VideoRequest(prompt="a fox", image=digest_of(png))
    with_bytes = check(model, request, Media.of(png))
    without = check(model, with_bytes.request)
    assert (without.request, without.geometry) == (with_bytes.request, with_bytes.geometry)
    assert without.pictures == {}
    picture = with_bytes.pictures["image"]
    assert picture.given == (320, 180)
    assert picture.fitted.shape == (1, without.geometry.height, without.geometry.width, 3)
