"""Which files are a component's weights: those that diffusers would take, and no mixture."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from transformers import UMT5EncoderModel

from tests.damaged_models import copy_wan_tiny
from wan_tpu.checkpoints.files import weight_files
from wan_tpu.checkpoints.source import SafetensorsSource
from wan_tpu.errors import CheckpointError

PLAIN = "diffusion_pytorch_model"


def write(folder, name, value, tensors=("a", "b")):
    save_file({tensor: torch.full((2,), float(value)) for tensor in tensors}, folder / name)


def write_index(folder, name, *shards):
    (folder / name).write_text(
        json.dumps({"weight_map": {f"tensor {n}": shard for n, shard in enumerate(shards)}})
    )


def names(folder, plain_name=PLAIN):
    return [path.name for path in weight_files(folder, plain_name)]


def test_the_plain_file_and_nothing_beside_it(tmp_path):
    write(tmp_path, f"{PLAIN}.safetensors", 1)
    for other in (f"{PLAIN}_old", f"{PLAIN}.fp16", f"{PLAIN}.non_ema", "model", "zzz", "._x"):
        write(tmp_path, f"{other}.safetensors", 2)
    write_index(tmp_path, f"{PLAIN}.safetensors.index.fp16.json", f"{PLAIN}.fp16.safetensors")
    source = SafetensorsSource(tmp_path, plain_name=PLAIN)
    assert names(tmp_path) == [f"{PLAIN}.safetensors"]
    np.testing.assert_array_equal(source.read("a"), [1, 1])


def test_the_index_of_the_plain_name_before_that_of_a_variant(tmp_path):
    shards = [f"{PLAIN}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for n, shard in enumerate(shards):
        write(tmp_path, shard, 1, (f"tensor {n}",))
    write(tmp_path, "a.fp16-00001-of-00001.safetensors", 2)
    write_index(tmp_path, "a.fp16.safetensors.index.json", "a.fp16-00001-of-00001.safetensors")
    write_index(tmp_path, f"{PLAIN}.safetensors.index.json", *shards)
    assert names(tmp_path) == shards


@pytest.mark.parametrize(("plain_name", "taken"), [(PLAIN, "shard"), ("model", "plain")])
def test_index_and_plain_file_together(tmp_path, plain_name, taken):
    """diffusers looks for the index first, transformers for the file."""
    write(tmp_path, f"{plain_name}.safetensors", 1)
    write(tmp_path, "shard.safetensors", 2)
    write_index(tmp_path, f"{plain_name}.safetensors.index.json", "shard.safetensors")
    assert names(tmp_path, plain_name) == [
        "shard.safetensors" if taken == "shard" else "model.safetensors"
    ]


@pytest.mark.parametrize(
    ("component", "load", "plain_name", "tensor"),
    [
        ("text_encoder", UMT5EncoderModel, "model", "encoder.final_layer_norm.weight"),
        ("vae", AutoencoderKLWan, PLAIN, "decoder.conv_out.bias"),
    ],
)
def test_the_originals_take_the_same(tmp_path, component, load, plain_name, tensor):
    """A plain file, and an index with its shard beside it whose numbers are others."""
    folder = copy_wan_tiny(tmp_path / "model") / component
    tensors = {
        name: SafetensorsSource(folder).read(name) for name in SafetensorsSource(folder).shapes
    }
    changed = {
        name: torch.from_numpy(np.asarray(array, np.float32)) + 1 for name, array in tensors.items()
    }
    save_file(changed, folder / "shard.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(changed, "shard.safetensors")}
    (folder / f"{plain_name}.safetensors.index.json").write_text(json.dumps(index))
    original = load.from_pretrained(folder).state_dict()[tensor].float().numpy()
    ours = SafetensorsSource(folder, plain_name=plain_name).read(tensor).astype(np.float32)
    np.testing.assert_array_equal(ours, original)


@pytest.mark.parametrize(
    "files",
    [
        [f"{PLAIN}.fp16.safetensors"],
        ["model.safetensors"],
        ["anything.safetensors"],
        [f"{PLAIN}-00001-of-00002.safetensors", f"{PLAIN}-00002-of-00002.safetensors"],
        [f"{PLAIN}.fp16-00001-of-00002.safetensors", f"{PLAIN}.fp16-00002-of-00002.safetensors"],
    ],
)
def test_without_index_and_plain_file_one_set_will_do(tmp_path, files):
    for number, name in enumerate(files):
        write(tmp_path, name, 1, (f"tensor {number}",))
    write(tmp_path, "._hidden.safetensors", 2)
    assert names(tmp_path) == files
    assert len(SafetensorsSource(tmp_path).shapes) == len(files)


def test_several_sets_are_refused(tmp_path):
    write(tmp_path, f"{PLAIN}.fp16.safetensors", 1)
    write(tmp_path, f"{PLAIN}.non_ema.safetensors", 2)
    with pytest.raises(CheckpointError, match=rf"several sets .*fp16.*non_ema.*{PLAIN}\.safe"):
        weight_files(tmp_path, PLAIN)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    """Shards of two splits of one model, in one folder."""
    write(tmp_path, f"{PLAIN}-00001-of-00001.safetensors", 1)
    write(tmp_path, f"{PLAIN}-00001-of-00002.safetensors", 2, ("a",))
    with pytest.raises(CheckpointError, match=r"a is both in .*of-00001.* and in .*of-00002"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{}"]
)
def test_what_is_no_index_is_named(tmp_path, content):
    write(tmp_path, "x.safetensors", 1)
    (tmp_path / f"{PLAIN}.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json (is not|cannot be read)"):
        weight_files(tmp_path, PLAIN)


def test_two_indexes_of_variants_are_refused(tmp_path):
    for name in ("fp16", "bf16"):
        write(tmp_path, f"{name}.safetensors", 1)
        write_index(tmp_path, f"x.{name}.safetensors.index.json", f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="several sets"):
        weight_files(tmp_path)


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n"


def test_pointers_of_git_lfs_say_what_to_do(tmp_path):
    (tmp_path / "model.safetensors").write_text(POINTER)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is git-lfs.*run git lfs pull"):
        SafetensorsSource(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(POINTER)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json is git-lfs.*run git lfs pull"):
        SafetensorsSource(tmp_path)
