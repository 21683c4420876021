"""Which transformers are read from a `config.json`, and what is said of the others."""

import pytest

from wan_tpu.errors import CheckpointError
from wan_tpu.transformer.config import TransformerConfig

TEXT = {
    "_class_name": "WanTransformer3DModel",
    "num_attention_heads": 40,
    "in_channels": 16,
    "out_channels": 16,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
IMAGE = TEXT | {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}


@pytest.mark.parametrize(
    ("config", "token_channels", "condition_channels"),
    [
        (TEXT, 64, 0),
        (IMAGE, 64, 80),
        (IMAGE | {"pos_embed_seq_len": 514}, 64, 80),
        (TEXT | {"in_channels": 36}, 64, 80),
        (TEXT | {"in_channels": 48, "out_channels": 48}, 192, 0),
        (TEXT | {"in_channels": 48, "out_channels": None}, 192, 0),  # diffusers: as the input
        (TEXT | {"out_channels": None}, 64, 0),
        ({}, 64, 0),
    ],
)
def test_latents_and_what_is_beside_them(config, token_channels, condition_channels):
    """Red when the state, and so the noise, has the input's channels."""
    read = TransformerConfig.from_json(config)
    assert read.token_channels == token_channels
    assert read.condition_channels == condition_channels
    assert read.image_dim == config.get("image_dim")
    assert read.pos_embed_seq_len == config.get("pos_embed_seq_len")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_class_name": "WanVACETransformer3DModel"},
            "the transformer is WanVACETransformer3DModel, which is not implemented",
        ),
        (
            {"vace_layers": [0, 5]},
            r"the transformer is one of VACE \(vace_layers=\[0, 5\]\), which is not implemented",
        ),
        ({"in_channels": 8}, "8 input and 16 output channels"),
        ({"image_dim": None}, "image_dim=None and added_kv_proj_dim=5120;.* must be None"),
        ({"added_kv_proj_dim": 1280}, "added_kv_proj_dim=1280;.* must be 5120"),
        ({"added_kv_proj_dim": None}, "added_kv_proj_dim=None;.* must be 5120"),
        (
            {"image_dim": None, "added_kv_proj_dim": None, "pos_embed_seq_len": 514},
            "pos_embed_seq_len=514 and no image_dim",
        ),
        ({"image_dim": "1280"}, "image_dim must be a whole number of at least 1, got '1280'"),
    ],
)
def test_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        TransformerConfig.from_json(IMAGE | change)
