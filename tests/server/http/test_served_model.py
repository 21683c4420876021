"""Requests against models that are not here: their configurations suffice."""

import numpy as np
import pytest

from server.errors import ApiError
from server.http.bodies import VideoCreate
from server.http.model_object import model_object
from server.http.reference import Reference
from server.http.served_model import serve_model
from server.settings import Settings
from tests.server.pictures import clip, picture
from wan_tpu.adapters.form import factors_of
from wan_tpu.adapters.write import AdapterMetadata, write_adapter
from wan_tpu.media import digest_of


@pytest.fixture(scope="module")
def large():
    return serve_model(Settings(model="wan2.1-t2v-14b"))


def test_the_models_defaults_fill_in(large):
    request = large.request(VideoCreate(prompt="a fox"))
    assert (request.width, request.height, request.num_frames, request.fps) == (1280, 720, 81, 16)
    assert request.flow_shift == 5.0
    assert large.request(VideoCreate(prompt="a fox", size="832x480")).flow_shift == 5.0
    assert model_object(large, 0).defaults.seconds == "5"


def test_work_is_bounded_by_the_default_video(large):
    large.request(VideoCreate(prompt="a fox", seconds=40))
    with pytest.raises(ApiError) as error:
        large.request(VideoCreate(prompt="a fox", seconds=41))
    assert error.value.code == "too_much_work"


def test_a_size_beyond_the_models_positions_names_the_size():
    tiny = serve_model(Settings(max_work=1e9))
    with pytest.raises(ApiError) as error:
        tiny.request(VideoCreate(prompt="x", size="4096x64"))
    assert error.value.param == "size"
    with pytest.raises(ApiError) as error:
        tiny.request(VideoCreate(prompt="x", num_frames=4001))
    assert error.value.param == "num_frames"
    with pytest.raises(ApiError) as error:
        tiny.request(VideoCreate(prompt="x", seconds=500))
    assert error.value.param == "seconds"


def test_warm_sizes_are_shown():
    tiny = serve_model(Settings(warm_up="96x64x5,64x64x17,96x64x17"))
    assert tiny.warm_sizes == ("96x64", "64x64")


def test_a_folder_is_called_by_its_name(tmp_path):
    import shutil

    from wan_tpu.demo import WAN_TINY_PATH

    shutil.copytree(WAN_TINY_PATH, tmp_path / "my-model")
    assert serve_model(Settings(model=str(tmp_path / "my-model"))).id == "my-model"


def test_names_of_folders_and_of_the_hub(tmp_path, monkeypatch):
    from server.http.served_model import name_of

    snapshot = tmp_path / "models--Wan-AI--Wan2.1--T2V" / "snapshots" / "0fad780a534b6463e45facd9"
    snapshot.mkdir(parents=True)
    assert name_of(str(snapshot)) == "Wan-AI/Wan2.1/T2V"
    monkeypatch.chdir(snapshot.parent)
    assert name_of(".") == "snapshots"
    assert name_of("./") == "snapshots"
    assert name_of("owner/name") == name_of("owner/name@0123abc") == "owner/name"
    assert serve_model(Settings(served_model_name="video-1")).id == "video-1"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"num_inference_steps": 97}, "num_inference_steps"),
        ({"num_inference_steps": 20, "size": "256x256"}, "size"),
        ({"num_frames": 401}, "num_frames"),
        ({"seconds": 60, "size": "64x64"}, "seconds"),
        ({"seconds": 60, "fps": 8, "num_inference_steps": 24}, "seconds"),
    ],
)
def test_too_much_work_names_a_field_that_was_sent(fields, param):
    tiny = serve_model(Settings())
    with pytest.raises(ApiError) as error:
        tiny.request(VideoCreate(prompt="x", **fields))
    assert (error.value.code, error.value.param) == ("too_much_work", param)


def sent(field, role):
    data = picture() if role != "video" else clip()
    return Reference(field=field, role=role, data=data, digest=digest_of(data))


IMAGE, LAST, CLIP = (
    sent("input_reference", "image"),
    sent("last_image", "last_image"),
    sent("input_reference", "video"),
)


