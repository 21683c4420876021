"""wan-tiny's weights as the Wan team, ComfyUI and others write such files.

The original names are written down here; which of diffusers' tensors each of them is, diffusers'
own converters say where they can: see `tests/checkpoints/test_original_names.py`.
"""

import pathlib
import re
from collections.abc import Callable, Iterable, Mapping

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file

from wan_tpu.checkpoints.models import open_model

Tensors = dict[str, torch.Tensor]

LAYERS = {"text_encoder": 2, "transformer": 6}


def transformer_names(num_layers: int, *, takes_image: bool = False) -> list[str]:
    """Of the original `WanModel`; `takes_image` is Wan 2.1's image to video."""
    linear = ["patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0"]
    linear += ["time_embedding.2", "time_projection.1", "head.head"]
    names = ["head.modulation"]
    for number in range(num_layers):
        block = f"blocks.{number}"
        names.append(f"{block}.modulation")
        for attention in ("self_attn", "cross_attn"):
            linear += [f"{block}.{attention}.{layer}" for layer in "qkvo"]
            names += [f"{block}.{attention}.norm_{layer}.weight" for layer in "qk"]
        if takes_image:
            linear += [f"{block}.cross_attn.{layer}_img" for layer in "kv"]
            names.append(f"{block}.cross_attn.norm_k_img.weight")
        linear += [f"{block}.norm3", f"{block}.ffn.0", f"{block}.ffn.2"]
    if takes_image:
        linear += [f"img_emb.proj.{number}" for number in (0, 1, 3, 4)]
    return names + [f"{layer}.{part}" for layer in linear for part in ("weight", "bias")]


def vae_names(num_levels: int = 4, num_res_blocks: int = 2, shortcuts: Iterable[str] = ()):
    """Of the original `WanVAE_`; `shortcuts` are the blocks that change the number of channels."""
    names, convolutions = [], ["conv1", "conv2"]

    def residual(block: str) -> None:
        names.extend(f"{block}.residual.{number}.gamma" for number in (0, 3))
        convolutions.extend(f"{block}.residual.{number}" for number in (2, 6))
        if block in shortcuts:
            convolutions.append(f"{block}.shortcut")

    for coder, part, blocks in (
        ("encoder", "downsamples", num_res_blocks),
        ("decoder", "upsamples", num_res_blocks + 1),
    ):
        convolutions += [f"{coder}.conv1", f"{coder}.head.2"]
        names += [f"{coder}.head.0.gamma", f"{coder}.middle.1.norm.gamma"]
        convolutions += [f"{coder}.middle.1.to_qkv", f"{coder}.middle.1.proj"]
        residual(f"{coder}.middle.0")
        residual(f"{coder}.middle.2")
        number = 0
        for level in range(num_levels):
            for _ in range(blocks):
                residual(f"{coder}.{part}.{number}")
                number += 1
            if level < num_levels - 1:
                convolutions.append(f"{coder}.{part}.{number}.resample.1")
                # Time is halved by the last steps down, and doubled by the first steps up.
                if level > 0 if coder == "encoder" else level < num_levels - 2:
                    convolutions.append(f"{coder}.{part}.{number}.time_conv")
                number += 1
    return names + [f"{layer}.{part}" for layer in convolutions for part in ("weight", "bias")]


WAN_VAE_SHORTCUTS = ("encoder.downsamples.3", "encoder.downsamples.6", "decoder.upsamples.4")

TEXT_ENCODER_PARTS = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def text_encoder_names(num_layers: int) -> dict[str, str]:
    """Of the original `T5Encoder`: transformers' name by the original one."""
    names = {
        "token_embedding.weight": "shared.weight",
        "norm.weight": "encoder.final_layer_norm.weight",
    }
    for number in range(num_layers):
        for original, ours in TEXT_ENCODER_PARTS.items():
            names[f"blocks.{number}.{original}.weight"] = f"encoder.block.{number}.{ours}.weight"
    return names


def by_diffusers(
    convert: Callable[[Tensors], Mapping[str, torch.Tensor]], names: Iterable[str]
) -> dict[str, str]:
    """What a converter of diffusers makes of each name."""
    names = list(names)
    converted = convert({name: torch.tensor(float(n)) for n, name in enumerate(names)})
    return {names[int(number)]: name for name, number in converted.items()}


