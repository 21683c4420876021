"""`wan-tpu adapter inspect`: what a file is, which models it fits, what would be left out."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from wan_tpu.fast import WAN_TINY_4

LIKE_14B = ("wan2.1-t2v-14b", "wan2.1-i2v-14b-480p", "wan2.1-i2v-14b-720p",
            "wan2.1-flf2v-14b-720p", "wan2.2-t2v-a14b", "wan2.2-i2v-a14b")  # fmt: skip


def linear(module, dim=5120, rank=2):
    front = f"lora_unet_blocks_0_{module}"
    return {
        f"{front}.lora_down.weight": torch.ones(rank, dim, dtype=torch.bfloat16),
        f"{front}.lora_up.weight": torch.ones(dim, rank, dtype=torch.bfloat16),
        f"{front}.alpha": torch.tensor(1.0),
    }


@pytest.fixture
def adapter(tmp_path):
    """Of Wan 2.1's image-to-video 14B, for the low-noise expert by its name."""
    path = tmp_path / "fox_low_noise.safetensors"
    tensors = linear("self_attn_q") | linear("cross_attn_k_img", rank=4)
    tensors["diffusion_model.blocks.0.norm3.diff_b"] = torch.ones(5120)
    save_file(tensors, path, {"ss_steps": "30"})
    return path


def test_the_account_as_json(run_here, adapter):
    """Red when a rank, a scale, a target, a model or what is left out is another."""
    code, out, error = run_here("adapter", "inspect", str(adapter), "--json")
    assert code == 0, error
    (account,) = json.loads(out)
    models = account.pop("models")
    assert account == {
        "file": str(adapter),
        "style": "kohya",
        "bytes": adapter.stat().st_size,
        "keys": 7,
        "dtypes": {"BF16": 4, "F32": 3},
        "expert": "transformer_2",
        "expert_from": "name",
        "parts": [
            {
                "expert": None,
                "described": "rank 2 to 4, 2 matrices and 1 whole tensors",
                "forms": {"LoRA": 2},
                "ranks": [2, 4],
                "alphas": [1.0],
                "scales": [0.25, 0.5],
                "targets": {"attn1.to_q": 1, "attn2.add_k_proj": 1},
                "whole_tensors": {"norm2.bias": 1},
            }
        ],
        "header": {"ss_steps": "30"},
    }
    image = ["blocks.0.attn2.add_k_proj.weight"]
    left_out = {name: fit["left_out"] for name, fit in models.items() if fit["fits"]}
    assert left_out == {name: image if name in LIKE_14B[4:] else [] for name in LIKE_14B[1:]}
    assert "reads no image tokens" in models["wan2.1-t2v-14b"]["why_not"]
    assert "fits" in models["wan-tiny"]


def test_the_account_as_text(run_here, adapter):
    code, out, _ = run_here("adapter", "inspect", str(adapter), "--model", "wan2.2-i2v-a14b")
    assert code == 0
    assert out.splitlines()[0].startswith("fox_low_noise.safetensors: kohya, 7 keys, BF16, F32, ")
    assert out.splitlines()[1:] == [
        "expert   transformer_2, as its name says",
        "holds    rank 2 to 4, 2 matrices and 1 whole tensors",
        "alpha    1; scale 0.25, 0.5",
        "targets  attn1.to_q x1, attn2.add_k_proj x1",
        "whole    norm2.bias x1",
        "fits     wan2.2-i2v-a14b",
        "         wan2.2-i2v-a14b leaves out 1 for image tokens",
    ]


def test_a_folder_of_two(run_here, adapter):
    other = adapter.with_name("fox_high_noise.safetensors")
    save_file(linear("ffn_0"), other)
    code, out, _ = run_here("adapter", "inspect", str(adapter.parent), "--json")
    assert code == 0
    assert [account["expert"] for account in json.loads(out)] == ["transformer", "transformer_2"]


REFUSED = {
    "nothing": (["nothing.safetensors"], 2, "there is no adapter 'nothing.safetensors'"),
    "no name": ([""], 2, "an adapter has no name"),
    "another model's": (["FOX", "--model", "wan2.1-t2v-1.3b"], 1, "reads no image tokens"),
    "a model that is none": (["FOX", "--model", "wan-huge"], 2, "wan-huge"),
    "a damaged one": (["cut.safetensors"], 1, "is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line(run_here, tmp_path, adapter, case):
    (tmp_path / "cut.safetensors").write_bytes(adapter.read_bytes()[:300])
    words, expected_code, expected = REFUSED[case]
    words = [str(adapter) if word == "FOX" else word for word in words]
    code, out, error = run_here("adapter", "inspect", *words)
    assert (code, out) == (expected_code, "")
    assert expected in error
    assert error.count("\n") == 1


def test_neither_jax_nor_torch_is_loaded():
    """Red when a look at a file takes seconds."""
    from wan_tpu.checkpoints.known import embedded_folders

    path = embedded_folders()["wan-tiny"].parent / WAN_TINY_4.adapters[0]
    code = (
        "import sys; from wan_tpu.cli.main import main; "
        f"code = main(['adapter', 'inspect', {str(path)!r}]); "
        "print(code, [name for name in ('jax', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "fits     wan-tiny" in done.stdout
