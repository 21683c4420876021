"""What the Wan team and ComfyUI on one side, and diffusers on the other, call the same tensors.

Each function takes names of one component, without what a file puts in front of all of them, and
gives diffusers' names. A name that is none of the original ones is kept: whoever checks the tensors
then names it. The arrays behind the names are the same, bit for bit.

The original modules: `wan/modules/model.py`, `vae.py` and `t5.py` of Wan 2.1, `vae2_2.py` of 2.2.
"""

from collections.abc import Iterable

Names = dict[str, str]
"""From a name in the file to diffusers' name."""


def transformer_names(names: Iterable[str]) -> Names:
    """Of the original `WanModel`."""
    return {name: _transformer_name(name) for name in names}


def text_encoder_names(names: Iterable[str]) -> Names:
    """Of the original `T5Encoder`."""
    return {name: _text_encoder_name(name) for name in names}


def vae_names(names: Iterable[str]) -> Names:
    """Of the original `WanVAE_`; Wan 2.1 numbers its blocks through, Wan 2.2 those of a level."""
    names = list(names)
    levels = _decoder_levels(names)
    return {name: _vae_name(name, levels) for name in names}


def _transformer_name(name: str) -> str:
    match name.split("."):
        case ["time_embedding" | "text_embedding" as embedding, "0" | "2" as layer, part]:
            embedder = embedding.replace("embedding", "embedder")
            return f"condition_embedder.{embedder}.linear_{1 if layer == '0' else 2}.{part}"
        case ["time_projection", "1", part]:
            return f"condition_embedder.time_proj.{part}"
        case ["img_emb", "proj", layer, part]:
            layers = {"0": "norm1", "1": "ff.net.0.proj", "3": "ff.net.2", "4": "norm2"}
            return f"condition_embedder.image_embedder.{layers.get(layer, layer)}.{part}"
        case ["img_emb", "emb_pos"]:
            return "condition_embedder.image_embedder.pos_embed"
        case ["head", "head", part]:
            return f"proj_out.{part}"
        case ["head", "modulation"]:
            return "scale_shift_table"
        case ["blocks", number, "modulation"]:
            return f"blocks.{number}.scale_shift_table"
        case ["blocks", number, "norm3", part]:
            # The original applies its third norm second; diffusers counts them as they are applied.
            return f"blocks.{number}.norm2.{part}"
        case ["blocks", number, "self_attn" | "cross_attn" as attention, layer, part]:
            ours = "attn1" if attention == "self_attn" else "attn2"
            layers = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
            layers |= {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
            return f"blocks.{number}.{ours}.{layers.get(layer, layer)}.{part}"
        case ["blocks", number, "ffn", "0" | "2" as layer, part]:
            return f"blocks.{number}.ffn.net.{'0.proj' if layer == '0' else '2'}.{part}"
    return name


_ORIGINAL_MODULES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "proj_out": "head.head",
}
_ORIGINAL_LAYERS = {
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "add_k_proj": "k_img",
    "add_v_proj": "v_img", "norm_added_k": "norm_k_img", "norm_q": "norm_q", "norm_k": "norm_k",
}  # fmt: skip


def original_module_name(module: str) -> str:
    """The way back, of a module of the transformer: `blocks.0.attn1.to_q` to `....self_attn.q`."""
    match module.split("."):
        case ["blocks", number, "attn1" | "attn2" as attention, *layer]:
            original = "self_attn" if attention == "attn1" else "cross_attn"
            return f"blocks.{number}.{original}.{_ORIGINAL_LAYERS['.'.join(layer)]}"
        case ["blocks", number, "ffn", "net", "0" | "2" as layer, *_]:
            return f"blocks.{number}.ffn.{layer}"
        case ["blocks", number, "norm2"]:
            return f"blocks.{number}.norm3"
    return _ORIGINAL_MODULES.get(module, module)


