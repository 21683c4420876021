"""Checkpoints that say to which levels they were distilled."""

import json

import pytest

from tests.checkpoint_factory import make_random_checkpoint
from wan_tpu import family
from wan_tpu.checkpoints.distilled import read_distilled
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.errors import CheckpointError


def dmd2(**block):
    return {"_class_name": "WanPipeline", "dmd2_config": block}


@pytest.mark.parametrize(
    ("index", "name", "update", "timesteps"),
    [
        ({"_class_name": "WanDMDPipeline"}, "fastwan-3", "renoise", [1000, 757, 522]),
        (
            {"_class_name": "WanDMDPipeline", "dmd_denoising_steps": [1000, 500]},
            "dmd-2",
            "renoise",
            [1000, 500],
        ),
        (dmd2(), "dmd2-4", "euler", [999, 749, 499, 249]),
        (dmd2(num_inference_steps=3, solver="sde"), "dmd2-3", "renoise", [999, 666, 333]),
        (dmd2(denoising_timesteps=[999, 833, 500]), "dmd2-3", "euler", [999, 833, 500]),
    ],
)
def test_the_levels_are_those_of_the_index(index, name, update, timesteps):
    preset = read_distilled(index, "model_index.json")
    assert preset is not None
    assert (preset.name, preset.scheduler) == (name, update)
    assert preset.sigmas == tuple(timestep / 1000 for timestep in timesteps)
    assert preset.adapters == ()


def test_other_checkpoints_say_nothing():
    assert read_distilled({"_class_name": "WanPipeline"}, "model_index.json") is None


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": "WanDMDPipeline", "dmd_denoising_steps": [1, 2]}, "steps: timesteps must"),
        (
            {"_class_name": "WanDMDPipeline", "dmd_denoising_steps": 7},
            "timesteps must fall.* got 7",
        ),
        (dmd2(denoising_timesteps=["a"]), "dmd2_config: timesteps must fall"),
        (dmd2(num_inference_steps=0), "num_inference_steps 0; expected a whole number"),
        (dmd2(solver="heun"), "solver 'heun'; implemented: ode, sde"),
        (dmd2(guidance_scale=5.0), "guidance_scale 5.0; implemented: 1"),
        ({"dmd2_config": 4}, "dmd2_config must be an object, got 4"),
    ],
)
def test_levels_that_cannot_be_are_refused(index, message):
    with pytest.raises(CheckpointError, match=f"model_index.json: .*{message}"):
        read_distilled(index, "model_index.json")


def test_a_folder_of_fastvideos_class_is_a_model_with_a_preset(tmp_path):
    folder = make_random_checkpoint(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    changed = index | {"_class_name": "WanDMDPipeline"}
    (folder / "model_index.json").write_text(json.dumps(changed))
    described = describe_model(str(folder))
    assert described.kind == family.TEXT_TO_VIDEO
    assert described.distilled is not None
    assert described.distilled.name == "fastwan-3"
