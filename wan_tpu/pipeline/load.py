"""From options to a loaded pipeline: the one way that the command line and the service take.

model = options.open_model()                      # its files are here
request, _ = check_request(model, request)        # complete, and the model can make it
runtime.start(host_devices=options.host_devices, ...)
pipeline = load_pipeline(model, options)
"""

from collections.abc import Sequence
from typing import Any

import jax

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.pipeline.model import parse_dtype
from wan_tpu.pipeline.options import LoadOptions
from wan_tpu.pipeline.text_to_video import TextToVideo
from wan_tpu.request import VideoRequest
from wan_tpu.transformer.config import TransformerConfig


def load_pipeline(
    model: ModelDescription,
    options: LoadOptions,
    *,
    devices: Sequence[Any] | None = None,
    compile_for: VideoRequest | None = None,
) -> TextToVideo:
    """Loads a model onto devices.

    Args:
        model: what `options.open_model` gave.
        options: what it is loaded with.
        devices: those to use; all of all processes when not given.
        compile_for: a request whose programs are compiled while the weights load.

    Raises:
        LayoutError: the layout does not fit the devices.
        CheckpointError: files are missing, damaged or not those of the model.
        MissingPackageError: the VAE's package is not installed.
    """
    devices = list(devices if devices is not None else jax.devices())
    heads = TransformerConfig.from_json(model.configs["transformer"]).num_attention_heads
    return TextToVideo.from_pretrained(
        model.name,
        layout=options.layout_for(len(devices), heads),
        devices=devices,
        dtype=None if options.dtype is None else parse_dtype(options.dtype),
        attention=options.attention,
        vae=options.vae,
    )
