"""Original names of tensors against diffusers' own converters, and against what is computed."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from tests import original_checkpoints as originals
from wan_tpu.checkpoints.component import find_components, in_diffusers_names, open_component
from wan_tpu.checkpoints.known import WAN_2_2_VAE
from wan_tpu.checkpoints.original_names import (
    original_module_name,
    text_encoder_names,
    transformer_names,
    vae_names,
)
from wan_tpu.checkpoints.source import ArraySource
from wan_tpu.errors import CheckpointError


def parameters(make):
    with torch.device("meta"):
        return {name for name, _ in make().named_parameters()}


def test_transformer_names_of_the_1_3b_are_diffusers():
    names = originals.transformer_names(30)
    ours = transformer_names(names)
    assert ours == originals.by_diffusers(convert_wan_transformer_to_diffusers, names)
    assert set(ours.values()) == parameters(
        lambda: WanTransformer3DModel(num_attention_heads=12, num_layers=30, ffn_dim=8960)
    )


def test_transformer_names_of_an_image_to_video_model_are_diffusers():
    names = originals.transformer_names(2, takes_image=True)
    ours = transformer_names([*names, "img_emb.emb_pos"])
    # The package's converter leaves this one as it is; the script in its repository does not.
    positions = ours.pop("img_emb.emb_pos")
    assert ours == originals.by_diffusers(convert_wan_transformer_to_diffusers, names)
    assert {positions, *ours.values()} == parameters(
        lambda: WanTransformer3DModel(
            num_layers=2,
            in_channels=36,
            image_dim=1280,
            added_kv_proj_dim=5120,
            pos_embed_seq_len=514,
        )
    )


def test_the_way_back_of_a_module():
    """Of every module that has a weight; red when two layers are exchanged on either way."""
    names = originals.transformer_names(2, takes_image=True)
    modules = {
        ours.removesuffix(".weight"): original.removesuffix(".weight")
        for original, ours in transformer_names(names).items()
        if ours.endswith(".weight")
    }
    assert {module: original_module_name(module) for module in modules} == modules


@pytest.mark.parametrize(
    "name",
    [
        "blocks.0.attn2.norm_added_q.weight",
        "blocks.0.cross_attn.norm_q_img.weight",
        "model.diffusion_model.blocks.0.cross_attn.norm_q_img.weight",
    ],
)
def test_a_norm_that_nothing_computes_is_left_out(name):
    """Red when old files of image-to-video models are refused for it."""
    names = originals.transformer_names(1, takes_image=True)
    if name.startswith("model."):
        names = [f"model.diffusion_model.{each}" for each in names]
    arrays = {each: np.zeros(1) for each in names}
    expected = in_diffusers_names("transformer", ArraySource(arrays)).shapes
    found = in_diffusers_names("transformer", ArraySource({**arrays, name: np.zeros(1)})).shapes
    assert found == expected


def test_vae_names_of_wan_2_2_are_diffusers():
    """Red when a block or a step of one level is taken for another's."""
    expected = parameters(lambda: AutoencoderKLWan(**WAN_2_2_VAE))
    names = {originals.wan_2_2_vae_name(name): name for name in expected}
    assert len(names) == len(expected)
    assert "encoder.downsamples.1.downsamples.2.time_conv.weight" in names
    assert "decoder.upsamples.2.upsamples.0.shortcut.bias" in names
    assert vae_names(names) == names


@pytest.mark.parametrize("prefix", ["", "vision_model.", "image_encoder.vision_model."])
def test_an_image_encoder_of_either_class_has_the_same_tensors(prefix):
    """`CLIPVisionModel` and that with a projection; Wan's converter writes the latter."""
    expected = parameters(lambda: CLIPVisionModel(CLIPVisionConfig(num_hidden_layers=3)))
    others = ["visual_projection.weight", f"{prefix}embeddings.position_ids"] if prefix else []
    names = [*(prefix + name for name in expected), *others]
    source = ArraySource({name: np.zeros(1) for name in names})
    assert set(find_components(names)) == {"image_encoder"}
    assert set(in_diffusers_names("image_encoder", source).shapes) == expected


def test_a_file_of_the_second_expert_is_read_like_the_firsts(tmp_path):
    path = originals.save(originals.original("transformer"), tmp_path / "low_noise.safetensors")
    first, second = (open_component(name, path) for name in ("transformer", "transformer_2"))
    assert first.shapes == second.shapes
    assert set(first.shapes) == set(originals.wan_tiny("transformer"))


def test_vae_names_of_wan_2_1_are_diffusers():
    names = originals.vae_names(shortcuts=originals.WAN_VAE_SHORTCUTS)
    ours = vae_names(names)
    theirs = originals.by_diffusers(convert_wan_vae_to_diffusers, names)
    assert ours == theirs
    assert set(ours.values()) == parameters(AutoencoderKLWan)


def test_vae_names_of_other_sizes():
    """Three levels of one block (and one more in the decoder), which diffusers cannot convert."""
    names = originals.vae_names(3, 1, shortcuts=("encoder.downsamples.2", "encoder.downsamples.4"))
    ours = set(vae_names(names).values())
    expected = parameters(
        lambda: AutoencoderKLWan(
            dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True]
        )
    )
    assert ours == expected, ours ^ expected


