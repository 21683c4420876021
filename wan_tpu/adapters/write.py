"""Writes an adapter in a style that others read.

* `comfyui`: original names behind `diffusion_model.`, PEFT's `lora_A` and `lora_B`, a key for alpha
  where it is not the rank; ComfyUI, diffusers and most others read it.
* `diffusers`: diffusers' names behind `transformer.`, alpha in the header.
* `kohya`: `lora_unet_`, names with underlines, `lora_down` and `lora_up`, always a key for alpha.
* `peft`: a folder for `PeftModel`, alpha in its `adapter_config.json`.
"""

import collections
import dataclasses
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch
from safetensors.torch import save

from wan_tpu.adapters.experts import EXPERT_HEADER
from wan_tpu.adapters.files import PEFT_CONFIG, PEFT_FILE
from wan_tpu.adapters.form import Factors
from wan_tpu.adapters.keys import KOHYA
from wan_tpu.adapters.scales import DIFFUSERS_CONFIG
from wan_tpu.checkpoints.arrays import as_torch
from wan_tpu.checkpoints.original_names import original_module_name
from wan_tpu.errors import InputError, OutputError, UnknownNameError

STYLES = ("comfyui", "diffusers", "kohya", "peft")
DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMetadata:
    """What made an adapter, for the file's header.

    Attributes:
        base_model: whose transformer it changes, as the training named it.
        component: of two experts the one that it was trained on; None for a model of one, whose
            adapters go onto both of another.
        title: what user interfaces show; the file's name when empty.
        steps: of the optimiser.
        dataset_digest: of the training's data.
        further: texts by name, as they stand.
    """

    base_model: str
    component: str | None = None
    title: str = ""
    steps: int | None = None
    dataset_digest: str | None = None
    further: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write_adapter(
    path: str | os.PathLike[str],
    factors: Mapping[str, Factors],
    *,
    metadata: AdapterMetadata,
    style: str = "comfyui",
    dtype: str = "bfloat16",
) -> pathlib.Path:
    """Writes one file, or PEFT's folder: whole or not at all; a file that is there is replaced.

    Args:
        path: of the file, `.safetensors`; of the folder, which is not there yet.
        factors: by diffusers' name of the weight, at least one; see `factors_of`.
        metadata: what made it.
        style: one of `STYLES`.
        dtype: of the factors in the file, one of `DTYPES`; alphas are float32.

    Returns:
        The path.

    Raises:
        UnknownNameError: there is no such style or dtype.
        InputError: there are no factors, or the file's name has another suffix.
        OutputError: it cannot be written.
    """
    for kind, name, known in (("style", style, STYLES), ("dtype", dtype, tuple(DTYPES))):
        if name not in known:
            raise UnknownNameError(f"adapter {kind}", name, known)
    path = pathlib.Path(path)
    if not factors:
        raise InputError(f"there is nothing to write to {path}: the adapter has no factors")
    if style != "peft" and path.suffix != ".safetensors":
        raise InputError(f"{path} must end in .safetensors, for example fox.safetensors")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {path.parent}")
    tensors = _tensors(factors, style, DTYPES[dtype])
    header = _header(path, factors, metadata)
    if style == "diffusers":
        config = {f"transformer.{key}": value for key, value in _peft_config(factors).items()}
        header[DIFFUSERS_CONFIG] = json.dumps(config, indent=2, sort_keys=True)
    aside = path.parent / f".wan-tpu-{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        if style == "peft":
            _write_folder(aside, path, tensors, header, _peft_config(factors, metadata.base_model))
        else:
            _write_file(aside, tensors, header)
            aside.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)
    return path


def _write_file(path: pathlib.Path, tensors: Any, header: dict[str, str]) -> None:
    """Writes a file, and waits until it is on the disk."""
    with path.open("wb") as file:  # safetensors' own files can be read by their owner alone
        file.write(save(tensors, metadata=header))
        file.flush()
        os.fsync(file.fileno())


