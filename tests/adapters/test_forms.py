"""LoHa, LoKr and DoRA as other tools write them, against peft's merge and the papers' formulas."""

import numpy as np
import peft
import pytest
import torch

from tests.adapters.small import (
    arrays_of,
    base_source,
    exact_matrix,
    exactly,
    make_transformer,
    merged,
    normal,
    pair,
    save,
)
from tests.tolerances import MERGED, relative_error
from wan_tpu.adapters.chosen import assign, open_adapters
from wan_tpu.adapters.form import Adapter, Factors, Hadamard, Kronecker
from wan_tpu.adapters.styles import read_adapter
from wan_tpu.errors import CheckpointError

PEFTS = {
    "LoHa": peft.LoHaConfig(
        r=4, alpha=2, target_modules=["to_q", "ffn.net.2"], rank_pattern={"attn2.to_q": 3},
        alpha_pattern={r"blocks.\d+.attn1.to_q": 7}, init_weights=False),
    "LoKr": peft.LoKrConfig(
        r=4, alpha=2, target_modules=["to_k", "ffn.net.0.proj"], init_weights=False),
    "LoKr of two pairs": peft.LoKrConfig(
        r=2, alpha=3, target_modules=["to_v", "ffn.net.2"], decompose_both=True,
        init_weights=False),
    "LoKr that is whole": peft.LoKrConfig(
        r=40, alpha=16, target_modules=["to_out.0"], rank_pattern={"attn2.to_out.0": 50},
        init_weights=False),
    "DoRA": peft.LoraConfig(
        r=4, lora_alpha=3, target_modules=["to_q", "ffn.net.0.proj", "add_v_proj"], use_dora=True,
        init_lora_weights=False),
    "DoRA by the root of the rank": peft.LoraConfig(
        r=4, lora_alpha=3, target_modules=["to_out.0"], use_dora=True, use_rslora=True,
        init_lora_weights=False),
}  # fmt: skip


@pytest.mark.parametrize("case", PEFTS)
def test_a_folder_of_pefts(tmp_path, case):
    """Red when a scale, a pattern, the norms or which matrix stands left is another."""
    torch.manual_seed(2)
    module = peft.get_peft_model(make_transformer(), PEFTS[case])
    for name, parameter in module.named_parameters():
        if "magnitude" in name:
            parameter.data *= torch.empty_like(parameter).uniform_(0.5, 1.5)
        elif "hada" in name or "lokr" in name:
            parameter.data *= 4  # as large as what is trained
    module.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path / "adapter_model.safetensors").adapters[None]
    theirs = arrays_of(module.merge_and_unload())
    ours, base = merged(adapter), base_source()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert relative_error(ours[name], tensor) <= MERGED, name
        is_changed = relative_error(tensor, base.read(name)) > 0.01
        assert is_changed == (name in adapter.factors), name
    assert {adapter.form_of(name) for name in adapter.factors} == {case.split()[0]}


def tensors_of(module, form, magnitude=None, *, front="lora_unet_"):
    """What LyCORIS and musubi write of one weight."""
    halves = {"up": "a", "down": "b"}
    match form:
        case Factors():
            found = {"lora_up.weight": form.up, "lora_down.weight": form.down}
        case Hadamard():
            parts = ((1, form.first), (2, form.second))
            found = {f"hada_w{n}_{halves[half]}": getattr(part, half)
                     for n, part in parts for half in halves}  # fmt: skip
        case Kronecker():
            found = {}
            for n, part in ((1, form.left), (2, form.right)):
                if isinstance(part, Factors):
                    found |= {f"lokr_w{n}_{halves[half]}": getattr(part, half) for half in halves}
                else:
                    found[f"lokr_w{n}"] = part
    if form.alpha is not None:
        found["alpha"] = np.array(form.alpha, np.float32)
    if magnitude is not None:
        found["dora_scale"] = magnitude
    return {f"{front}{module}.{key}": torch.tensor(array) for key, array in found.items()}


