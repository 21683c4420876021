"""What each process of `test_same_video.py` runs: every part of a video, and what was read for it.

    python -m tests.multihost.program COORDINATOR PROCESSES PROCESS_ID LAYOUT SEQUENCE_PARALLEL \
        OUT [interleaved]

`interleaved` deals the devices of the processes out in turn, as a walk over the chips of a slice
comes from host to host; with it the video is made once more, together with another. Process 0
writes velocity, latents and frames to OUT.npz; every process the bytes it read of each component,
and what its devices hold of it, to OUT.PROCESS_ID.json.
"""

import collections
import dataclasses
import json
import os
import pathlib
import sys
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils

from wan_tpu import runtime
from wan_tpu.checkpoints.source import SafetensorsSource
from wan_tpu.multihost.group import Joined, find_group
from wan_tpu.pipeline.progress import Calls
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import parse_layout

REQUEST = VideoRequest(
    prompt="a red circle moving right on a black background", num_inference_steps=4, seed=5
)
read_bytes, counting = collections.Counter(), threading.Lock()


def count_reads():
    original = SafetensorsSource.read

    def read(self, name, index=()):
        part = original(self, name, index)
        with counting:  # several threads read
            read_bytes[pathlib.Path(self.description).name] += part.nbytes
        return part

    SafetensorsSource.read = read


def held_bytes(params):
    """Bytes of the different parts that this process's devices hold."""
    return sum(
        shard.data.nbytes
        for array in params.values()
        for shard in {str(s.index): s for s in array.addressable_shards}.values()
    )


def frames_together(pipeline):
    """Of `REQUEST`, made together with another one."""
    frames = []

    def take(member, chunk):
        if member == 1:
            frames.append(chunk)

    calls = Calls(on_frames=take)
    pipeline.make_together([dataclasses.replace(REQUEST, seed=6), REQUEST], calls)
    return np.concatenate(frames)


def main(coordinator, processes, process_id, layout, sequence_parallel, out, order=""):
    group = find_group(coordinator, int(processes), int(process_id))
    joined = None if group.num_processes == 1 else Joined(group=group, jax_coordinator=coordinator)
    runtime.start(
        host_devices=8 // group.num_processes,
        cache_folder=runtime.default_cache_folder(),
        joined=joined,
    )
    count_reads()
    devices = jax.devices()
    if order == "interleaved":
        each = len(jax.local_devices())
        devices = [device for first in range(each) for device in devices[first::each]]
        assert devices[0].process_index != devices[1].process_index
    pipeline = VideoPipeline.from_pretrained(
        layout=parse_layout(layout, sequence_parallel=sequence_parallel), devices=devices
    )
    assert len(jax.local_devices()) == 8 // group.num_processes
    assert len(jax.devices()) == 8
    found = {
        "read": dict(read_bytes),
        "held": {
            "transformer": held_bytes(pipeline._executor.weights.base["transformer"]),
            "text_encoder": held_bytes(pipeline._executor.weights.base["text_encoder"]),
        },
    }
    pathlib.Path(f"{out}.{process_id}.json").write_text(json.dumps(found))
    parts = pipeline.intermediate(REQUEST)
    if order == "interleaved":
        parts["together"] = frames_together(pipeline)
    if group.leads:
        np.savez(f"{out}.npz", **parts)
    multihost_utils.sync_global_devices("all have their frames")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
