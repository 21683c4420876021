"""A small transformer, adapters for it, and files of them as other tools write them.

The other tools' keys are written down here from what such files hold; which module each original
name is, diffusers' own converter says.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import save_file

from tests.checkpoint_factory import RANDOM_KINDS, TRANSFORMER
from tests.original_checkpoints import by_diffusers, transformer_names
from wan_tpu.adapters.form import Adapter, Factors, Hadamard, Kronecker, factors_of
from wan_tpu.adapters.merge import MergedSource, Strengthened
from wan_tpu.checkpoints.source import ArraySource

CONFIG: dict[str, Any] = {**TRANSFORMER, **RANDOM_KINDS["i2v"].transformer}
"""With an image's keys and values, whose names differ most between tools."""


@functools.cache
def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = WanTransformer3DModel(**CONFIG)
    return {name: torch.randn_like(tensor) for name, tensor in module.state_dict().items()}


def make_transformer() -> WanTransformer3DModel:
    """The same numbers every time, in a module of its own: others change it in place."""
    module = WanTransformer3DModel(**CONFIG)
    module.load_state_dict(_weights())
    return module


def arrays_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Its tensors' copies."""
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def base_source() -> ArraySource:
    """The transformer's tensors."""
    return ArraySource({name: tensor.numpy() for name, tensor in _weights().items()})


@functools.cache
def original_modules() -> dict[str, str]:
    """The original name of each module by diffusers' name."""
    names = transformer_names(CONFIG["num_layers"], takes_image=True)
    converted = by_diffusers(convert_wan_transformer_to_diffusers, names)
    ends = (".weight", ".bias")
    return {
        ours.removesuffix(ends[0]): original.removesuffix(ends[0])
        for original, ours in converted.items()
        if original.endswith(ends[0])
    }


def linears(*, embedders: bool = False) -> list[str]:
    """Modules that a LoRA may change: of the blocks, and those around them."""
    shapes = base_source().shapes
    names = [name for name, shape in shapes.items() if len(shape) == 2 and name.endswith("weight")]
    modules = [name.removesuffix(".weight") for name in names]
    return [module for module in modules if embedders or module.startswith("blocks.")]


def make_factors(
    modules: list[str], *, ranks: tuple[int, ...] = (4,), alphas=(None,), seed: int = 0
) -> dict[str, Factors]:
    """Random factors, ranks and alphas in turn; values as large as a trained adapter's."""
    rng = np.random.default_rng(seed)
    shapes = base_source().shapes
    made = {}
    for number, module in enumerate(modules):
        rows, columns = shapes[f"{module}.weight"]
        rank, alpha = ranks[number % len(ranks)], alphas[number % len(alphas)]
        tensors = {
            f"{module}.lora_A.weight": rng.normal(0, 0.3, (rank, columns)).astype(np.float32),
            f"{module}.lora_B.weight": rng.normal(0, 0.3, (rows, rank)).astype(np.float32),
        }
        made |= factors_of(tensors.items(), alpha=alpha)
    return made


def merged(adapter: Adapter, strength: float = 1.0) -> dict[str, np.ndarray]:
    """The transformer's tensors with an adapter in them, as they would be loaded."""
    source = MergedSource(base_source(), [Strengthened(adapter=adapter, strength=strength)])
    return {name: source.read(name) for name in source.shapes}


def exactly(adapter: Adapter, strength: float = 1.0) -> dict[str, np.ndarray]:
    """The same by the definition, in float64."""
    tensors = {name: tensor.numpy().astype(np.float64) for name, tensor in _weights().items()}
    for name, each in adapter.factors.items():
        base = tensors[name]
        scale = 1 if each.alpha is None or each.rank is None else each.alpha / each.rank
        changed = base + scale * exact_matrix(each).reshape(base.shape)
        if name in adapter.magnitudes:
            norms = adapter.magnitudes[name].astype(np.float64)
            norms = norms[:, None] if norms.ndim == 1 else norms
            dim = 1 if norms.shape[1] == 1 else 0
            changed = changed * norms / np.linalg.norm(changed, axis=dim, keepdims=True)
        tensors[name] = base + strength * (changed - base)
    for name, difference in adapter.differences.items():
        shape = tensors[name].shape
        tensors[name] = tensors[name] + strength * difference.astype(np.float64).reshape(shape)
    return tensors


