"""Copies of wan-tiny, for processes that should have one model and do not."""

import pathlib
import shutil

import wan_tpu


def copy_of_wan_tiny(folder):
    source = pathlib.Path(wan_tpu.__file__).parent / "demo" / "wan-tiny"
    return pathlib.Path(shutil.copytree(source, folder))


def changed_copy(original, folder):
    """The same but for the last byte of the transformer's weights."""
    shutil.copytree(original, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    return pathlib.Path(folder)