@pytest.mark.parametrize(
    ("model", "references", "code", "param"),
    [
        ("wan2.1-t2v-14b", [IMAGE], "invalid_value", "input_reference"),
        ("wan2.1-t2v-14b", [LAST], "invalid_value", "last_image"),
        ("wan2.2-t2v-a14b", [CLIP, LAST], "invalid_value", "last_image"),
        ("wan2.1-i2v-14b-480p", [], "missing_field", "input_reference"),
        ("wan2.1-i2v-14b-480p", [IMAGE, LAST], "invalid_value", "last_image"),
        ("wan2.1-i2v-14b-480p", [CLIP], "invalid_value", "input_reference"),
        ("wan2.1-flf2v-14b-720p", [IMAGE], "missing_field", "last_image"),
        ("wan2.1-flf2v-14b-720p", [LAST], "missing_field", "input_reference"),
        ("wan2.1-flf2v-14b-720p", [], "missing_field", "input_reference"),
        ("wan2.2-ti2v-5b", [IMAGE, LAST], "invalid_value", "last_image"),
    ],
)
def test_what_a_model_does_not_take_names_the_field(model, references, code, param):
    served = serve_model(Settings(model=model))
    with pytest.raises(ApiError) as error:
        served.request(VideoCreate(prompt="x"), references)
    assert (error.value.status, error.value.code, error.value.param) == (400, code, param)
    assert f"{model} is " in error.value.message
    assert " and takes " in error.value.message


@pytest.mark.parametrize(
    ("model", "references", "size", "num_frames", "fps"),
    [
        ("wan2.2-t2v-a14b", [], (1280, 720), 81, 16),
        ("wan2.1-i2v-14b-480p", [IMAGE], (624, 624), 81, 16),
        ("wan2.1-flf2v-14b-720p", [IMAGE, LAST], (960, 960), 81, 16),
        ("wan2.2-i2v-a14b", [LAST], (960, 960), 81, 16),
        ("wan2.2-ti2v-5b", [IMAGE], (960, 928), 121, 24),
        ("wan2.2-ti2v-5b", [], (1280, 704), 121, 24),
    ],
)
def test_every_kind_of_model_fills_in_its_own(model, references, size, num_frames, fps):
    served = serve_model(Settings(model=model))
    request = served.request(VideoCreate(prompt="x"), references)
    assert (request.width, request.height) == size
    assert (request.num_frames, request.fps) == (num_frames, fps)
    assert (request.guidance_scale_2 is not None) == ("a14b" in model)
    assert model_object(served, 0).defaults.guidance_scale_2 == (
        served.description.defaults.guidance_scale_2 if "a14b" in model else None
    )


def test_sizes_that_a_model_does_not_make_name_the_nearest():
    served = serve_model(Settings(model="wan2.2-ti2v-5b"))
    with pytest.raises(ApiError) as error:
        served.request(VideoCreate(prompt="x", size="1280x720"), [IMAGE])
    assert (error.value.param, error.value.code) == ("size", "invalid_value")
    assert "704 or 736" in error.value.message
    two = serve_model(Settings(model="wan2.2-t2v-a14b"))
    request = two.request(VideoCreate(prompt="x", guidance_scale=5, guidance_scale_2=2))
    assert (request.guidance_scale, request.guidance_scale_2) == (5, 2)


def test_a_preset_that_needs_adapters_is_refused_without(tmp_path):
    """Red when its ordinary weights would be run in four steps."""
    two = serve_model(Settings(model="wan2.2-t2v-a14b", adapters=tmp_path))
    (preset,) = [p for p in model_object(two, 0).presets if p.name == "lightx2v-a14b-4"]
    assert (preset.own, preset.needs_lora) == (True, True)
    with pytest.raises(ApiError) as error:
        two.request(VideoCreate(prompt="x", fast=True))
    assert (error.value.code, error.value.param) == ("missing_field", "lora")
    assert "by lora, and it has none" in error.value.message
    for name in ("both", "high_noise"):
        write_adapter(
            tmp_path / f"{name}.safetensors", factors_of(_pair(5120)),
            metadata=AdapterMetadata(base_model="wan2.2-t2v-a14b"),
        )  # fmt: skip
    assert two.request(VideoCreate(prompt="x", fast=True, lora="both.safetensors")).adapters
    with pytest.raises(ApiError) as error:
        two.request(VideoCreate(prompt="x", fast=True, lora="high_noise.safetensors"))
    assert "transformer_2 has none" in error.value.message
    (listed, _) = reversed(model_object(two, 0).adapters)
    assert (listed.name, listed.expert) == ("high_noise.safetensors", "high")


def _pair(width):
    names = (f"blocks.0.attn1.to_q.lora_{each}.weight" for each in "AB")
    arrays = (np.ones(shape, np.float32) for shape in ((4, width), (width, 4)))
    return list(zip(names, arrays, strict=True))