def loras(adapter: Adapter) -> dict[str, Factors]:
    """The factors of an adapter that is a LoRA and nothing else."""
    found = {name: each for name, each in adapter.factors.items() if isinstance(each, Factors)}
    assert found.keys() == adapter.factors.keys()
    return found


def exact_matrix(of: Any) -> np.ndarray:
    """What small matrices make, by the definition, float64, without its scale."""
    match of:
        case Factors():
            return of.up.astype(np.float64) @ of.down.astype(np.float64)
        case Hadamard():
            return exact_matrix(of.first) * exact_matrix(of.second)
        case Kronecker():
            return np.kron(exact_matrix(of.left), exact_matrix(of.right))
    return of.astype(np.float64)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random numbers, as large as a trained adapter's."""
    return np.random.default_rng([seed, *shape]).normal(0, 0.3, shape).astype(np.float32)


def pair(rows: int, columns: int, rank: int, *, seed: int = 0) -> Factors:
    """Factors of a matrix."""
    up, down = normal(rows, rank, seed=seed), normal(rank, columns, seed=seed)
    return Factors(up=up, down=down)


def fused_by_diffusers(path: pathlib.Path, strength: float = 1.0) -> dict[str, np.ndarray]:
    """The transformer's tensors after diffusers has loaded a file and fused it."""
    transformer = make_transformer()
    nothing: dict[str, Any] = {
        "tokenizer": None,
        "text_encoder": None,
        "vae": None,
        "scheduler": None,
    }
    pipeline = WanPipeline(transformer=transformer, **nothing)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    pipeline.fuse_lora(lora_scale=strength)
    pipeline.unload_lora_weights()
    return arrays_of(transformer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """How a tool writes the factors of a module.

    Attributes:
        front: before the module's name.
        original: whether that is the original one.
        underlines: instead of its dots.
        down, up: the last words.
        alpha: whether there is a key of it.
    """

    front: str
    down: str
    up: str
    original: bool = True
    underlines: bool = False
    alpha: bool = True

    def key(self, module: str, last: str) -> str:
        name = original_modules()[module] if self.original else module
        return f"{self.front}{name.replace('.', '_') if self.underlines else name}.{last}"

    def tensors(self, factors: dict[str, Factors]) -> dict[str, torch.Tensor]:
        """What the tool's file holds; alphas as they are, None as no key or the rank."""
        found = {}
        for name, each in factors.items():
            module = name.removesuffix(".weight")
            found[self.key(module, self.down)] = torch.from_numpy(each.down)
            found[self.key(module, self.up)] = torch.from_numpy(each.up)
            if self.alpha:
                alpha = each.rank if each.alpha is None else each.alpha
                found[self.key(module, "alpha")] = torch.tensor(float(alpha))
        return found


KOHYA: dict[str, Any] = {"down": "lora_down.weight", "up": "lora_up.weight"}
PEFT: dict[str, Any] = {"down": "lora_A.weight", "up": "lora_B.weight"}
STYLES = {
    "A diffusers": Style(front="transformer.", original=False, alpha=False, **PEFT),
    "B ComfyUI": Style(front="diffusion_model.", **PEFT),
    "B ComfyUI without alpha": Style(front="diffusion_model.", alpha=False, **PEFT),
    "C lightx2v": Style(front="diffusion_model.", **KOHYA),
    "D kohya, musubi": Style(front="lora_unet_", underlines=True, **KOHYA),
    "D without alpha": Style(front="lora_unet_", underlines=True, alpha=False, **KOHYA),
    "D Wan-Fun": Style(front="lora_unet__", underlines=True, **KOHYA),
    "E DiffSynth": Style(
        front="", down="lora_A.default.weight", up="lora_B.default.weight", alpha=False
    ),
    "E DiffSynth with its prefix": Style(
        front="pipe.dit.", down="lora_A.default.weight", up="lora_B.default.weight", alpha=False
    ),
}


def save(path: pathlib.Path, tensors: dict[str, torch.Tensor], header=None) -> pathlib.Path:
    """Writes one file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, header)
    return path
