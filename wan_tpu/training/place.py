"""A model on the devices as training wants it: the layout follows the batch."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from wan_tpu.attention.resolve import resolve_implementation
from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.pipeline.components import transformer_config
from wan_tpu.pipeline.load import choose_layout, dtype_for, place_model
from wan_tpu.pipeline.model import VideoModel
from wan_tpu.sharding.layout import Layout, default_layout
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.config_check import load_options


def place_for_training(
    config: TrainingConfig,
    description: ModelDescription,
    devices: Sequence[Any] | None = None,
    layout: Layout | None = None,
) -> VideoModel:
    """The model on devices, without its weights.

    Args:
        config: of the run.
        description: of the model.
        devices: all that there are when None.
        layout: `chosen_layout` when None.

    Raises:
        LayoutError: the layout that is named does not fit the devices.
    """
    options, devices = load_options(config), jax.devices() if devices is None else devices
    dtype = dtype_for(devices, options.dtype)
    return place_model(
        description,
        layout=layout or chosen_layout(config, description, devices),
        devices=devices,
        dtype=dtype,
        vae_dtype=options.vae_dtype,
        attention=resolve_implementation(
            options.attention,
            devices[0].platform,
            device_kind=devices[0].device_kind,
            dtype=dtype,
            head_dim=transformer_config(description).attention_head_dim,
            gradient=True,
        ),
    )


def chosen_layout(
    config: TrainingConfig,
    description: ModelDescription,
    devices: Sequence[Any],
    device_bytes: int | None = None,
) -> Layout:
    """The layout that the configuration names, else what suits its batch and the devices.

    Args:
        config: of the run.
        description: of the model.
        devices: that it is for.
        device_bytes: what each has; asked of them when None.

    Raises:
        LayoutError: the layout that is named does not fit the devices.
    """
    options = load_options(config)
    chosen = layout_for_training(config, description, len(devices))
    if config.train.trains != "full":
        weights = choose_layout(description, devices, options.dtype, device_bytes).weights
        chosen = dataclasses.replace(chosen, weights=weights)
    return options.layout_for(len(devices), options.layout or chosen)


def layout_for_training(
    config: TrainingConfig, description: ModelDescription, num_devices: int
) -> Layout:
    """The layout where none is named: as many samples side by side as a part of the batch has.

    Weights are sharded: with moments and gradients each is six times what it is in use.
    """
    heads = transformer_config(description).num_attention_heads
    return default_layout(num_devices, heads, batch=config.train.batch // config.train.accumulate)
