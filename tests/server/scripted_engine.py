"""An engine whose behaviour is in the prompt, for what a real one does too seldom to be tested.

slow      a fifth of a second for each step
boom      raises at the second step
oom       runs out of memory at the second step
crash     kills its own process at the second step
hang      stops for ever at the second step, deaf to cancellation

`boom@1` and so on happen in process 1 of several alone.
"""

import os
import signal
import threading
import time

import numpy as np

from server.engine.failure import Failure
from wan_tpu.pipeline.progress import Watch

QUICK_SECONDS, SLOW_SECONDS = 0.002, 0.2


class ScriptedEngine:
    def __init__(self, settings):
        self.cannot_start = os.environ.get("SCRIPTED_ENGINE_CANNOT_START")
        self.process_id = 0

    def start(self, joined=None):
        if self.cannot_start:
            raise RuntimeError(self.cannot_start)
        if joined is not None:
            self.process_id = joined.group.process_id

    def warm_up(self, on_progress):
        with Watch(on_progress).stage("compile everything", 1) as report:
            report(1)

    def describe(self):
        return {"layout": "single"}

    def generate(self, request, *, on_frames, on_progress, should_cancel):
        watch = Watch(on_progress, should_cancel)
        with watch.stage("denoise", request.num_inference_steps) as report:
            for step in range(request.num_inference_steps):
                time.sleep(SLOW_SECONDS if "slow" in request.prompt else QUICK_SECONDS)
                if step == 1:
                    misbehave(request.prompt, self.process_id)
                report(step + 1)
        with watch.stage("decode", request.num_frames) as report:
            for index in range(request.num_frames):
                shape = (1, request.height, request.width, 3)
                on_frames(np.full(shape, 255 * index // request.num_frames, np.uint8))
                report(index + 1)
        return {"layout": "single", "seconds": watch.seconds}

    def failure_of(self, error):
        is_memory = isinstance(error, MemoryError)
        return Failure.OUT_OF_MEMORY if is_memory else Failure.ENGINE_ERROR


def misbehave(prompt, process_id):
    words = [word.partition("@") for word in prompt.split()]
    mine = {word for word, _, where in words if where in ("", str(process_id))}
    if "boom" in mine:
        raise RuntimeError("a secret of the inside: the engine's own words")
    if "oom" in mine:
        raise MemoryError
    if "crash" in mine:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in mine:
        threading.Event().wait()
