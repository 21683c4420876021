"""Requests: ranges, defaults, and that every error says which field and what would do."""

import dataclasses
import inspect
import json
from typing import Any

import numpy as np
import pytest
from diffusers.pipelines.wan.pipeline_wan import WanPipeline

from wan_tpu.errors import GeometryError, InputError, PromptError, UnknownNameError
from wan_tpu.geometry import WAN_COMPRESSION
from wan_tpu.request import (
    LARGEST_DRAWN_SEED,
    MAX_SEED,
    RANDOM_SEED,
    GenerationDefaults,
    VideoRequest,
    VideoResult,
    make_request,
)

WAN = GenerationDefaults()


def request_with(**fields: Any) -> VideoRequest:
    """A request that says a prompt and these fields, of whatever type."""
    all_fields: dict[str, Any] = {"prompt": "a fox"} | fields
    return VideoRequest(**all_fields)


def test_defaults_are_those_of_diffusers():
    parameters = inspect.signature(WanPipeline.__call__).parameters
    names = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale")
    assert {name: getattr(WAN, name) for name in names} == {
        name: parameters[name].default for name in names
    }


@pytest.mark.parametrize(
    ("width", "height", "shift"),
    [
        (1280, 720, 5.0),
        (720, 1280, 5.0),
        (1920, 1080, 5.0),
        (1472, 608, 5.0),
        (1000, 600, 5.0),
        (1000, 599, 3.0),
        (832, 480, 3.0),
        (480, 832, 3.0),
        (64, 64, 3.0),
    ],
)
def test_the_shift_follows_the_area(width, height, shift):
    defaults = dataclasses.replace(WAN, flow_shift_by_area=((600_000, 5.0), (0, 3.0)))
    assert defaults.flow_shift(width, height) == shift
    request = VideoRequest(prompt="a fox", width=width, height=height).resolved(defaults)
    assert request.flow_shift == shift


def test_resolving_fills_every_open_field():
    request = VideoRequest(prompt="a fox").resolved(WAN)
    assert dataclasses.asdict(request) == {
        "prompt": "a fox",
        "negative_prompt": "",
        "width": 832,
        "height": 480,
        "num_frames": 81,
        "fps": 16,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "flow_shift": 5.0,
        "scheduler": "unipc",
        "seed": 0,
        "image": None,
        "last_image": None,
        "video": None,
        "guidance_scale_2": None,
        "strength": None,
        "sigmas": None,
        "fast": None,
        "adapters": (),
        "step_cache": None,
    }
    assert request.resolved(GenerationDefaults(width=64, height=64)) == request
    assert VideoRequest(**json.loads(json.dumps(dataclasses.asdict(request)))) == request


def test_resolving_keeps_what_was_said_even_if_it_is_nothing():
    said = {
        "prompt": "a fox",
        "negative_prompt": "",
        "width": 64,
        "height": 48,
        "num_frames": 1,
        "fps": 1,
        "num_inference_steps": 1,
        "guidance_scale": 0,
        "flow_shift": 12.0,
        "scheduler": "euler",
        "seed": 0,
        "image": "sha256:" + "0" * 64,
        "last_image": "sha256:" + "1" * 64,
        "video": "sha256:" + "2" * 64,
        "guidance_scale_2": 0,
        "strength": 0.25,
        "sigmas": None,
        "fast": False,
        "adapters": ("fox.safetensors:0.5",),
        "step_cache": "magcache:0.06",
    }
    defaults = GenerationDefaults(negative_prompt="blurred", guidance_scale_2=3.0)
    assert dataclasses.asdict(VideoRequest(**said).resolved(defaults)) == said


@pytest.mark.parametrize("adapters", ["fox", ("",), (3,), None])
def test_adapters_are_names(adapters):
    with pytest.raises(InputError, match=r"adapters must be names, .* fox.safetensors:0.8"):
        request_with(adapters=adapters)


def test_a_request_by_the_names_of_the_command_line():
    made = make_request(
        "a fox",
        size="1280x720",
        frames=81,
        fps=24,
        steps=30,
        guidance_scale=4.0,
        flow_shift=3.0,
        negative_prompt="blurred",
        scheduler="euler",
        seed=7,
    )
    assert made == VideoRequest(
        prompt="a fox",
        negative_prompt="blurred",
        width=1280,
        height=720,
        num_frames=81,
        fps=24,
        num_inference_steps=30,
        guidance_scale=4.0,
        flow_shift=3.0,
        scheduler="euler",
        seed=7,
    )


def test_what_a_user_leaves_out_stays_open():
    assert make_request("a fox") == VideoRequest(prompt="a fox")
    assert make_request("a fox", size=(64, 48)) == make_request("a fox", size="64x48")
    with pytest.raises(GeometryError, match="size must be WIDTHxHEIGHT in pixels"):
        make_request("a fox", size="1280")


def test_a_seed_is_drawn_where_none_is_said():
    seeds = {make_request("a fox", seed=RANDOM_SEED).seed for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed <= LARGEST_DRAWN_SEED for seed in seeds)
    with pytest.raises(InputError, match="seed must lie between 0"):
        make_request("a fox", seed=-2)


@pytest.mark.parametrize("prompt", ["", " ", "\n\t", "\u3000"])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(PromptError, match="the prompt is empty"):
        VideoRequest(prompt=prompt)


def test_an_unknown_scheduler_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="unknown scheduler 'ddim'; known: unipc, euler"):
        VideoRequest(prompt="a fox", scheduler="ddim")


