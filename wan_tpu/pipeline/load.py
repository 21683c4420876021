"""From a model's files to its parameters on the devices."""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from wan_tpu.adapters.chosen import ChosenAdapter, assign
from wan_tpu.adapters.merge import MergedSource
from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.loading import Part
from wan_tpu.checkpoints.quantized import quantized, without_scales
from wan_tpu.checkpoints.renamed import RenamedSource
from wan_tpu.checkpoints.source import TensorSource
from wan_tpu.checkpoints.weights import check_parts, expected_tensors
from wan_tpu.family import VAE
from wan_tpu.pipeline.components import transformer_config, vae_parts
from wan_tpu.pipeline.model import VideoModel, make_video_model
from wan_tpu.pipeline.names import VAES_THAT_ENCODE, check_quantize
from wan_tpu.sharding.layout import Layout, default_layout, default_weights
from wan_tpu.sharding.mesh import make_mesh, memory_bytes
from wan_tpu.sharding.one_branch import batch_layout, merged_mesh
from wan_tpu.text.embedding_file import Embedding
from wan_tpu.text.new_words import NewWords, WordTokenizer, check_widths
from wan_tpu.text.tokenizer import load_tokenizer
from wan_tpu.transformer.weights import denoiser_weights
from wan_tpu.vae.backends import VaeBackend, load_vae
from wan_tpu.vae.weights import DECODER

logger = logging.getLogger(__name__)


def choose_layout(
    description: ModelDescription,
    devices: Sequence[Any],
    dtype: DTypeLike | None,
    device_bytes: int | None = None,
    *,
    batch: int = 2,
    quantize: str | None = None,
) -> Layout:
    """The layout for these devices when the user names none.

    Args:
        description: of the model.
        devices: all that it is split over.
        dtype: of weights; None for the platform's.
        device_bytes: what each has; asked of them when None.
        batch: of the steps that it is for: 2 with guidance, 1 without.
        quantize: of the transformers' blocks.
    """
    config = transformer_config(description)
    layout = default_layout(len(devices), config.num_attention_heads, batch=batch)
    weights = denoiser_weights(config, layout, dtype_for(devices, dtype), quantize)
    num_bytes = sum(weight.num_bytes for weight in weights) * len(description.kind.experts)
    if device_bytes is None:
        device_bytes = memory_bytes(devices)
    return dataclasses.replace(layout, weights=default_weights(num_bytes, device_bytes))


def dtype_for(devices: Sequence[Any], dtype: DTypeLike | None) -> jnp.dtype:
    """The dtype that is asked for, else float32 on a CPU and bfloat16 elsewhere."""
    return jnp.dtype(dtype or ("float32" if devices[0].platform == "cpu" else "bfloat16"))


def place_model(
    description: ModelDescription,
    *,
    layout: Layout | None = None,
    devices: Sequence[Any] | None = None,
    dtype: DTypeLike | None = None,
    vae_dtype: DTypeLike | None = None,
    attention: str = "auto",
    quantize: str | None = None,
) -> VideoModel:
    """A model on a mesh of devices, without its weights; arguments as of `VideoPipeline.load`.

    Raises:
        InputError: a name that does not exist, or a layout that does not fit.
        CheckpointError: the configuration is of a model that is not implemented.
    """
    devices = list(devices if devices is not None else jax.devices())
    layout = layout or choose_layout(description, devices, dtype, quantize=quantize)
    dtype = dtype_for(devices, dtype)
    return make_video_model(
        description,
        make_mesh(layout, devices),
        layout,
        dtype=dtype,
        vae_dtype=None if vae_dtype is None else jnp.dtype(vae_dtype),
        attention=attention,
        quantize=check_quantize(quantize),
    )


def on_one_branch(model: VideoModel) -> VideoModel:
    """The same model on the same devices for steps without guidance; see `sharding.one_branch`."""
    found = for_batch(model, 1)
    if found is model and model.layout.dp > 1:
        layout = model.layout
        logger.info("without guidance layout %s computes each step %d times", layout, layout.dp)
    return found


