"""The recipe of wan-tiny's four steps at a size of seconds, and the file that it made."""

import numpy as np
import pytest
import torch

from wan_tpu.adapters.chosen import open_adapters
from wan_tpu.adapters.form import Factors
from wan_tpu.checkpoints.models import open_model
from wan_tpu.demo import WAN_TINY_PATH, distill
from wan_tpu.fast import WAN_TINY_4
from wan_tpu.pipeline.fast import embedded_adapters

TINY = distill.DistillRecipe(
    trajectories=4, shard=4, teacher_steps=4, rank=2, steps=3, batch=4, warmup_steps=1
)


@pytest.fixture(scope="module")
def models():
    return distill.load_models(WAN_TINY_PATH)


def test_the_teachers_levels_hold_the_students():
    levels = distill.teacher_levels(12, 5.0)
    assert levels[::3] == pytest.approx([*WAN_TINY_4.sigmas, 0], abs=2e-6)


def test_the_teacher_is_the_schedule_with_guidance(models):
    """One step from noise leads to the video that the velocity says."""
    text_encoder, transformer = models
    text = distill.encode_scenes(text_encoder)
    noise = np.random.default_rng(0).standard_normal((1, *distill.LATENTS), np.float32)
    kept = distill.run_teacher(transformer, text, np.array([5]), noise, 4)
    assert kept.shape == (1, 5, *distill.LATENTS)
    np.testing.assert_array_equal(kept[0, 0], noise[0].astype(np.float16))
    with torch.no_grad():
        both = [
            transformer(torch.from_numpy(noise), torch.tensor([1000.0]), each, return_dict=False)[0]
            for each in (text[5:6], text[-1:])
        ]
    velocity = (both[1] + 1.5 * (both[0] - both[1])).numpy()
    video = noise - velocity
    early = kept[0, 1].astype(np.float32)  # at sigma 15/16, and corrected by the next estimate
    assert np.abs(early - (noise + (15 / 16 - 1) * velocity)[0]).mean() < 0.05 * video.std()


def test_a_recipe_makes_a_file_that_fits_and_resumes(tmp_path, models):
    """The factors begin as nothing and then change; trajectories are made once."""
    distill.distil(TINY, work=tmp_path / "work", out=tmp_path / "a.safetensors")
    made = (tmp_path / "work" / "000.npz").stat().st_mtime_ns
    distill.distil(TINY, work=tmp_path / "work", out=tmp_path / "b.safetensors")
    assert (tmp_path / "work" / "000.npz").stat().st_mtime_ns == made
    (first,), (second,) = (open_adapters([str(tmp_path / f"{n}.safetensors")]) for n in "ab")
    (adapter,), (again,) = first.file.adapters.values(), second.file.adapters.values()
    assert len(adapter.factors) == 48
    for name, factors in adapter.factors.items():
        same = again.factors[name]
        assert isinstance(factors, Factors)
        assert isinstance(same, Factors)
        assert np.abs(factors.up).max() > 0
        np.testing.assert_allclose(same.up, factors.up, atol=1e-4)


def test_the_packages_file_is_of_the_recipe_and_small():
    (path,) = embedded_adapters(WAN_TINY_4)
    (chosen,) = open_adapters([path])
    assert chosen.file.path.stat().st_size < 300_000
    (adapter,) = chosen.file.adapters.values()
    shapes = open_model("wan-tiny").source("transformer").shapes
    recipe = distill.DistillRecipe()
    wanted = {
        name
        for name, shape in shapes.items()
        if name.startswith("blocks.") and len(shape) == 2 and name.endswith(".weight")
        and name.split(".", 2)[2].startswith(recipe.layers)
    }  # fmt: skip
    assert set(adapter.factors) == wanted
