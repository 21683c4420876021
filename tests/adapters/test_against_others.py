"""Our files in diffusers and PEFT, theirs and other tools' in ours: the same merged weights."""

import json
from typing import Any

import numpy as np
import peft
import pytest
import torch
from diffusers import WanPipeline
from peft.utils import get_peft_model_state_dict

from tests.adapters.small import (
    STYLES,
    arrays_of,
    base_source,
    exactly,
    fused_by_diffusers,
    linears,
    make_factors,
    make_transformer,
    merged,
    original_modules,
    save,
)
from tests.tolerances import MERGED, relative_error
from wan_tpu.adapters.form import Adapter
from wan_tpu.adapters.styles import read_adapter
from wan_tpu.adapters.write import AdapterMetadata, write_adapter

METADATA = AdapterMetadata(base_model="tests/small")
MIXED = {"ranks": (2, 4, 3), "alphas": (None, 1.0, 3.0, 4.0)}
"""Ranks and alphas in turn; with three of the one and four of the other every pair is there."""


def assert_same_weights(ours, theirs):
    """Every tensor, and those that are changed really are."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert relative_error(ours[name], tensor) <= MERGED, name


def assert_changed(tensors, factors):
    base = base_source()
    for name in factors:
        assert relative_error(tensors[name], base.read(name)) > 0.01, name


@pytest.mark.parametrize("style", ["comfyui", "diffusers", "kohya"])
def test_diffusers_fuses_our_file_as_we_do(tmp_path, style):
    """Red when an alpha is left out or counted twice, or a name is another module's."""
    # Its converter of kohya's style wants the modules of blocks, all of them, and nothing else.
    factors = make_factors(linears(embedders=style != "kohya"), **MIXED)
    path = write_adapter(
        tmp_path / "ours.safetensors", factors, metadata=METADATA, style=style, dtype="float32"
    )
    theirs = fused_by_diffusers(path, 0.8)
    assert_changed(theirs, factors)
    assert_same_weights(merged(Adapter(factors=factors), 0.8), theirs)


def test_diffusers_fuses_a_part_of_the_modules(tmp_path):
    factors = make_factors(linears()[1:17:3], alphas=(2.0,))
    path = write_adapter(tmp_path / "ours.safetensors", factors, metadata=METADATA, dtype="float32")
    assert_same_weights(merged(Adapter(factors=factors)), fused_by_diffusers(path))


def test_peft_merges_our_folder_as_we_do(tmp_path):
    factors = make_factors(linears(embedders=True), **MIXED)
    folder = write_adapter(
        tmp_path / "ours", factors, metadata=METADATA, style="peft", dtype="float32"
    )
    module = peft.PeftModel.from_pretrained(make_transformer(), str(folder)).merge_and_unload()
    theirs = arrays_of(module)
    assert_changed(theirs, factors)
    assert_same_weights(merged(Adapter(factors=factors)), theirs)


PEFT_CONFIGS = {
    "plain": {"target_modules": ["to_q", "to_v"]},
    "alpha": {"lora_alpha": 4, "target_modules": ["to_q", "to_out.0", "ffn.net.0.proj"]},
    "alpha by the root of the rank": {"lora_alpha": 3, "use_rslora": True,
                                      "target_modules": ["to_k", "net.2"]},
    "patterns": {"lora_alpha": 4, "target_modules": ["to_q", "to_k", "add_k_proj", "add_v_proj"],
                 "rank_pattern": {"attn2.to_k": 3},
                 "alpha_pattern": {r"blocks.\d+.attn1.to_q": 16}},
    "with biases": {"lora_alpha": 16, "lora_bias": True, "target_modules": ["to_q", "proj_out"]},
}  # fmt: skip


takes_a_bias_for_damage = pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape")
"""PEFT warns of each bias of `lora_B`, because it has one dimension."""


def make_peft(config):
    """PEFT's module with random factors."""
    torch.manual_seed(1)
    module = peft.get_peft_model(make_transformer(), peft.LoraConfig(r=8, **config))
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3)
    return module


@takes_a_bias_for_damage
@pytest.mark.parametrize("case", PEFT_CONFIGS)
def test_a_folder_of_pefts(tmp_path, case):
    """Red when alpha, its patterns or the root of the rank are not heeded."""
    module = make_peft(PEFT_CONFIGS[case])
    module.save_pretrained(tmp_path)
    file = read_adapter(tmp_path / "adapter_model.safetensors")
    assert file.style == "PEFT"
    theirs = arrays_of(module.merge_and_unload())
    assert_changed(theirs, file.adapters[None].factors)
    assert_same_weights(merged(file.adapters[None]), theirs)


@takes_a_bias_for_damage
@pytest.mark.parametrize("case", ["alpha", "patterns", "with biases"])
def test_a_file_of_diffusers(tmp_path, case):
    module = make_peft(PEFT_CONFIGS[case])
    config = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in module.peft_config["default"].to_dict().items()
    }
    layers: dict[str, Any] = {
        name.removeprefix("base_model.model."): tensor
        for name, tensor in get_peft_model_state_dict(module).items()
    }
    WanPipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=config
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    file = read_adapter(path)
    assert "lora_adapter_metadata" in file.header
    assert_same_weights(merged(file.adapters[None]), arrays_of(module.merge_and_unload()))
    assert_same_weights(merged(file.adapters[None]), fused_by_diffusers(path))


DIFFUSERS_READS = ["A diffusers", "B ComfyUI", "B ComfyUI without alpha", "C lightx2v",
                   "D kohya, musubi"]  # fmt: skip


