"""The model in Wan 2.2's architecture: it obeys, and animates the picture that it is given."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from tests.demo.diffusers_videos import call_arguments, load_pipelines, make_videos
from wan_tpu.demo import WAN_TINY_TI2V_PATH, data, judge
from wan_tpu.demo.recognition import judge_frames
from wan_tpu.pipeline.video_pipeline import VideoPipeline

WORLD = data.MIDDLE_WORLD


@pytest.fixture(scope="module")
def pipelines():
    return load_pipelines(WAN_TINY_TI2V_PATH)


@pytest.fixture(scope="module")
def library():
    return VideoPipeline.from_pretrained("wan-tiny-ti2v", devices=jax.devices()[:1])


def check(trials, videos) -> None:
    """Every word is right, but for one shape: a moving square may slant; every picture is kept."""
    shapes = []
    for video, trial in zip(videos, trials, strict=True):
        right = judge_frames(video).right_words(trial.scene)
        shapes.append(right.pop("shape"))
        assert all(right.values()), (trial.scene.prompt, right)
        if trial.picture is not None:
            kept = judge.decibels(video[0], trial.picture)
            assert kept >= judge.FIRST_FRAME_TARGET, trial.scene.prompt
    assert sum(shapes) >= len(shapes) - 1, shapes


def test_the_parts_are_those_of_wan_2_2(pipelines):
    text, _ = pipelines
    vae, transformer = text.vae.config, text.transformer.config
    assert (vae.is_residual, vae.patch_size, vae.z_dim) == (True, 2, 48)
    assert (vae.in_channels, vae.out_channels, vae.scale_factor_spatial) == (12, 12, 16)
    assert transformer.in_channels == transformer.out_channels == 48
    assert transformer.image_dim is None
    index = json.loads((WAN_TINY_TI2V_PATH / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "WanPipeline"
    assert index["expand_timesteps"] is True


def test_the_folder_loads_as_an_image_to_video_pipeline():
    loaded: Any = WanImageToVideoPipeline.from_pretrained(
        WAN_TINY_TI2V_PATH, image_encoder=None, image_processor=None
    )
    assert loaded.config.expand_timesteps
    assert loaded.vae.config.is_residual


def test_videos_of_diffusers_obey_and_keep_the_picture(pipelines):
    ways = judge.make_trials(np.random.default_rng(1), 3, WORLD, takes_pictures=True)
    trials = ways["text"] + ways["picture"] + ways["other direction"]
    check(trials, make_videos(pipelines, trials, call_arguments(WAN_TINY_TI2V_PATH)))


def test_videos_of_the_library_obey_and_keep_the_picture(library):
    ways = judge.make_trials(np.random.default_rng(2), 2, WORLD, takes_pictures=True)
    trials = ways["picture"] + ways["other direction"]
    requests = [judge.make_request(trial) for trial in trials]
    check(trials, [library(request, media=media).frames for request, media in requests])


@torch.no_grad()
def test_pictures_of_other_sizes_and_places_are_kept(pipelines):
    # A picture from elsewhere: a shape of another size, not near the middle.
    rng, vae = np.random.default_rng(0), pipelines[0].vae
    world = dataclasses.replace(WORLD, half_size=(13.0, 25.0), across=40.0, along=40.0)
    pictures = np.stack([data.make_picture(s, rng, world) for s in judge.choose_scenes(24, rng)])
    video = torch.from_numpy(pictures).permute(0, 3, 1, 2)[:, :, None] / 127.5 - 1
    decoded = vae.decode(vae.encode(video).latent_dist.mode()).sample[:, :, 0]
    frames = np.round((decoded.permute(0, 2, 3, 1).numpy() / 2 + 0.5) * 255)
    for frame, picture in zip(frames, pictures, strict=True):
        assert judge.decibels(frame, picture) >= judge.FIRST_FRAME_TARGET


def test_a_shape_from_elsewhere_goes_where_the_prompt_says(pipelines):
    # By the left edge and by the right one: far from where any clip of the training starts.
    trials = []
    for x, direction in ((26, "right"), (102, "left")):
        scene = data.Scene(color="blue", shape="square", direction=direction, background="gray")
        centers = np.array([[x, 64]], dtype=np.float32)
        coverage = data.shape_coverage("square", centers, 18.0, WORLD.side)[0, ..., None]
        blue, gray = (np.array(rgb) for rgb in (data.COLORS["blue"], data.BACKGROUNDS["gray"]))
        picture = np.round(gray + coverage * (blue - gray)).astype(np.uint8)
        trials.append(judge.Trial(scene=scene, seed=3, picture=picture))
    videos = make_videos(pipelines, trials, call_arguments(WAN_TINY_TI2V_PATH))
    for trial, video in zip(trials, videos, strict=True):
        assert judge_frames(video).direction == trial.scene.direction
        assert judge.decibels(video[0], trial.picture) >= judge.FIRST_FRAME_TARGET


def test_a_larger_picture_is_animated_too(library):
    # diffusers and the library scale it; the world's antialiased edges come out a little softer.
    (trial,) = judge.make_trials(np.random.default_rng(5), 1, WORLD, True)["picture"]
    assert trial.picture is not None
    large = np.asarray(Image.fromarray(trial.picture).resize((512, 512), Image.Resampling.BICUBIC))
    request, media = judge.make_request(dataclasses.replace(trial, picture=large))
    request = dataclasses.replace(request, width=128, height=128)
    frames = library(request, media=media).frames
    check([dataclasses.replace(trial, picture=None)], [frames])
    assert judge.decibels(frames[0], trial.picture) >= judge.FIRST_FRAME_TARGET


@pytest.mark.slow
def test_forty_eight_fresh_prompts_by_diffusers(pipelines):
    rng = np.random.default_rng()
    arguments = call_arguments(WAN_TINY_TI2V_PATH)
    for trials in judge.make_trials(rng, 48, WORLD, takes_pictures=True).values():
        videos = make_videos(pipelines, trials, arguments)
        verdicts = [judge_frames(video) for video in videos]
        assert judge.obeys([trial.scene for trial in trials], verdicts)
        for video, trial in zip(videos, trials, strict=True):
            if trial.picture is not None:
                assert judge.decibels(video[0], trial.picture) >= judge.FIRST_FRAME_TARGET


@pytest.mark.slow
def test_forty_eight_fresh_prompts_by_the_library(tmp_path):
    assert judge.main(["--model", "wan-tiny-ti2v", "--out", str(tmp_path)]) == 0
