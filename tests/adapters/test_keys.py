"""What single keys mean, of each way to write them and of mixtures that exist."""

import pytest

from wan_tpu.adapters.keys import ALPHA, BIAS_OF_UP, DIFF, DOWN, MAGNITUDE, UP, read_key

KEYS = {
    "transformer.blocks.1.attn1.to_out.0.lora_A.weight": ("blocks.1.attn1.to_out.0.weight", DOWN),
    "transformer.proj_out.lora_B.bias": ("proj_out.bias", BIAS_OF_UP),
    "diffusion_model.blocks.0.self_attn.o.lora_B.weight": ("blocks.0.attn1.to_out.0.weight", UP),
    "model.diffusion_model.blocks.0.ffn.2.lora_up.weight": ("blocks.0.ffn.net.2.weight", UP),
    "diffusion_model.blocks.0.cross_attn.k_img.alpha": ("blocks.0.attn2.add_k_proj.weight", ALPHA),
    "lora_unet_blocks_12_cross_attn_v_img.alpha": ("blocks.12.attn2.add_v_proj.weight", ALPHA),
    "lora_unet_blocks_0_self_attn_norm_q.lora_up.weight": ("blocks.0.attn1.norm_q.weight", UP),
    "lora_unet__blocks_3_ffn_0.lora_down.weight": ("blocks.3.ffn.net.0.proj.weight", DOWN),
    "lora_unet_blocks_3_ffn_net_0_proj.lora_down.weight": ("blocks.3.ffn.net.0.proj.weight", DOWN),
    "lora_unet_time_projection_1.lora_down.weight": ("condition_embedder.time_proj.weight", DOWN),
    "lora_unet_text_embedding_2.lora_up.weight": (
        "condition_embedder.text_embedder.linear_2.weight", UP),
    "lora_unet_condition_embedder_time_embedder_linear_1.alpha": (
        "condition_embedder.time_embedder.linear_1.weight", ALPHA),
    "lora_unet_img_emb_proj_3.lora_up.weight": (
        "condition_embedder.image_embedder.ff.net.2.weight", UP),
    "blocks.1.ffn.0.lora_A.default.weight": ("blocks.1.ffn.net.0.proj.weight", DOWN),
    "base_model.model.blocks.0.attn2.to_k.lora_B.weight": ("blocks.0.attn2.to_k.weight", UP),
    "blocks.1.self_attn.k.lora.down.weight": ("blocks.1.attn1.to_k.weight", DOWN),
    "lora_unet_blocks_1_ffn_2.hada_w2_a": ("blocks.1.ffn.net.2.weight", "hada_w2_a"),
    "diffusion_model.blocks.1.self_attn.o.lokr_w1": ("blocks.1.attn1.to_out.0.weight", "lokr_w1"),
    "base_model.model.blocks.1.attn1.to_q.lokr_w2_b": ("blocks.1.attn1.to_q.weight", "lokr_w2_b"),
    "lora_unet_blocks_1_cross_attn_k.dora_scale": ("blocks.1.attn2.to_k.weight", MAGNITUDE),
    "base_model.model.blocks.1.attn1.to_q.lora_magnitude_vector": (
        "blocks.1.attn1.to_q.weight", MAGNITUDE),
    "transformer.blocks.1.attn1.to_q.lora_magnitude_vector.default.weight": (
        "blocks.1.attn1.to_q.weight", MAGNITUDE),
    "diffusion_model.blocks.4.diff_m": ("blocks.4.scale_shift_table", DIFF),
    "diffusion_model.blocks.4.modulation.diff": ("blocks.4.scale_shift_table", DIFF),
    "diffusion_model.head.modulation.diff": ("scale_shift_table", DIFF),
    "diffusion_model.blocks.0.norm3.diff": ("blocks.0.norm2.weight", DIFF),
    "diffusion_model.blocks.0.norm3.diff_b": ("blocks.0.norm2.bias", DIFF),
    "diffusion_model.img_emb.emb_pos.diff": ("condition_embedder.image_embedder.pos_embed", DIFF),
}  # fmt: skip


@pytest.mark.parametrize("text", KEYS)
def test_a_key(text):
    """Red when the original's third norm lands on diffusers' third, which has no weight."""
    key = read_key(text)
    assert key is not None
    assert (key.tensor, key.part) == KEYS[text]
    assert key.expert is None


@pytest.mark.parametrize(
    "text",
    [
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight",
        "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "diffusion_model.blocks.0.self_attn.q.weight",
        "diffusion_model.blocks.0.self_attn.q.lora_A.bias",
        "blocks.0.attn.qkv.lora_A.weight",
        "lora_A.weight",
        "",
    ],
)
def test_a_key_of_something_else(text):
    assert read_key(text) is None
