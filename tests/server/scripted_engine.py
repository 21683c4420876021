"""An engine whose behaviour is in the prompt, for what a real one does too seldom to be tested.

slow      a fifth of a second for each step
boom      raises at the second step
oom       runs out of memory at the second step
nan       computes numbers that are none
full      finds the disk full at the second step
crash     kills its own process at the second step
crashonce likewise, but only the first time
murder    kills the service that it works for at the second step
hang      stops for ever at the second step, deaf to cancellation
compile   stops for ever in the compiler
stop      stops its whole process at the second step, as SIGSTOP does

Made together, each does so by itself: an error ends its own video, a crash that of all.
`boom@1` and so on happen in process 1 of several alone. Two files in the folder that
SCRIPTED_ENGINE_MARKS names, or else in the data folder, change what it does without a prompt: with
`broken-probe` it fails at the service's own small video, while there is a `slow-start` it loads.
"""

import errno
import json
import os
import pathlib
import signal
import threading
import time

import numpy as np

from server.engine.failure import Failure
from wan_tpu.errors import BadNumbersError, Cancelled
from wan_tpu.media import NO_MEDIA
from wan_tpu.pipeline.progress import Progress, Watch
from wan_tpu.request import VideoRequest

QUICK_SECONDS, SLOW_SECONDS = 0.002, 0.2


class ScriptedEngine:
    def __init__(self, settings):
        self.batch = settings.batch
        self.cannot_start = os.environ.get("SCRIPTED_ENGINE_CANNOT_START")
        self.process_id = 0
        self.marks = pathlib.Path(os.environ.get("SCRIPTED_ENGINE_MARKS", settings.data_dir))

    def start(self, joined=None):
        if self.cannot_start:
            raise RuntimeError(self.cannot_start)
        if joined is not None:
            self.process_id = joined.group.process_id
        while (self.marks / "slow-start").exists():
            time.sleep(0.05)

    def warm_up(self, on_progress):
        with Watch(on_progress).stage("compile everything", 1) as report:
            report(1)

    def measure(self, on_progress, should_cancel):
        assert not should_cancel()

    def describe(self):
        """Any number of wan-tiny's videos together take hardly longer than one."""
        kind = [64, 64, 17, "unipc", True, False]
        seconds = {str(n): 0.1 + n / 1000 for n in (1, 2, 4, 8)}
        together = [{"kind": kind, "seconds": seconds}] if self.batch > 1 else []
        return {"layout": "single", "together": together}

    def probe_request(self):
        prompt = "boom" if (self.marks / "broken-probe").exists() else "probe"
        request = VideoRequest(
            prompt=prompt, width=16, height=16, num_frames=1, num_inference_steps=2, seed=0
        )
        return request, NO_MEDIA

    def generate(self, request, *, media, on_frames, on_progress, should_cancel):
        self.note_media(request, media)
        watch = Watch(on_progress, should_cancel)
        if "compile" in request.prompt.split():
            with watch.stage("compile step", 1):
                threading.Event().wait()
        with watch.stage("denoise", request.num_inference_steps) as report:
            for step in range(request.num_inference_steps):
                time.sleep(SLOW_SECONDS if "slow" in request.prompt else QUICK_SECONDS)
                if step == 1:
                    self.misbehave(request.prompt)
                report(step + 1)
        with watch.stage("decode", request.num_frames) as report:
            for index in range(request.num_frames):
                shape = (1, request.height, request.width, 3)
                if on_frames is not None:
                    on_frames(np.full(shape, 255 * index // request.num_frames, np.uint8))
                report(index + 1)
        return {"layout": "single", "seconds": watch.seconds}

    def generate_together(self, requests, calls):
        running, steps = set(range(len(requests))), requests[0].num_inference_steps

        def end(member, outcome):
            running.discard(member)
            calls.on_end(member, outcome)

        def tell(members, stage, done, total):
            progress = Progress(stage=stage, done=done, total=total, seconds=0.0)
            calls.on_progress(members, progress)
            for member in sorted(set(calls.cancelled()) & running):
                end(member, Cancelled("the generation was cancelled"))

        tell(sorted(running), "denoise", 0, steps)
        for step in range(steps):
            if not running:
                return
            is_slow = any("slow" in request.prompt for request in requests)
            time.sleep(SLOW_SECONDS if is_slow else QUICK_SECONDS)
            for member in sorted(running) if step == 1 else ():
                try:
                    self.misbehave(requests[member].prompt)
                except Exception as error:  # noqa: BLE001 - any, as the engine's own do
                    end(member, error)
            tell(sorted(running), "denoise", step + 1, steps)
        for member in range(len(requests)):
            if member in running:
                self.show(requests[member], lambda *step, m=member: tell([m], *step), calls, member)
            if member in running:
                end(member, {"layout": "single", "seconds": {}, "made_together": len(requests)})

    def show(self, request, tell, calls, member):
        """The frames of one of several."""
        for index in range(request.num_frames):
            if calls.on_frames is not None:
                shape = (1, request.height, request.width, 3)
                calls.on_frames(member, np.full(shape, request.seed % 256, np.uint8))
            tell("decode", index + 1, request.num_frames)

    def note_media(self, request, media):
        """Leaves what it got in a file of its own, for the test to look at."""
        if request.media:
            got = {role: len(media[digest]) for role, digest in request.media.items()}
            text = json.dumps({"request": request.media, "got": got, "digests": sorted(media)})
            (self.marks / f"media-{self.process_id}.json").write_text(text)

    def failure_of(self, error):
        match error:
            case MemoryError():
                return Failure.OUT_OF_MEMORY
            case BadNumbersError():
                return Failure.BAD_NUMBERS
            case _:
                return Failure.ENGINE_ERROR

    def misbehave(self, prompt):
        words = [word.partition("@") for word in prompt.split()]
        mine = {word for word, _, where in words if where in ("", str(self.process_id))}
        if "boom" in mine:
            raise RuntimeError("a secret of the inside: the engine's own words")
        if "oom" in mine:
            raise MemoryError
        if "nan" in mine:
            raise BadNumbersError("the latents of step 2")
        if "full" in mine:
            raise RuntimeError("wrapped") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if "crashonce" in mine and not (self.marks / "has-crashed").exists():
            (self.marks / "has-crashed").touch()
            mine.add("crash")
        if "murder" in mine:
            os.kill(os.getppid(), signal.SIGKILL)
            threading.Event().wait()
        if "crash" in mine:
            os.kill(os.getpid(), signal.SIGKILL)
        if "stop" in mine:
            os.kill(os.getpid(), signal.SIGSTOP)
        if "hang" in mine:
            threading.Event().wait()
