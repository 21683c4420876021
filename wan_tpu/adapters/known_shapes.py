"""Names and shapes of a transformer's tensors by its configuration, without loading JAX.

As diffusers' `WanTransformer3DModel` has them.
"""

from collections.abc import Mapping
from typing import Any

from wan_tpu.adapters.fit import Shapes
from wan_tpu.checkpoints.kinds import TRANSFORMER_DEFAULTS


def transformer_shapes(config: Mapping[str, Any]) -> Shapes:
    """Shapes by diffusers' names.

    Args:
        config: diffusers' `transformer/config.json`; what it leaves out is as in diffusers.
    """
    config = {**TRANSFORMER_DEFAULTS, **config}
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    image_dim, patch = config.get("image_dim"), tuple(config["patch_size"])
    channels = config["in_channels"], config["out_channels"] or config["in_channels"]
    shapes: dict[str, tuple[int, ...]] = {
        "scale_shift_table": (1, 2, dim),
        "patch_embedding.weight": (dim, channels[0], *patch),
        "patch_embedding.bias": (dim,),
        **_linear("proj_out", channels[1] * patch[0] * patch[1] * patch[2], dim),
    }
    embedder = "condition_embedder"
    for name, columns in (("time", config["freq_dim"]), ("text", config["text_dim"])):
        shapes |= _linear(f"{embedder}.{name}_embedder.linear_1", dim, columns)
        shapes |= _linear(f"{embedder}.{name}_embedder.linear_2", dim, dim)
    shapes |= _linear(f"{embedder}.time_proj", 6 * dim, dim)
    if image_dim:
        image = f"{embedder}.image_embedder"
        shapes |= _linear(f"{image}.ff.net.0.proj", image_dim, image_dim)
        shapes |= _linear(f"{image}.ff.net.2", dim, image_dim)
        for norm, size in (("norm1", image_dim), ("norm2", dim)):
            shapes |= {f"{image}.{norm}.{part}": (size,) for part in ("weight", "bias")}
        if config.get("pos_embed_seq_len"):
            shapes[f"{image}.pos_embed"] = (1, config["pos_embed_seq_len"], image_dim)
    for number in range(config["num_layers"]):
        block = _block(dim, config["ffn_dim"], bool(image_dim), bool(config["cross_attn_norm"]))
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    return shapes


def _block(
    dim: int, ffn_dim: int, takes_image: bool, has_norm2: bool
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"scale_shift_table": (1, 6, dim)}
    for attention in ("attn1", "attn2"):
        linears = ["to_q", "to_k", "to_v", "to_out.0"]
        norms = ["norm_q", "norm_k"]
        if attention == "attn2" and takes_image:
            linears += ["add_k_proj", "add_v_proj"]
            norms += ["norm_added_k"]
        for name in linears:
            shapes |= _linear(f"{attention}.{name}", dim, dim)
        shapes |= {f"{attention}.{name}.weight": (dim,) for name in norms}
    if has_norm2:
        shapes |= {f"norm2.{part}": (dim,) for part in ("weight", "bias")}
    return shapes | _linear("ffn.net.0.proj", ffn_dim, dim) | _linear("ffn.net.2", dim, ffn_dim)


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
