"""NaN and infinite numbers end a run where they arise; they never become a black video."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.checkpoint_factory import PROMPT
from tests.damaged_models import copy_wan_tiny, edit_tensor
from wan_tpu.errors import BadNumbersError
from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.step_program import all_finite_tokens
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import parse_layout

REQUEST = VideoRequest(prompt=PROMPT, num_inference_steps=2)


def one_value(value):
    """One number of a tensor is `value`, the others stay."""

    def edit(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return edit


WEIGHTS = {
    "text_encoder": ("encoder.final_layer_norm.weight", "text, "),
    "transformer": ("proj_out.bias", "denoise, step 1 of 2"),
    "vae": ("decoder.conv_out.bias", "decode, from frame 1 on"),
}


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize(
    ("layout", "value"), [("single", float("inf")), ("dp2-sp2-tp2", float("nan"))]
)
def test_one_bad_weight_is_named_by_its_stage(component, layout, value, tmp_path, devices):
    name, where = WEIGHTS[component]
    model = copy_wan_tiny(tmp_path / "model")
    edit_tensor(model, component, name, one_value(value))
    split = parse_layout(layout)
    pipeline = VideoPipeline.from_pretrained(
        str(model), layout=split, devices=devices[: split.num_devices]
    )
    chunks = []
    with pytest.raises(BadNumbersError, match=f"NaN or infinite numbers in {where}"):
        pipeline(REQUEST, on_frames=chunks.append)
    assert not chunks


def test_one_corner_of_the_picture_is_enough(tmp_path, devices):
    """On eight devices the bad pixels lie with one of them; all must know of it."""
    layout = parse_layout("dp2-sp2-tp2")
    model = VideoPipeline.from_pretrained("wan-tiny", layout=layout, devices=devices)
    stages = model._executor.vae.stages(8, 8, 3)
    programs = [stage.compile() for stage in stages]
    latents = np.zeros((1, 3, 8, 8, model.model.vae.z_dim), np.float32)
    assert len(list(model._executor.vae.frames(latents, programs))) == 3
    latents[0, 2, -1, -1, 0] = np.nan
    frames = model._executor.vae.frames(latents, programs)
    assert [len(next(frames)), len(next(frames))] == [1, 4]
    with pytest.raises(BadNumbersError, match="decode, from frame 6 on"):
        next(frames)


def test_weights_that_overflow_a_float_are_found(tmp_path, devices):
    """Every weight is finite; their products are not."""
    model = copy_wan_tiny(tmp_path / "model")
    edit_tensor(model, "transformer", "proj_out.weight", lambda t: torch.full_like(t, 3e38))
    pipeline = VideoPipeline.from_pretrained(str(model), devices=devices[:1])
    with pytest.raises(BadNumbersError, match="denoise, step 1 of 2"):
        pipeline(REQUEST)


def test_padding_tokens_do_not_count():
    """45 tokens over eight shards have three of padding, whose numbers reach no pixel."""
    geometry = Geometry(width=80, height=48, num_frames=9)
    numbers = np.zeros((1, 48, 64), np.float32)
    assert geometry.num_tokens == 45
    numbers[:, geometry.num_tokens :] = np.nan
    assert all_finite_tokens(jnp.asarray(numbers), geometry)
    numbers[:, geometry.num_tokens - 1] = np.inf
    assert not all_finite_tokens(jnp.asarray(numbers), geometry)
