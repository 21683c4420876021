"""Adapters of random numbers, and what a pipeline makes of requests with them."""

import math

import numpy as np

from wan_tpu.adapters.form import Factors
from wan_tpu.adapters.write import AdapterMetadata, write_adapter
from wan_tpu.media import NO_MEDIA
from wan_tpu.pipeline.progress import Watch


def write_lora(path, shapes, ends, *, seed=0, scale=0.3):
    """Random factors of the weights whose names end so."""
    rng = np.random.default_rng(seed)
    factors = {
        name: Factors(
            up=rng.normal(0, scale, (shape[0], 4)).astype("f4"),
            down=rng.normal(0, scale, (4, math.prod(shape[1:]))).astype("f4"),
            alpha=2,
        )
        for name, shape in shapes.items()
        if name.endswith(ends)
    }
    metadata = AdapterMetadata(base_model="random")
    return write_adapter(path, factors, metadata=metadata, dtype="float32")


def latents_of(pipeline, request, media=NO_MEDIA):
    """After the last step; nothing is decoded."""
    run = pipeline._plan(request, Watch(), media)
    executor = pipeline._executor
    executor.add_adapters(run)
    encoded = executor.encode_pictures(run)
    contexts = executor.encode_text(run, None)
    conditions, start = executor.conditions(run, encoded), executor.start(run, encoded)
    return executor.denoise(run, contexts, conditions, start).latents
