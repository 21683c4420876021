"""Safetensors read slice by slice, and what damaged or wrong files say."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wan_tpu.checkpoints.source import ArraySource, SafetensorsSource, check_tensors
from wan_tpu.errors import CheckpointError


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(6, 8),
        "a.bias": torch.randn(6).to(torch.bfloat16),
        "scale": torch.tensor(2.0),
    }


def test_reads_whole_and_part_in_the_stored_dtype(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    source = SafetensorsSource(tmp_path)
    assert source.shapes == {"a.weight": (6, 8), "a.bias": (6,), "scale": ()}
    expected = tensors["a.weight"].numpy()
    np.testing.assert_array_equal(source.read("a.weight"), expected)
    part = source.read("a.weight", (slice(2, 5), slice(3, 8)))
    np.testing.assert_array_equal(part, expected[2:5, 3:8])
    bias = source.read("a.bias", (slice(1, 4),))
    assert bias.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(bias.astype(np.float32), tensors["a.bias"][1:4].float().numpy())
    assert source.read("scale") == 2.0


def test_reads_a_model_in_several_files(tmp_path, tensors):
    names = ["a.weight", "a.bias", "scale"]
    for number, name in enumerate(names):
        save_file({name: tensors[name]}, tmp_path / f"model-{number}.safetensors")
    index = {"weight_map": {name: f"model-{n}.safetensors" for n, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    source = SafetensorsSource(tmp_path)
    assert set(source.shapes) == set(names)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-1\.safetensors"):
        SafetensorsSource(tmp_path)


def test_alias_is_known_by_its_first_name(tmp_path):
    save_file({"second": torch.ones(3)}, tmp_path / "model.safetensors")
    source = SafetensorsSource(tmp_path, aliases={"second": "first"})
    assert dict(source.shapes) == {"first": (3,)}
    np.testing.assert_array_equal(source.read("first"), np.ones(3))


def test_truncated_file_is_named(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        SafetensorsSource(tmp_path)


def test_no_file_and_pickle_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        SafetensorsSource(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickle files can run code"):
        SafetensorsSource(tmp_path)


def test_missing_extra_and_misshapen_tensors_are_all_named():
    source = ArraySource({"kept": np.zeros(2), "bent": np.zeros((2, 3)), "strange": np.zeros(1)})
    expected = {"kept": (2,), "bent": (3, 2), "lost": (4,)}
    with pytest.raises(CheckpointError) as raised:
        check_tensors("transformer", expected, source)
    message = str(raised.value)
    assert "missing lost" in message
    assert "unexpected strange" in message
    assert "bent is [2, 3], expected [3, 2]" in message
    check_tensors("transformer", dict(source.shapes), source)


def test_many_missing_tensors_are_counted():
    with pytest.raises(CheckpointError, match="and 6 more"):
        check_tensors("vae", {f"t{n}": (1,) for n in range(10)}, ArraySource({}))
