"""What each process of `test_adapters.py` runs: requests, with a folder of adapters of its own.

    python -m tests.multihost.adapter_program COORDINATOR PROCESSES PROCESS_ID FOLDER OUT

Every process writes to OUT.PROCESS_ID.json what came of each request: a digest of the latents, or
the error.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys

import numpy as np
from jax.experimental import multihost_utils

from tests.pipeline.adapted import latents_of
from wan_tpu import runtime
from wan_tpu.adapters.chosen import open_adapters
from wan_tpu.checkpoints.models import open_model
from wan_tpu.checkpoints.weights import load_parts
from wan_tpu.errors import WanTpuError
from wan_tpu.family import TRANSFORMER
from wan_tpu.multihost.group import Joined, find_group
from wan_tpu.pipeline.load import checked_parts
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.request_adapters import RequestAdapters
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import make_request
from wan_tpu.sharding.layout import parse_layout

PROMPT = "a red circle moving right on a black background"


def request_of(*names):
    return make_request(PROMPT, steps=1, frames=1, adapters=names)


def answer(pipeline, *names):
    """What comes of a request."""
    try:
        latents = latents_of(pipeline, request_of(*names))
    except WanTpuError as error:
        return f"{type(error).__name__}: {error}"
    return hashlib.sha256(latents.tobytes()).hexdigest()


def error_to_loaded(pipeline, path):
    """How far this process's parts of the weights are from those that are loaded with a file."""
    run = pipeline._plan(request_of(path.name), Watch())
    merged = pipeline._executor.weights.of(TRANSFORMER, run.adapters, on_one_branch=False)
    parts, _ = checked_parts(pipeline.model, [TRANSFORMER], open_adapters([str(path)]))
    loaded = load_parts(parts)[TRANSFORMER]
    return max(
        float(np.abs(np.asarray(ours.data) - np.asarray(theirs.data)).max())
        for name, array in loaded.items()
        for ours, theirs in zip(
            merged[name].addressable_shards, array.addressable_shards, strict=True
        )
    )


def main(coordinator, processes, process_id, folder, out):
    group = find_group(coordinator, int(processes), int(process_id))
    runtime.start(
        host_devices=1,
        cache_folder=runtime.default_cache_folder(),
        joined=Joined(group=group, jax_coordinator=coordinator),
    )
    folder = pathlib.Path(folder)
    pipeline = VideoPipeline.load(
        open_model("wan-tiny"), layout=parse_layout("dp2"), adapter_folder=folder
    )
    found = {"plain": answer(pipeline), "same": answer(pipeline, "same.safetensors")}
    found["error to loaded"] = error_to_loaded(pipeline, folder / "same.safetensors")
    found["other"] = answer(pipeline, "other.safetensors")
    found["of one"] = answer(pipeline, "of-one.safetensors")
    found["of none"] = answer(pipeline, "of-none.safetensors")
    found["same again"] = answer(pipeline, "same.safetensors")
    # Between the choice, for which digests are known, and the reading.
    read = RequestAdapters.read

    def changed(adapters):
        if not group.leads:
            shutil.copy(folder / "other.safetensors", folder / "same.safetensors")
        return read(adapters)

    RequestAdapters.read = changed
    pipeline._executor.weights.drop()
    found["changed"] = answer(pipeline, "same.safetensors")
    found["plain again"] = answer(pipeline)
    pathlib.Path(f"{out}.{process_id}.json").write_text(json.dumps(found))
    multihost_utils.sync_global_devices("all have answered")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