@pytest.mark.parametrize(
    ("field", "low", "high", "beyond"),
    [
        ("fps", 1, 240, (0, 241)),
        ("num_inference_steps", 1, 1000, (0, 1001)),
        ("guidance_scale", 0, 100, (-0.1, 100.1)),
        ("flow_shift", 0.001, 100, (0, 101)),
        ("seed", 0, MAX_SEED, (-1, MAX_SEED + 1, 10**400)),
    ],
)
def test_numbers_outside_their_range_are_refused(field, low, high, beyond):
    for value in (low, high):
        assert getattr(request_with(**{field: value}), field) == value
    for value in (*beyond, float("nan"), float("inf")):
        with pytest.raises(InputError) as caught:
            request_with(**{field: value})
        assert str(caught.value) == f"{field} must lie between {low} and {high}, got {value}"


@pytest.mark.parametrize(
    "field", ["width", "height", "num_frames", "fps", "num_inference_steps", "seed"]
)
def test_whole_numbers_are_whole(field):
    with pytest.raises(InputError, match=rf"{field} must be a whole number, got 2\.5"):
        request_with(**{field: 2.5})


def test_geometry_is_checked_against_the_model():
    request = VideoRequest(prompt="a fox", width=1280, height=720, num_frames=81).resolved(WAN)
    assert request.geometry(WAN_COMPRESSION).num_tokens == 75_600
    odd = dataclasses.replace(request, width=1288)
    with pytest.raises(GeometryError, match="nearest: 1280 or 1296"):
        odd.geometry(WAN_COMPRESSION)


@pytest.mark.parametrize("field", ["width", "height", "num_frames"])
def test_a_size_of_nothing_is_refused_like_any_other(field):
    """Zero is the user's mistake; only a size left open is ours."""
    request = request_with(**{field: 0}).resolved(WAN)
    with pytest.raises(GeometryError, match="got 0; nearest: "):
        request.geometry(WAN_COMPRESSION)


def test_an_unresolved_request_has_no_geometry():
    with pytest.raises(AssertionError, match="resolve the request first"):
        VideoRequest(prompt="a fox").geometry(WAN_COMPRESSION)


@pytest.mark.parametrize(("scale", "uses"), [(0, False), (1, False), (1.01, True), (5.0, True)])
def test_guidance_is_used_above_one(scale, uses):
    assert VideoRequest(prompt="a fox", guidance_scale=scale).uses_guidance is uses


def test_requests_and_results_cannot_be_changed():
    request = VideoRequest(prompt="a fox")
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
    result = VideoResult(frames=np.zeros((1, 2, 2, 3), np.uint8), metadata={})
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.metadata = {}  # pyright: ignore[reportAttributeAccessIssue]


def test_sigmas_decide_the_number_of_steps_and_leave_no_shift():
    request = request_with(sigmas=(1, 0.9375, 0.8333, 0.625)).resolved(WAN)
    assert (request.num_inference_steps, request.num_steps) == (4, 4)
    assert (request.scheduler, request.flow_shift, request.guidance_scale) == ("euler", None, 5.0)
    assert request.resolved(WAN) == request
    assert VideoRequest(**json.loads(json.dumps(dataclasses.asdict(request)))) == request
    assert make_request("a fox", sigmas="1,0.9375,0.8333,0.625").resolved(WAN) == request
    assert make_request("a fox", sigmas=[1, 0.9375, 0.8333, 0.625]).resolved(WAN) == request
    kept = request_with(sigmas=(1, 0.757, 0.522), scheduler="renoise").resolved(WAN)
    assert kept.scheduler == "renoise"
    clip = request_with(sigmas=(1, 0.9, 0.8, 0.6), video=f"sha256:{'0' * 64}", strength=0.5)
    assert clip.resolved(WAN).num_steps == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigmas": (0.5, 0.5)}, "sigmas must be numbers that fall"),
        ({"sigmas": (0.5, 0.75)}, "sigmas must be numbers that fall"),
        ({"sigmas": (1.5, 0.5)}, "at most 1, for example 1,0.9375,0.8333,0.625; got 1.5,0.5"),
        ({"sigmas": (1, 0)}, "each above 0"),
        ({"sigmas": (float("nan"),)}, "sigmas must be numbers that fall"),
        ({"sigmas": ()}, "got none"),
        ({"sigmas": ("1", "0.5")}, "sigmas must be numbers that fall"),
        ({"sigmas": (1, 0.5), "num_inference_steps": 3}, "num_inference_steps is 3 and sigmas"),
        ({"sigmas": (1, 0.5), "flow_shift": 5.0}, "flow_shift is 5.0 and sigmas names 2 noise"),
        ({"sigmas": (1, 0.5), "scheduler": "unipc"}, "scheduler is unipc and sigmas names 2"),
        ({"scheduler": "renoise"}, "scheduler renoise needs the noise levels"),
        ({"fast": 3}, "fast must be true or the name of a preset, got 3"),
    ],
)
def test_sigmas_that_lead_nowhere_or_are_contradicted_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        request_with(**fields)


def test_sigmas_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match=r"numbers joined by commas, .* got '1,half'"):
        make_request("a fox", sigmas="1,half")


def test_more_adapters_than_eight_are_refused():
    assert request_with(adapters=("fox",) * 8).adapters == ("fox",) * 8
    with pytest.raises(InputError, match="9 adapters are too many; at most 8 go"):
        request_with(adapters=("fox",) * 9)