def test_text_encoder_names():
    names = originals.text_encoder_names(24)
    ours = text_encoder_names(names)
    expected = parameters(functools.partial(UMT5EncoderModel, UMT5Config(num_layers=24)))
    assert ours == names
    assert set(ours.values()) == expected - {"encoder.embed_tokens.weight"}


def t5_block(tensors, hidden, bias):
    """A layer of the original `T5Encoder`, from its names alone: gate and fc1 are not alike."""

    def norm(x, weight):
        return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def heads(name):
        return (normed @ tensors[name].T).unflatten(-1, (4, -1)).transpose(0, 1)

    normed = norm(hidden, tensors["norm1.weight"])
    scores = heads("attn.q.weight") @ heads("attn.k.weight").transpose(1, 2) + bias
    mixed = (scores.softmax(-1) @ heads("attn.v.weight")).transpose(0, 1).flatten(1)
    hidden = hidden + mixed @ tensors["attn.o.weight"].T
    normed = norm(hidden, tensors["norm2.weight"])
    gate = torch.nn.functional.gelu(normed @ tensors["ffn.gate.0.weight"].T, approximate="tanh")
    return hidden + (gate * (normed @ tensors["ffn.fc1.weight"].T)) @ tensors["ffn.fc2.weight"].T


def test_text_encoder_names_say_what_is_computed():
    """Red when gate and fc1, or any two square matrices, change places."""
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=20, d_model=24, d_kv=6, d_ff=40, num_layers=1, num_heads=4)
    theirs: Any = UMT5EncoderModel(config).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(0, 0.3)
    state = theirs.state_dict()
    names = text_encoder_names(originals.text_encoder_names(1))
    tensors = {name.removeprefix("blocks.0."): state[ours] for name, ours in names.items()}
    ids = torch.tensor([[3, 7, 1, 19, 4]])
    bias = theirs.encoder.block[0].layer[0].SelfAttention.compute_bias(5, 5)[0]
    hidden = t5_block(tensors, tensors["token_embedding.weight"][ids[0]], bias)
    normed = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state[0]
    torch.testing.assert_close(normed * tensors["norm.weight"], expected, rtol=1e-4, atol=1e-5)


def test_a_vae_of_original_names_has_the_tensors_that_diffusers_makes_of_it(tmp_path):
    torch.manual_seed(0)
    state = AutoencoderKLWan(base_dim=4, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    shapes = {name: tensor.shape for name, tensor in state.state_dict().items()}
    names = originals.vae_names(shortcuts=originals.WAN_VAE_SHORTCUTS)
    theirs = originals.by_diffusers(convert_wan_vae_to_diffusers, names)
    written = {name: torch.randn(shapes[theirs[name]]) for name in names}
    source = open_component("vae", originals.save(written, tmp_path / "wan_2.1_vae.safetensors"))
    expected = convert_wan_vae_to_diffusers(dict(written))
    assert dict(source.shapes) == {name: tuple(t.shape) for name, t in expected.items()}
    for name, tensor in expected.items():
        np.testing.assert_array_equal(source.read(name), tensor.numpy())


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_file_of_original_names_has_the_same_tensors(tmp_path, component, number):
    """Without anything in front, and behind the first and the last prefix."""
    from wan_tpu.checkpoints.component import PREFIXES

    prefix = PREFIXES[component][number]
    path = originals.save(
        originals.prefixed(prefix, originals.original(component)), tmp_path / "x.safetensors"
    )
    source, expected = open_component(component, path), originals.wan_tiny(component)
    assert set(source.shapes) == set(expected)
    for name, tensor in expected.items():
        found = source.read(name)
        assert found.shape == source.shapes[name] == tuple(tensor.shape)
        np.testing.assert_array_equal(found.astype(np.float32), tensor.float().numpy())


def test_components_of_a_file_of_a_whole_model():
    """As ComfyUI saves a checkpoint: each component behind a prefix of its own."""
    names = (
        *(f"model.diffusion_model.{name}" for name in originals.transformer_names(2)),
        *(f"first_stage_model.{name}" for name in originals.vae_names()),
        *(f"text_encoders.umt5xxl.transformer.{n}" for n in originals.text_encoder_names(2)),
    )
    found = find_components(names)
    assert {name: each.prefix for name, each in found.items()} == {
        "transformer": "model.diffusion_model.",
        "text_encoder": "text_encoders.umt5xxl.transformer.",
        "vae": "first_stage_model.",
    }


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"blocks.0.ffn.9.weight": 1}, None),
        ({"blocks.0.attn1.to_q.bias": 1}, r"blocks\.0\.self_attn\.q\.bias and .*to_q.bias are the"),
    ],
)
def test_left_over_names_are_kept_and_doubles_refused(extra, message):
    names = [*originals.transformer_names(1), *extra]
    source = ArraySource({name: np.zeros(1) for name in names})
    if message is None:
        assert "blocks.0.ffn.9.weight" in in_diffusers_names("transformer", source).shapes
    else:
        with pytest.raises(CheckpointError, match=message):
            in_diffusers_names("transformer", source)


def test_a_tensor_beside_the_prefix_belongs_to_nothing():
    names = [f"model.diffusion_model.{name}" for name in originals.transformer_names(1)]
    source = ArraySource({name: np.zeros(1) for name in [*names, "model_ema.decay"]})
    with pytest.raises(CheckpointError, match=r"unexpected model_ema\.decay, beside tensors"):
        in_diffusers_names("transformer", source)