def _write_folder(
    aside: pathlib.Path,
    path: pathlib.Path,
    tensors: Any,
    header: dict[str, str],
    config: Mapping[str, Any],
) -> None:
    if path.exists():
        raise OutputError(f"cannot write {path}: it is there; take a name that is free")
    aside.mkdir()
    _write_file(aside / PEFT_FILE, tensors, header)
    (aside / PEFT_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    aside.rename(path)


def _tensors(factors: Mapping[str, Factors], style: str, dtype: Any) -> dict[str, torch.Tensor]:
    """What the file holds, by its keys."""
    tensors: dict[str, np.ndarray] = {}
    for name, each in factors.items():
        module = name.removesuffix(".weight")
        down, up = each.down, each.up
        has_alpha = style == "kohya" or (style == "comfyui" and _alpha_of(each) != each.rank)
        if has_alpha and style == "comfyui" and not module.startswith("blocks."):
            # diffusers reads alphas of modules in blocks alone, and refuses a file with others.
            up, has_alpha = up.astype(np.float32) * np.float32(each.scale), False
        original = original_module_name(module)
        front, halves = {
            "comfyui": (f"diffusion_model.{original}", ("lora_A", "lora_B")),
            "diffusers": (f"transformer.{module}", ("lora_A", "lora_B")),
            "kohya": (KOHYA + original.replace(".", "_"), ("lora_down", "lora_up")),
            "peft": (f"base_model.model.{module}", ("lora_A", "lora_B")),
        }[style]
        tensors[f"{front}.{halves[0]}.weight"] = down.astype(dtype)
        tensors[f"{front}.{halves[1]}.weight"] = up.astype(dtype)
        if has_alpha:
            tensors[f"{front}.alpha"] = np.array(_alpha_of(each), np.float32)
    return {key: as_torch(np.array(array, order="C")) for key, array in tensors.items()}


def _alpha_of(factors: Factors) -> float:
    """As it is written: a whole number where it is one, which some readers expect."""
    alpha = factors.rank if factors.alpha is None else factors.alpha
    return int(alpha) if float(alpha).is_integer() else float(alpha)


def _peft_config(factors: Mapping[str, Factors], base_model: str = "") -> dict[str, Any]:
    """PEFT's configuration: the most frequent rank and alpha, and those that differ by module."""
    modules = {name.removesuffix(".weight"): each for name, each in factors.items()}
    pairs = collections.Counter((each.rank, _alpha_of(each)) for each in modules.values())
    (rank, alpha), _ = pairs.most_common(1)[0]
    config: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: each.rank for name, each in modules.items() if each.rank != rank},
        "alpha_pattern": {
            name: _alpha_of(each) for name, each in modules.items() if _alpha_of(each) != alpha
        },
        "target_modules": sorted(modules),
    }
    if base_model:
        config |= {"peft_type": "LORA", "base_model_name_or_path": base_model, "bias": "none"}
        config |= {"inference_mode": True, "task_type": None}
    return config


def _header(
    path: pathlib.Path, factors: Mapping[str, Factors], metadata: AdapterMetadata
) -> dict[str, str]:
    """Texts by name: those that user interfaces look for, and our own."""
    ranks = sorted({each.rank for each in factors.values()})
    alphas = sorted({_alpha_of(each) for each in factors.values()})
    targets = sorted({_without_number(name) for name in factors})
    title = metadata.title or path.stem
    texts = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.architecture": "wan/lora",
        "modelspec.implementation": "wan-tpu",
        "ss_output_name": title,
        "ss_base_model_version": "wan",
        "ss_sd_model_name": metadata.base_model,
        "ss_network_dim": _listed(ranks),
        "ss_network_alpha": _listed(alphas),
        "wan_tpu.base_model": metadata.base_model,
        "wan_tpu.rank": _listed(ranks),
        "wan_tpu.alpha": _listed(alphas),
        "wan_tpu.targets": _listed(targets),
    }
    if metadata.component is not None:
        texts[EXPERT_HEADER] = metadata.component
    if metadata.steps is not None:
        texts |= {"ss_steps": str(metadata.steps), "wan_tpu.steps": str(metadata.steps)}
    if metadata.dataset_digest is not None:
        texts["wan_tpu.dataset_digest"] = metadata.dataset_digest
    return texts | dict(metadata.further)


def _listed(values: Any) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _without_number(name: str) -> str:
    """`attn1.to_q` of `blocks.3.attn1.to_q.weight`."""
    module = name.removesuffix(".weight")
    return module.split(".", 2)[2] if module.startswith("blocks.") else module