def for_batch(model: VideoModel, batch: int) -> VideoModel:
    """The same model on the same devices for steps of so many entries; see `batch_layout`."""
    denoiser = model.denoiser
    layout = batch_layout(model.layout, denoiser.config.num_attention_heads, batch)
    if layout == model.layout:
        return model
    return make_video_model(
        model.description,
        merged_mesh(model.mesh, layout),
        layout,
        dtype=model.dtype,
        vae_dtype=model.vae_dtype,
        attention=str(denoiser.setting.choice),
        quantize=model.quantize,
    )


def load_vae_of(model: VideoModel, name: str, parts: Sequence[str] | None = None) -> VaeBackend:
    """The autoencoder of a model, with its weights.

    The encoder is loaded for models that take pictures. A back end without one can still serve
    such a model where it makes videos of text alone, too.

    Args:
        model: whose.
        name: one of `vae.backends.BACKENDS`.
        parts: the halves to load; None for those that making videos needs.

    Raises:
        UnknownNameError: there is no such back end.
        InputError: it does not encode, and the model cannot do without.
        MissingPackageError: its package is not installed.
        CheckpointError: the weights are not those of the model.
    """
    kind = model.description.kind
    does_without = name not in VAES_THAT_ENCODE and frozenset() in kind.inputs
    if parts is None:
        parts = (DECODER,) if does_without else vae_parts(kind)
    return load_vae(
        name,
        model.vae,
        model.description.source(VAE),
        mesh=model.mesh,
        dtype=model.vae_dtype,
        parts=parts,
    )


def load_words(model: VideoModel, embeddings: Sequence[Embedding] = ()) -> WordTokenizer:
    """The tokenizer of a model, with words besides its own.

    Args:
        model: whose.
        embeddings: that prompts may hold.

    Raises:
        InputError: one is of another model, or two are of one word.
        CheckpointError: the tokenizer's files are damaged.
    """
    config, description = model.text_encoder.config, model.description
    check_widths(embeddings, config.d_model, description.name)
    words = NewWords(embeddings, config.vocab_size)
    folder = description.component_folder("tokenizer")
    return WordTokenizer(load_tokenizer(folder, config.vocab_size), words)


def checked_parts(
    model: VideoModel,
    components: Collection[str] | None = None,
    adapters: Sequence[ChosenAdapter] = (),
) -> tuple[dict[str, Part], Sequence[Mapping[str, Any]]]:
    """The components' weights and where they are read from; names and shapes fit, nothing is read.

    All but the autoencoder's, which its back end loads.

    Args:
        model: whose.
        components: those of its `components` that are wanted; None for all.
        adapters: added to what is read of the transformers.

    Returns:
        The parts by component, and for the metadata what was added to which.

    Raises:
        InputError: an adapter is for an expert that the model does not have.
        CheckpointError: files are missing, damaged or not those of the model.
    """
    kind, name = model.description.kind, model.description.name
    tensors = without_scales(expected_tensors(model.denoiser.weights()))
    assigned = assign(adapters, dict.fromkeys(kind.experts, tensors), model=name)
    parts = {
        name: Part(
            weights=component.module.weights(),
            source=quantized(
                MergedSource(
                    _without(model.description.source(name), component.unread),
                    assigned.by_component.get(name, ()),
                ),
                component.module.weights(),
            ),
            mesh=model.mesh,
        )
        for name, component in model.components.items()
        if name != VAE and (components is None or name in components)
    }
    check_parts(parts)
    return parts, assigned.described


def _without(source: TensorSource, unread: tuple[str, ...]) -> TensorSource:
    """A source without the tensors whose names begin so."""
    return RenamedSource(
        source, {name: name for name in source.shapes if not name.startswith(unread)}
    )