def _text_encoder_name(name: str) -> str:
    match name.split("."):
        case ["token_embedding", "weight"]:
            return "shared.weight"
        case ["norm", "weight"]:
            return "encoder.final_layer_norm.weight"
        case ["blocks", number, *rest]:
            part = {
                "norm1": "layer.0.layer_norm",
                "attn.q": "layer.0.SelfAttention.q",
                "attn.k": "layer.0.SelfAttention.k",
                "attn.v": "layer.0.SelfAttention.v",
                "attn.o": "layer.0.SelfAttention.o",
                "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
                "norm2": "layer.1.layer_norm",
                "ffn.gate.0": "layer.1.DenseReluDense.wi_0",  # the one with the activation
                "ffn.fc1": "layer.1.DenseReluDense.wi_1",
                "ffn.fc2": "layer.1.DenseReluDense.wo",
            }.get(".".join(rest[:-1]))
            if part is not None:
                return f"encoder.block.{number}.{part}.{rest[-1]}"
    return name


_RESIDUAL = {"0": "norm1", "2": "conv1", "3": "norm2", "6": "conv2"}
"""A residual block's layers by their number in the original's `Sequential`."""


def _vae_name(name: str, levels: dict[str, str]) -> str:
    match name.split("."):
        case ["conv1" | "conv2" as conv, part]:
            return f"{'quant_conv' if conv == 'conv1' else 'post_quant_conv'}.{part}"
        case ["encoder" | "decoder" as coder, "conv1", part]:
            return f"{coder}.conv_in.{part}"
        case ["encoder" | "decoder" as coder, "head", "0", part]:
            return f"{coder}.norm_out.{part}"
        case ["encoder" | "decoder" as coder, "head", "2", part]:
            return f"{coder}.conv_out.{part}"
        case ["encoder" | "decoder" as coder, "middle", "1", *rest]:
            return f"{coder}.mid_block.attentions.0.{'.'.join(rest)}"
        case ["encoder" | "decoder" as coder, "middle", "0" | "2" as block, *rest]:
            return f"{coder}.mid_block.resnets.{0 if block == '0' else 1}.{_block_part(rest)}"
        case ["encoder", "downsamples", level, "downsamples", number, *rest]:
            return f"encoder.down_blocks.{level}.{_level_part(number, rest, 'downsampler')}"
        case ["decoder", "upsamples", level, "upsamples", number, *rest]:
            return f"decoder.up_blocks.{level}.{_level_part(number, rest, 'upsampler')}"
        case ["encoder", "downsamples", number, *rest]:
            return f"encoder.down_blocks.{number}.{_block_part(rest)}"
        case ["decoder", "upsamples", number, *rest] if number in levels:
            return f"decoder.up_blocks.{levels[number]}.{_block_part(rest)}"
    return name


def _level_part(number: str, rest: list[str], step: str) -> str:
    """Within a level of Wan 2.2's autoencoder: a residual block, or the step to the next level."""
    if rest[0] in ("resample", "time_conv"):
        return f"{step}.{'.'.join(rest)}"
    return f"resnets.{number}.{_block_part(rest)}"


def _block_part(rest: list[str]) -> str:
    """Within a residual block; a step between levels has diffusers' names already."""
    match rest:
        case ["residual", number, part] if number in _RESIDUAL:
            return f"{_RESIDUAL[number]}.{part}"
        case ["shortcut", part]:
            return f"conv_shortcut.{part}"
    return ".".join(rest)


def _decoder_levels(names: list[str]) -> dict[str, str]:
    """Diffusers' place of each of the decoder's blocks, which the original numbers through.

    A level is residual blocks and, but for the last, the step to the next one.
    """
    prefix = "decoder.upsamples."
    parts = [name.removeprefix(prefix).split(".") for name in names if name.startswith(prefix)]
    steps = {part[0] for part in parts if part[1:2] == ["resample"]}
    places, level, block = {}, 0, 0
    for number in sorted({part[0] for part in parts if part[0].isdigit()}, key=int):
        if number in steps:
            places[number] = f"{level}.upsamplers.0"
            level, block = level + 1, 0
        else:
            places[number] = f"{level}.resnets.{block}"
            block += 1
    return places