@pytest.mark.parametrize("style", DIFFUSERS_READS)
def test_a_style_that_diffusers_reads(tmp_path, style):
    """All modules of the blocks, as its converters want them."""
    alphas = MIXED["alphas"] if STYLES[style].alpha else (None,)
    factors = make_factors(linears(), ranks=MIXED["ranks"], alphas=alphas)
    path = save(tmp_path / "theirs.safetensors", STYLES[style].tensors(factors))
    assert_same_weights(merged(read_adapter(path).adapters[None]), fused_by_diffusers(path))


@pytest.mark.parametrize("style", STYLES)
def test_a_style_by_the_definition(tmp_path, style):
    """Some modules of some blocks, at some strength: what diffusers would not read, too."""
    alphas = MIXED["alphas"] if STYLES[style].alpha else (None,)
    factors = make_factors(linears(embedders=True)[3::4], ranks=MIXED["ranks"], alphas=alphas)
    path = save(tmp_path / "theirs.safetensors", STYLES[style].tensors(factors))
    adapter = read_adapter(path).adapters[None]
    assert adapter.factors.keys() == factors.keys()
    assert_same_weights(merged(adapter, 0.6), exactly(Adapter(factors=factors), 0.6))


def test_whole_differences(tmp_path):
    """As extractions have them: of weights, biases, norms, modulations, and factors beside."""
    rng = np.random.default_rng(3)
    shapes, modules = base_source().shapes, original_modules()
    wanted = {
        "blocks.1.norm2.weight": "diffusion_model.blocks.1.norm3.diff",
        "blocks.1.norm2.bias": "diffusion_model.blocks.1.norm3.diff_b",
        "blocks.0.attn1.norm_q.weight": "diffusion_model.blocks.0.self_attn.norm_q.diff",
        "blocks.0.attn2.norm_added_k.weight": "diffusion_model.blocks.0.cross_attn.norm_k_img.diff",
        "blocks.2.scale_shift_table": "diffusion_model.blocks.2.diff_m",
        "scale_shift_table": "diffusion_model.head.diff_m",
        "blocks.0.scale_shift_table": "diffusion_model.blocks.0.modulation.diff",
        "patch_embedding.weight": "diffusion_model.patch_embedding.diff",
        "patch_embedding.bias": "diffusion_model.patch_embedding.diff_b",
        "proj_out.weight": "diffusion_model.head.head.diff",
        "blocks.0.attn1.to_q.bias": "diffusion_model.blocks.0.self_attn.q.diff_b",
        "condition_embedder.time_proj.bias": "diffusion_model.time_projection.1.diff_b",
        "condition_embedder.image_embedder.norm1.weight": "diffusion_model.img_emb.proj.0.diff",
    }
    differences = {name: rng.normal(size=shapes[name]).astype(np.float32) for name in wanted}
    assert modules["blocks.1.norm2"] == "blocks.1.norm3"
    factors = make_factors(["blocks.0.attn1.to_q"], alphas=(1.0,))
    tensors = STYLES["C lightx2v"].tensors(factors) | {
        wanted[name]: torch.from_numpy(array) for name, array in differences.items()
    }
    adapter = read_adapter(save(tmp_path / "theirs.safetensors", tensors)).adapters[None]
    expected = exactly(Adapter(factors=factors, differences=differences), -0.7)
    assert_same_weights(merged(adapter, -0.7), expected)


def test_factors_of_a_convolution(tmp_path):
    """Red when the kernel's places are taken for channels."""
    rng = np.random.default_rng(4)
    rows, *columns = base_source().shapes["patch_embedding.weight"]
    down = rng.normal(size=(3, *columns)).astype(np.float32)
    up = rng.normal(size=(rows, 3, 1, 1, 1)).astype(np.float32)
    tensors = {
        "lora_unet_patch_embedding.lora_down.weight": torch.from_numpy(down),
        "lora_unet_patch_embedding.lora_up.weight": torch.from_numpy(up),
    }
    adapter = read_adapter(save(tmp_path / "theirs.safetensors", tensors)).adapters[None]
    ours = merged(adapter)["patch_embedding.weight"]
    product = np.einsum("or,ricjk->oicjk", up.reshape(rows, 3).astype(np.float64), down)
    expected = base_source().read("patch_embedding.weight") + product
    assert relative_error(ours, expected) <= MERGED


def test_a_mixture_of_underlines_and_dots(tmp_path):
    """As some converters leave them: `lora_unet_blocks_2.self_attn.k.lora_down.weight`."""
    factors = make_factors(["blocks.2.attn1.to_k"], alphas=(1.0,))
    tensors = {
        name.replace("lora_unet_blocks_2_self_attn_k", "lora_unet_blocks_2.self_attn.k"): tensor
        for name, tensor in STYLES["D kohya, musubi"].tensors(factors).items()
    }
    assert "lora_unet_blocks_2.self_attn.k.alpha" in tensors
    adapter = read_adapter(save(tmp_path / "theirs.safetensors", tensors)).adapters[None]
    assert_same_weights(merged(adapter), exactly(Adapter(factors=factors)))


def test_alpha_in_the_header_is_heeded(tmp_path):
    """A file of diffusers' names whose header alone has alpha."""
    factors = make_factors(["blocks.2.attn1.to_k"], alphas=(None,))
    header = {
        "lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 1})
    }
    path = save(tmp_path / "a.safetensors", STYLES["A diffusers"].tensors(factors), header)
    adapter = read_adapter(path).adapters[None]
    scaled = make_factors(["blocks.2.attn1.to_k"], alphas=(1.0,))
    assert_same_weights(merged(adapter), exactly(Adapter(factors=scaled)))