FILES = {
    "LoHa": ("blocks_0_self_attn_q", "blocks.0.attn1.to_q.weight", Hadamard(
        first=pair(72, 72, 4), second=pair(72, 72, 4, seed=1), alpha=1.0), None),
    "LoHa without alpha": ("blocks_0_ffn_0", "blocks.0.ffn.net.0.proj.weight", Hadamard(
        first=pair(100, 72, 3), second=pair(100, 72, 3, seed=1)), None),
    "LoKr, the usual": ("blocks_1_ffn_2", "blocks.1.ffn.net.2.weight", Kronecker(
        left=normal(8, 10), right=pair(9, 10, 2), alpha=1.0), None),
    "LoKr, alpha of whole ones says nothing": (
        "blocks_1_cross_attn_o", "blocks.1.attn2.to_out.0.weight", Kronecker(
            left=normal(8, 9), right=normal(9, 8), alpha=5.0), None),
    "LoKr, the left one a pair": ("blocks_1_cross_attn_k", "blocks.1.attn2.to_k.weight", Kronecker(
        left=pair(8, 9, 2), right=normal(9, 8), alpha=5.0), None),
    "DoRA of rows": ("blocks_2_self_attn_v", "blocks.2.attn1.to_v.weight", Factors(
        up=normal(72, 4), down=normal(4, 72), alpha=2.0), 8 + normal(72, 1)),
    "DoRA of columns": ("blocks_2_ffn_2", "blocks.2.ffn.net.2.weight",
                        pair(72, 100, 4), 8 + normal(1, 100)),
    "DoRA with LoHa": ("blocks_0_self_attn_q", "blocks.0.attn1.to_q.weight", Hadamard(
        first=pair(72, 72, 4), second=pair(72, 72, 4, seed=1)), 8 + normal(72, 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("strength", [1, -0.6])
def test_a_file_by_the_definition(tmp_path, case, strength):
    """Red when left and right, rows and columns, or rank and alpha are taken for each other."""
    module, name, form, magnitude = FILES[case]
    path = save(tmp_path / "their.safetensors", tensors_of(module, form, magnitude))
    file = read_adapter(path)
    adapter = file.adapters[None]
    assert (file.style, adapter.names) == ("kohya", {name})
    magnitudes = {} if magnitude is None else {name: magnitude}
    expected = exactly(Adapter(factors={name: form}, magnitudes=magnitudes), strength)
    ours = merged(adapter, strength)
    for each, tensor in expected.items():
        assert relative_error(ours[each], tensor) <= MERGED, each
    assert relative_error(ours[name], base_source().read(name)) > 0.01


def test_blocks_of_a_convolution(tmp_path):
    """As LyCORIS writes them: the right matrix has the kernel. Red when channels are its places."""
    rows, channels, *kernel = base_source().shapes["patch_embedding.weight"]
    left, right = normal(8, 2), normal(rows // 8, channels // 2, *kernel)
    tensors = {
        "lora_unet_patch_embedding.lokr_w1": torch.from_numpy(left),
        "lora_unet_patch_embedding.lokr_w2": torch.from_numpy(right),
    }
    adapter = read_adapter(save(tmp_path / "a.safetensors", tensors)).adapters[None]
    product = np.kron(left.astype(np.float64)[..., None, None, None], right)
    expected = base_source().read("patch_embedding.weight") + product
    assert relative_error(merged(adapter)["patch_embedding.weight"], expected) <= MERGED


def test_rows_of_zeros_stay_so():
    """Red when a norm of 0 makes NaN."""
    name = "blocks.0.attn1.to_q.weight"
    base = base_source().read(name)
    up, down = np.eye(72, 1, dtype=np.float32), -base[:1]
    adapter = Adapter(
        factors={name: Factors(up=up, down=down)},
        magnitudes={name: np.linalg.norm(base, axis=1, keepdims=True)},
    )
    ours = merged(adapter)[name]
    assert not ours[0].any()
    assert relative_error(ours[1:], base[1:]) <= MERGED


MISFITS = {
    "LoKr": (
        "blocks_0_self_attn_q", Kronecker(left=normal(8, 8), right=normal(8, 8)), None,
        "[72, 72] and the adapter's factors make one of [64, 64]; it is of a model of width 64"),
    "DoRA of too many rows": (
        "blocks_0_ffn_2", pair(72, 100, 4), normal(100, 1) ** 2,
        "norms of its DoRA are [100, 1]; expected [72, 1] or [1, 100]"),
    "DoRA of a convolution": (
        "patch_embedding", pair(72, 64, 4), normal(72, 1) ** 2, "is no matrix, and that is not"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_what_is_of_another_model(tmp_path, case):
    module, form, magnitude, expected = MISFITS[case]
    path = save(tmp_path / "their.safetensors", tensors_of(module, form, magnitude))
    with pytest.raises(CheckpointError) as error:
        assign(open_adapters([str(path)]), {"transformer": base_source().shapes}, model="m")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_what_it_is_called(tmp_path):
    """Every form is named, for the log."""
    tensors = {}
    for case in ("LoHa", "LoKr, the usual", "LoKr, alpha of whole ones says nothing",
                 "DoRA of rows"):  # fmt: skip
        module, _, form, magnitude = FILES[case]
        tensors |= tensors_of(module, form, magnitude)
    adapter = read_adapter(save(tmp_path / "a.safetensors", tensors)).adapters[None]
    assert adapter.described == (
        "LoHa of rank 4, 1 matrices and LoKr of rank 2, 2 matrices and DoRA of rank 4, 1 matrices"
    )
    assert exact_matrix(adapter.factors["blocks.1.ffn.net.2.weight"]).shape == (72, 100)
