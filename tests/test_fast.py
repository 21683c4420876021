"""The table of presets: what each decides, and what breaks it."""

import dataclasses

import pytest

from wan_tpu import family
from wan_tpu.errors import InputError
from wan_tpu.fast import EULER, PRESETS, RENOISE, WAN_TINY_4, FastPreset
from wan_tpu.request import GenerationDefaults, VideoRequest
from wan_tpu.schedulers import make_given_schedule

BY_NAME = {preset.name: preset for preset in (WAN_TINY_4, *PRESETS)}
FOUR = [1000, 937.5, 833.3333, 625]


@pytest.mark.parametrize(
    ("name", "update", "timesteps"),
    [
        ("wan-tiny-4", EULER, FOUR),
        ("lightx2v-a14b-4", EULER, FOUR),
        ("lightx2v-14b-4", EULER, FOUR),
        (
            "lightx2v-a14b-8",
            EULER,
            [1000, 972.2222, 937.5, 892.8571, 833.3333, 750, 625, 416.6667],
        ),
        ("fastwan-3", RENOISE, [1000, 757, 522]),
        ("rcm-4", RENOISE, [987.65432, 933.78106, 852.89539, 608.97905]),
        ("rcm-i2v-4", RENOISE, [995.02488, 933.78106, 852.89539, 608.97905]),
    ],
)
def test_every_preset_has_the_levels_of_its_source(name, update, timesteps):
    """The sources print four or five digits; nothing is cut to a whole number."""
    preset = BY_NAME[name]
    assert preset.scheduler == update
    schedule = make_given_schedule(preset.scheduler, preset.sigmas)
    assert schedule.timesteps.tolist() == pytest.approx(timesteps, abs=6e-5)
    assert [1000 * sigma for sigma in preset.sigmas] == pytest.approx(timesteps, abs=6e-5)


def test_every_preset_is_tested_above_and_has_a_name_of_its_own():
    assert len(BY_NAME) == 1 + len(PRESETS) == 7
    assert all(preset.source and preset.label for preset in BY_NAME.values())


def test_the_exact_levels_of_distillation_over_a_shift_of_five():
    assert BY_NAME["lightx2v-a14b-4"].sigmas == (1, 15 / 16, 5 / 6, 5 / 8)
    assert BY_NAME["lightx2v-a14b-8"].sigmas[1::2] == (35 / 36, 25 / 28, 3 / 4, 5 / 12)


def test_a_preset_decides_everything_that_it_was_distilled_for():
    preset = BY_NAME["rcm-4"]
    request = preset.apply(VideoRequest(prompt="a fox", fast="rcm-4"), family.TEXT_TO_VIDEO)
    assert (request.sigmas, request.num_inference_steps) == (preset.sigmas, 4)
    assert (request.scheduler, request.flow_shift) == ("renoise", None)
    assert (request.guidance_scale, request.guidance_scale_2) == (1.0, None)
    whole = request.resolved(GenerationDefaults(guidance_scale=5.0))
    assert not whole.uses_guidance
    assert preset.apply(whole, family.TEXT_TO_VIDEO) == whole, "said again it says nothing new"
    two = preset.apply(VideoRequest(prompt="a fox"), family.TEXT_TO_VIDEO_A14B)
    assert two.guidance_scale_2 == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_inference_steps": 20}, "num_inference_steps is 20 and the preset fastwan-3 has 3"),
        ({"guidance_scale": 5.0}, "guidance_scale is 5 and the preset fastwan-3 has 1"),
        ({"guidance_scale_2": 3.0}, "guidance_scale_2 is 3 and the preset fastwan-3 has none"),
        ({"flow_shift": 5.0}, "flow_shift is 5 and the preset fastwan-3 has none"),
        ({"scheduler": "unipc"}, "scheduler is unipc and the preset fastwan-3 has renoise"),
        ({"sigmas": (1, 0.5)}, "sigmas is 1,0.5 and the preset fastwan-3 has 1,0.757,0.522"),
    ],
)
def test_what_breaks_a_preset_is_refused_and_not_overridden(fields, message):
    request = VideoRequest(prompt="a fox", fast=True, **fields)
    with pytest.raises(InputError, match=f"{message}, which it was distilled for; leave"):
        BY_NAME["fastwan-3"].apply(request, family.TEXT_TO_VIDEO)


def test_each_expert_needs_an_adapter_where_the_weights_are_not_distilled():
    preset, kind = BY_NAME["lightx2v-a14b-4"], family.IMAGE_TO_VIDEO_A14B
    preset.check_adapters({"transformer", "transformer_2"}, kind, "a14b")
    with pytest.raises(InputError, match=r"needs a14b with the adapters wan2.2_.*, and it has no"):
        preset.check_adapters((), kind, "a14b")
    with pytest.raises(InputError, match="by --lora, and its transformer_2 has none"):
        preset.check_adapters({"transformer"}, kind, "a14b")
    BY_NAME["fastwan-3"].check_adapters((), family.TEXT_TO_VIDEO, "1.3b")


def test_where_adapters_are_on_the_hub():
    a14b, name = BY_NAME["lightx2v-a14b-4"], "lightx2v/Wan2.2-Distill-Loras/wan2.2_t2v_A14b_high_n"
    high, low = a14b.hub_adapters(family.TEXT_TO_VIDEO_A14B)
    assert high == f"{name}oise_lora_rank64_lightx2v_4step_1217.safetensors"
    assert low == high.replace("high", "low")
    moved = dataclasses.replace(family.IMAGE_TO_VIDEO_A14B, boundary_ratio=0.8)
    assert [each.rpartition("_")[2] for each in a14b.hub_adapters(moved)] == 2 * [
        "1022.safetensors"
    ]
    one = BY_NAME["lightx2v-14b-4"].hub_adapters(family.IMAGE_TO_VIDEO)
    assert one == (
        "lightx2v/Wan2.1-Distill-Loras/wan2.1_i2v_lora_rank64_lightx2v_4step.safetensors",
    )
    assert BY_NAME["rcm-4"].hub_adapters(family.TEXT_TO_VIDEO) == ()


def test_a_preset_fits_its_kinds_at_any_boundary_and_its_size():
    moved = dataclasses.replace(family.TEXT_TO_VIDEO_A14B, boundary_ratio=0.9)
    assert BY_NAME["lightx2v-a14b-4"].fits(moved, 40)
    assert not BY_NAME["lightx2v-a14b-4"].fits(family.TEXT_TO_VIDEO, 40)
    assert BY_NAME["lightx2v-14b-4"].fits(family.TEXT_TO_VIDEO, 40)
    assert not BY_NAME["lightx2v-14b-4"].fits(family.TEXT_TO_VIDEO, 12)


def test_an_update_that_is_not_implemented_is_a_mistake_of_the_table():
    with pytest.raises(AssertionError):
        FastPreset(name="x", label="x", sigmas=(1.0,), scheduler="unipc", source="x")
