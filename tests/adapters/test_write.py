"""What we write is what we read, in every style; a file is whole or absent."""

import json
import pathlib
import tempfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters.small import base_source, exactly, linears, loras, make_factors, merged
from tests.tolerances import MERGED, relative_error
from wan_tpu.adapters.form import Adapter, factors_of
from wan_tpu.adapters.styles import read_adapter
from wan_tpu.adapters.write import STYLES, AdapterMetadata, write_adapter
from wan_tpu.checkpoints.source import SafetensorsSource
from wan_tpu.errors import InputError, OutputError, UnknownNameError

METADATA = AdapterMetadata(base_model="tests/small", steps=30, dataset_digest="sha256:abc")


def read_back(path):
    path = pathlib.Path(path)
    return read_adapter(path / "adapter_model.safetensors" if path.is_dir() else path)


@given(
    modules=st.sets(st.sampled_from(linears(embedders=True)), min_size=1, max_size=6),
    ranks=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    alphas=st.lists(st.none() | st.floats(2**-6, 64, width=32), min_size=1, max_size=4),
    style=st.sampled_from(STYLES),
)
def test_any_part_comes_back_as_it_was(modules, ranks, alphas, style):
    """Red when a style loses a module, a rank or an alpha."""
    factors = make_factors(sorted(modules), ranks=tuple(ranks), alphas=tuple(alphas))
    with tempfile.TemporaryDirectory() as folder:
        path = write_adapter(
            pathlib.Path(folder) / ("a" if style == "peft" else "a.safetensors"),
            factors, metadata=METADATA, style=style, dtype="float32",
        )  # fmt: skip
        file = read_back(path)
    assert list(file.adapters) == [None]
    found = loras(file.adapters[None])
    assert found.keys() == factors.keys()
    for name, each in factors.items():
        assert found[name].rank == each.rank
        if style != "comfyui" or name.startswith("blocks."):
            assert np.array_equal(found[name].down, each.down)
            assert np.array_equal(found[name].up, each.up)
        ours, theirs = (x.scale * (x.up @ x.down) for x in (found[name], each))
        assert relative_error(ours, theirs) <= MERGED, name


def test_alpha_has_a_key_only_where_it_is_not_the_rank(tmp_path):
    """Others read a file without alphas with a scale of 1; kohya's readers want a key."""
    factors = make_factors(linears()[:3], alphas=(None, 4.0, 2.0))
    for style, expected in (("comfyui", 1), ("kohya", 3), ("diffusers", 0)):
        path = write_adapter(
            tmp_path / f"{style}.safetensors", factors, metadata=METADATA, style=style
        )
        names = SafetensorsSource(path).shapes
        assert sum(name.endswith(".alpha") for name in names) == expected, style


def test_bfloat16_is_what_is_written_unless_said(tmp_path):
    factors = make_factors(linears()[:3], alphas=(1.0,))
    path = write_adapter(tmp_path / "a.safetensors", factors, metadata=METADATA)
    dtypes = SafetensorsSource(path).dtypes
    assert {name.rpartition(".")[2]: dtype for name, dtype in dtypes.items()} == {
        "weight": "BF16",
        "alpha": "F32",
    }
    expected = exactly(Adapter(factors=factors))
    for name, tensor in merged(read_back(path).adapters[None]).items():
        assert relative_error(tensor, expected[name]) < 2**-7  # two factors of eight bits each


def test_torchs_and_numpys_factors_are_the_same(tmp_path):
    """Training gives them in the dtype that it has them in."""
    rng = np.random.default_rng(0)
    module, name = linears()[0], f"{linears()[0]}.weight"
    down = torch.from_numpy(rng.normal(size=(4, 72)).astype(np.float32)).bfloat16()
    up = torch.from_numpy(rng.normal(size=(72, 4)).astype(np.float32)).bfloat16()
    tensors = {
        f"{module}.lora_A.weight": down,
        f"{module}.lora_B.weight": up.requires_grad_(),
    }
    (made,) = factors_of(tensors.items(), alpha=8).values()
    assert (made.scale, str(made.up.dtype)) == (2.0, "bfloat16")
    assert np.array_equal(made.down.astype(np.float32), down.float().numpy())
    path = write_adapter(tmp_path / "a.safetensors", {name: made}, metadata=METADATA)
    found = loras(read_back(path).adapters[None])[name]
    assert np.array_equal(found.up.view(np.uint16), made.up.view(np.uint16))


def test_the_header_says_what_made_it(tmp_path):
    factors = make_factors(linears()[:12], ranks=(2, 4), alphas=(None,))
    path = write_adapter(
        tmp_path / "fox.safetensors",
        factors,
        metadata=AdapterMetadata(
            base_model="Wan-AI/Wan2.1", component="transformer_2", steps=30,
            dataset_digest="sha256:abc", further={"trigger": "a fox"},
        ),
        style="diffusers",
    )  # fmt: skip
    header = read_back(path).header
    assert header["modelspec.title"] == header["ss_output_name"] == "fox"
    assert header["ss_steps"] == header["wan_tpu.steps"] == "30"
    assert header["wan_tpu.base_model"] == "Wan-AI/Wan2.1"
    assert header["wan_tpu.component"] == "transformer_2"
    assert header["wan_tpu.rank"] == header["ss_network_dim"] == "2, 4"
    assert header["wan_tpu.targets"].startswith(
        "attn1.to_k, attn1.to_out.0, attn1.to_q, attn1.to_v"
    )
    assert header["wan_tpu.dataset_digest"] == "sha256:abc"
    assert header["trigger"] == "a fox"
    assert json.loads(header["lora_adapter_metadata"])["transformer.r"] in (2, 4)


def test_a_file_that_is_there_is_replaced_and_a_folder_is_not(tmp_path):
    factors = make_factors(linears()[:1])
    for _ in range(2):
        write_adapter(tmp_path / "a.safetensors", factors, metadata=METADATA)
    write_adapter(tmp_path / "a", factors, metadata=METADATA, style="peft")
    with pytest.raises(OutputError, match="it is there; take a name that is free"):
        write_adapter(tmp_path / "a", factors, metadata=METADATA, style="peft")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.safetensors"]
    (tmp_path / "any").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize("style", ["comfyui", "peft"])
def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, style):
    """Red when a full disk leaves half a file under its name."""

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wan_tpu.adapters.write.os.fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*No space left on device"):
        write_adapter(
            tmp_path / ("a" if style == "peft" else "a.safetensors"),
            make_factors(linears()[:1]), metadata=METADATA, style=style,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_what_is_no_adapter_to_write(tmp_path):
    factors = make_factors(linears()[:1])
    path = tmp_path / "a.safetensors"
    with pytest.raises(UnknownNameError, match="known: comfyui, diffusers, kohya, peft"):
        write_adapter(path, factors, metadata=METADATA, style="flux")
    with pytest.raises(UnknownNameError, match="known: bfloat16, float32"):
        write_adapter(path, factors, metadata=METADATA, dtype="float16")
    with pytest.raises(InputError, match="the adapter has no factors"):
        write_adapter(path, {}, metadata=METADATA)
    with pytest.raises(InputError, match=r"for example fox\.safetensors"):
        write_adapter(tmp_path / "a.pt", factors, metadata=METADATA)
    with pytest.raises(OutputError, match="there is no folder"):
        write_adapter(tmp_path / "no" / "a.safetensors", factors, metadata=METADATA)
    assert base_source().shapes
    assert not list(tmp_path.iterdir())
