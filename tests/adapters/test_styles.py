"""What cannot be read is refused in one line that names the key and says what the file is."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.adapters.small import STYLES, linears, loras, make_factors, make_transformer, save
from wan_tpu.adapters.styles import read_adapter
from wan_tpu.errors import CheckpointError

QUERY = "diffusion_model.blocks.0.self_attn.q"


def pair(front=QUERY, rows=72, columns=72, rank=4, suffixes=("lora_down", "lora_up")):
    down, up = suffixes
    return {
        f"{front}.{down}.weight": torch.ones(rank, columns),
        f"{front}.{up}.weight": torch.ones(rows, rank),
    }


def refused(tmp_path, tensors, *, name="their.safetensors", header=None):
    path = save(tmp_path / name, tensors, header)
    with pytest.raises(CheckpointError) as error:
        read_adapter(path)
    message = str(error.value)
    assert message.startswith(str(path)), message
    assert "\n" not in message
    return message


def of(*names):
    return {name: torch.ones(4, 4) for name in names}


STRANGERS = {
    "SD by kohya": (
        of("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"), "Stable Diffusion"),
    "SDXL's text encoder": (of("lora_te1_text_model_encoder.lora_up.weight"), "a text encoder's"),
    "SD by diffusers": (
        of("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"),
        "Stable Diffusion"),
    "Flux by kohya": (of("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"), "Flux"),
    "Flux by diffusers": (
        of("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"), "Flux"),
    "HunyuanVideo": (of("diffusion_model.double_blocks.0.img_mod.linear.lora_A.weight"),
                     "HunyuanVideo"),
    "SD 3": (of("transformer.joint_transformer_blocks.0.attn.to_q.lora_A.weight"), "Diffusion 3"),
    "LTX": (of("diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight"), "LTX-Video"),
    "a language model": (of("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
                         "a language model's"),
    "VACE": (of("diffusion_model.vace_blocks.0.self_attn.q.lora_A.weight"), "VACE"),
    "a whole transformer": (of("blocks.0.self_attn.q.weight", "head.head.bias"),
                            "--model takes it"),
    "anything else": (of("conv.weight", "conv.bias"), "2 tensors, the first is conv.bias"),
    "nothing": ({}, "is empty"),
    "LoHa of kernels": (of("lora_unet_patch_embedding.hada_t1"), "a LoHa with Tucker"),
    "LoKr of kernels": (of("lora_unet_patch_embedding.lokr_t2"), "a LoKr with Tucker"),
    "OFT": (of("lora_unet_blocks_0_self_attn_q.oft_blocks"), "an OFT adapter"),
    "LoCon": (of("lora_unet_blocks_0_ffn_0.lora_mid.weight"), "a LoCon"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGERS)
def test_what_is_no_adapter_of_wan_is_told(tmp_path, case):
    tensors, expected = STRANGERS[case]
    message = refused(tmp_path, tensors)
    assert expected in message


FAULTS = {
    "a key of another suffix": (
        pair() | of(f"{QUERY}.lora_A.bias"), "lora_A.bias belong to nothing"),
    "a module that Wan has not": (
        pair() | pair("diffusion_model.blocks.0.self_attn_2.q"), "self_attn_2"),
    "a text encoder's beside": (
        pair() | of("lora_te_encoder_layer.lora_up.weight"), "lora_te_encoder_layer"),
    "down without up": (
        {f"{QUERY}.lora_down.weight": torch.ones(4, 72)}, "has no lora_up, or lora_B, beside"),
    "up without down": (
        {f"{QUERY}.lora_up.weight": torch.ones(72, 4)}, "has no lora_down, or lora_A, beside"),
    "an alpha alone": ({f"{QUERY}.alpha": torch.tensor(4.0)}, "alpha has no lora_down"),
    "ranks that differ": (
        pair() | {f"{QUERY}.lora_up.weight": torch.ones(72, 8)}, "[4, 72] and .* [72, 8]"),
    "a vector": (
        pair() | {f"{QUERY}.lora_up.weight": torch.ones(72)}, "expected [rank, columns]"),
    "NaN": (
        pair() | {f"{QUERY}.lora_up.weight": torch.full((72, 4), torch.nan)},
        "lora_up.weight has NaN"),
    "infinite, in bfloat16": (
        pair() | {f"{QUERY}.lora_down.weight": torch.full((4, 72), torch.inf).bfloat16()},
        "lora_down.weight has NaN or infinite"),
    "NaN in a difference": (
        pair() | {f"{QUERY}.diff_b": torch.full((72,), torch.nan)}, "diff_b has NaN"),
    "whole numbers": (
        pair() | {f"{QUERY}.lora_down.weight": torch.ones(4, 72, dtype=torch.int8)}, "is I8"),
    "alpha of nothing": (pair() | {f"{QUERY}.alpha": torch.tensor(0.0)}, "alpha is [0.0]"),
    "alpha that is NaN": (pair() | {f"{QUERY}.alpha": torch.tensor(torch.nan)}, "alpha is [nan]"),
    "an alpha for each row": (pair() | {f"{QUERY}.alpha": torch.ones(72)}, "of shape [72]"),
    "the same twice": (
        pair() | pair("lora_unet_blocks_0_self_attn_q"), "are the same; keep one"),
    "a LoHa without its second half": (
        {f"{QUERY}.hada_w{key}": torch.ones(72, 72) for key in ("1_a", "1_b", "2_a")},
        "hada_w1_a has no hada_w2_b beside"),
    "a LoHa of two ranks": (
        {f"{QUERY}.hada_w{number}_{half}": torch.ones(72, rank) if half == "a"
         else torch.ones(rank, 72) for number, rank in ((1, 4), (2, 8)) for half in "ab"},
        "of rank 4 and [72, 72] of rank 8; expected the same"),
    "a LoKr of half": ({f"{QUERY}.lokr_w1": torch.ones(8, 8)}, "lokr_w1 has no lokr_w2_a beside"),
    "a LoKr whose half is there twice": (
        {f"{QUERY}.lokr_{key}": torch.ones(8, 8) for key in ("w1", "w1_a", "w2")},
        "lokr_w1 and .* lokr_w1_a are the same; keep one"),
    "a LoKr of two ranks": (
        {f"{QUERY}.lokr_w{number}_{half}": torch.ones(9, rank) if half == "a"
         else torch.ones(rank, 8) for number, rank in ((1, 2), (2, 3)) for half in "ab"},
        "lokr_w1_a is of rank 2 and .* lokr_w2_a of rank 3"),
    "a LoKr's vector": (
        {f"{QUERY}.lokr_w1": torch.ones(8), f"{QUERY}.lokr_w2": torch.ones(9, 9)},
        "lokr_w1 is [8]; expected [rows, columns]"),
    "two forms of one weight": (
        pair() | {f"{QUERY}.lokr_w1": torch.ones(8, 8)}, "are a LoRA and a LoKr; expected one"),
    "a DoRA without factors": (
        {f"{QUERY}.dora_scale": torch.ones(72, 1)}, "dora_scale has no lora_down"),
    "a DoRA of norms below 0": (
        pair() | {f"{QUERY}.dora_scale": torch.full((72, 1), -1.0)}, "has norms below 0"),
    "NaN in a LoKr": (
        {f"{QUERY}.lokr_w1": torch.full((8, 8), torch.nan), f"{QUERY}.lokr_w2": torch.ones(9, 9)},
        "lokr_w1 has NaN"),
    "two adapters of PEFT": (
        pair("blocks.0.attn1.to_q", suffixes=("lora_A.fox", "lora_B.fox"))
        | pair("blocks.1.attn1.to_q", suffixes=("lora_A.cat", "lora_B.cat")),
        "several adapters (cat, fox)"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_named(tmp_path, case):
    """Red when a key is dropped in silence, or a scale or NaN is let through."""
    tensors, expected = FAULTS[case]
    message = refused(tmp_path, tensors)
    assert all(part in message for part in expected.split(" .* ")), message


HEADERS = {
    "no JSON": ("{", "is no JSON object"),
    "no object": ("[1]", "is no JSON object"),
    "a DoRA that has lost its norms": (
        json.dumps({"transformer.use_dora": True}),
        "no key ends in lora_magnitude_vector",
    ),
    "a LoHa whose keys are a LoRA's": (
        json.dumps({"transformer.peft_type": "LOHA"}),
        "of peft_type 'LOHA', and the keys are of",
    ),
    "a form that is not implemented": (
        json.dumps({"transformer.peft_type": "OFT"}),
        "'OFT', which is not implemented; known: LO",
    ),
    "a rank of text": (json.dumps({"transformer.r": "4"}), "r is '4', expected a whole number"),
    "an alpha of text": (json.dumps({"transformer.lora_alpha": "4"}), "lora_alpha is '4'"),
    "a wrong pattern": (json.dumps({"transformer.alpha_pattern": {"(": 4}}), "has '('"),
    "patterns of no form": (json.dumps({"transformer.alpha_pattern": [4]}), "expected an object"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_cannot_be_meant(tmp_path, case):
    text, expected = HEADERS[case]
    tensors = pair("transformer.blocks.0.attn1.to_q", suffixes=("lora_A", "lora_B"))
    assert expected in refused(tmp_path, tensors, header={"lora_adapter_metadata": text})


def test_pefts_file_without_its_configuration(tmp_path):
    """Red when its scale is guessed."""
    tensors = pair("base_model.model.blocks.0.attn1.to_q", suffixes=("lora_A", "lora_B"))
    message = refused(tmp_path, tensors, name="adapter_model.safetensors")
    assert "keeps alpha in adapter_config.json" in message
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 2}')
    file = read_adapter(tmp_path / "adapter_model.safetensors")
    assert file.adapters[None].factors["blocks.0.attn1.to_q.weight"].scale == 0.5


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_file_that_is_cut_short(tmp_path, kept):
    path = save(tmp_path / "cut.safetensors", pair())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) + kept if kept < 0 else kept])
    with pytest.raises(CheckpointError, match=r"cut.safetensors is damaged") as error:
        read_adapter(path)
    assert "\n" not in str(error.value)


def test_a_pointer_of_git_lfs(tmp_path):
    path = tmp_path / "their.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match="run git lfs pull"):
        read_adapter(path)


def test_a_whole_model_as_an_adapter(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(make_transformer().state_dict(), path)
    with pytest.raises(CheckpointError, match="holds a whole transformer"):
        read_adapter(path)


def test_which_expert_keys_name(tmp_path):
    """As some trainers write both experts into one file."""
    first = STYLES["B ComfyUI"].tensors(make_factors(linears()[:2]))
    second = STYLES["B ComfyUI"].tensors(make_factors(linears()[:3], seed=1))
    tensors = {
        name.replace("diffusion_model.", f"diffusion_model.transformer_{number}."): tensor
        for number, part in ((1, first), (2, second))
        for name, tensor in part.items()
    }
    file = read_adapter(save(tmp_path / "both.safetensors", tensors))
    assert {name: len(each.factors) for name, each in file.adapters.items()} == {
        "transformer": 2,
        "transformer_2": 3,
    }
    query = f"{linears()[0]}.weight"
    high, low = (loras(file.adapters[name])[query] for name in ("transformer", "transformer_2"))
    assert not np.array_equal(high.down, low.down)


def test_what_a_file_says_of_itself(tmp_path):
    factors = make_factors(linears()[:3], ranks=(2, 4))
    tensors = STYLES["D kohya, musubi"].tensors(factors)
    file = read_adapter(save(tmp_path / "fox.safetensors", tensors, {"ss_steps": "30"}))
    assert (file.style, file.header) == ("kohya", {"ss_steps": "30"})
    assert file.adapters[None].described == "rank 2 to 4, 3 matrices"
    assert file.digest.startswith("sha256:")
    assert len(file.digest) == 71
