"""Copies of wan-tiny that are not quite wan-tiny."""

import pathlib
import shutil
from collections.abc import Callable

import torch
from safetensors.torch import load_file, save_file

from wan_tpu.checkpoints.models import open_model


def copy_wan_tiny(folder: pathlib.Path) -> pathlib.Path:
    """All its files, free to be changed."""
    original = open_model("wan-tiny").folder
    assert original is not None
    return pathlib.Path(shutil.copytree(original, folder))


def weights_file(model: pathlib.Path, component: str) -> pathlib.Path:
    """The one safetensors file of a component."""
    (path,) = (model / component).glob("*.safetensors")
    return path


def edit_tensor(
    model: pathlib.Path, component: str, name: str, edit: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Writes a component anew with one tensor changed."""
    path = weights_file(model, component)
    tensors = load_file(path)
    tensors[name] = edit(tensors[name])
    save_file(tensors, path)