def tiny_vae_name(ours: str) -> str:
    """The original name of one of wan-tiny's tensors: two blocks to a level of its decoder, which
    diffusers' converter, made for Wan's three, cannot convert."""
    for pattern, original_name in (
        (r"^quant_conv", "conv1"),
        (r"^post_quant_conv", "conv2"),
        (r"coder\.conv_in", "coder.conv1"),
        (r"norm_out", "head.0"),
        (r"conv_out", "head.2"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"middle.{2 * int(m[1])}"),
        (r"mid_block\.attentions\.0", "middle.1"),
        (r"encoder\.down_blocks", "encoder.downsamples"),
        (
            r"decoder\.up_blocks\.(\d)\.resnets\.(\d)",
            lambda m: f"decoder.upsamples.{3 * int(m[1]) + int(m[2])}",
        ),
        (
            r"decoder\.up_blocks\.(\d)\.upsamplers\.0",
            lambda m: f"decoder.upsamples.{3 * int(m[1]) + 2}",
        ),
        (r"(norm|conv)([12])(?=\.\w+$)(?<!coder\.conv1)", _residual),
        (r"conv_shortcut", "shortcut"),
    ):
        if pattern.startswith("(norm") and not re.search(r"(middle|samples)\.\d", ours):
            continue
        ours = re.sub(pattern, original_name, ours)
    return ours


def wan_2_2_vae_name(ours: str, num_res_blocks: int = 2) -> str:
    """The original name of a tensor of Wan 2.2's autoencoder, whose levels are modules there, too.

    As `scripts/convert_wan_to_diffusers.py` of diffusers has it, the other way round: the package
    itself converts the autoencoder of Wan 2.1 alone.
    """
    levels = re.fullmatch(r"(en|de)coder\.(?:down|up)_blocks\.(\d)\.(.*)", ours)
    if levels is None:
        return tiny_vae_name(ours)
    coder, level, rest = levels.groups()
    part = "downsamples" if coder == "en" else "upsamples"
    blocks = num_res_blocks + (coder == "de")
    rest = re.sub(r"^resnets\.", "", rest)
    rest = re.sub(r"^(down|up)sampler\.", f"{blocks}.", rest)
    rest = re.sub(r"(norm|conv)([12])(?=\.\w+$)", _residual, rest)
    rest = rest.replace("conv_shortcut", "shortcut")
    return f"{coder}coder.{part}.{level}.{part}.{rest}"


def _residual(match: re.Match[str]) -> str:
    return {"norm1": "residual.0", "conv1": "residual.2"}.get(match[0]) or {
        "norm2": "residual.3",
        "conv2": "residual.6",
    }[match[0]]


def original_names(component: str) -> dict[str, str]:
    """Diffusers' name by the original one, for wan-tiny."""
    if component == "transformer":
        names = transformer_names(LAYERS["transformer"])
        return by_diffusers(convert_wan_transformer_to_diffusers, names)
    if component == "vae":
        return {tiny_vae_name(name): name for name in wan_tiny("vae")}
    return text_encoder_names(LAYERS["text_encoder"])


def wan_tiny(component: str) -> Tensors:
    """wan-tiny's tensors as they are stored."""
    folder = open_model("wan-tiny").component_folder(component)
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def original(component: str) -> Tensors:
    """wan-tiny's tensors by the original names."""
    tensors = wan_tiny(component)
    names = original_names(component)
    assert set(names.values()) == set(tensors), set(names.values()) ^ set(tensors)
    return {name: tensors[ours] for name, ours in names.items()}


def scaled_fp8(tensors: Tensors, *, scale: str = "scale_weight", mark: bool = True) -> Tensors:
    """The matrices of linear layers in fp8 with scales, as ComfyUI's converters write them."""
    written: Tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if mark else {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and name.endswith(".weight") and "embedding" not in name:
            factor = tensor.float().abs().max() / 448
            written[name] = (tensor.float() / factor).to(torch.float8_e4m3fn)
            layer = name.removesuffix("weight")
            written[f"{layer}{scale}"] = factor.reshape(())
            written[f"{layer}{'scale_input' if mark else 'input_scale'}"] = torch.ones(())
        else:
            written[name] = tensor
    return written


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    """The same names behind something."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def save(tensors: Tensors, path: pathlib.Path) -> pathlib.Path:
    """Writes one file, and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path
