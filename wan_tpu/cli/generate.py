"""make a video from a prompt"""

import argparse
import logging
import os
import pathlib
import signal
import sys
import threading
from typing import Any

from wan_tpu.cli.options import add_layout_arguments, positive_int, read_layout
from wan_tpu.errors import UnknownNameError
from wan_tpu.geometry import parse_size
from wan_tpu.pipeline.video_file import VideoWriter, check_output_path, write_json_atomically
from wan_tpu.request import SCHEDULERS, VideoRequest, VideoResult

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130
GRACE_SECONDS = 3.0
"""How long Ctrl-C waits for the running step; a compiling program cannot be asked to stop."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu generate`."""
    parser.add_argument("prompt", help="what the video shows")
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="video.mp4",
        help=".mp4, or .npy: raw frames [frames, height, width, 3] (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--model", default="wan-tiny",
        help="wan-tiny (embedded), a diffusers folder, or a hub id (default: %(default)s)",
    )  # fmt: skip
    video = parser.add_argument_group("the video (defaults are the model's)")
    video.add_argument("--size", metavar="WxH", help="pixels, for example 1280x720")
    video.add_argument("--frames", type=positive_int, help="4n + 1, for example 81")
    video.add_argument("--fps", type=positive_int, help="frames per second of the file")
    video.add_argument("--steps", type=positive_int, help="denoising steps")
    video.add_argument("--guidance-scale", type=float, help="1 or less turns guidance off")
    video.add_argument("--flow-shift", type=float, help="shift of the schedule to high noise")
    video.add_argument("--scheduler", choices=SCHEDULERS, default="unipc")
    video.add_argument("--negative-prompt", help="what the video shall not show")
    video.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    machine = parser.add_argument_group("the machine")
    add_layout_arguments(machine)
    machine.add_argument("--attention", default="auto", help="auto, reference, splash, ...")
    machine.add_argument(
        "--vae", default="flax", help="flax or maxdiffusion (default: %(default)s)"
    )
    machine.add_argument("--dtype", help="bfloat16 or float32; default: float32 on a CPU")
    machine.add_argument(
        "--host-devices",
        type=positive_int,
        metavar="N",
        help="N virtual CPU devices, no accelerator",
    )
    machine.add_argument(
        "--no-cache", action="store_true", help="keep no compiled programs between runs"
    )


def run(parsed: argparse.Namespace) -> int:
    """Makes the video; what is wrong with the request is said before anything starts."""
    request = _read_request(parsed)
    layout = read_layout(parsed)
    output = check_output_path(parsed.output)

    from wan_tpu import runtime
    from wan_tpu.attention.api import IMPLEMENTATIONS
    from wan_tpu.pipeline.model import parse_dtype
    from wan_tpu.vae.backends import BACKENDS

    for kind, name, known in (
        ("attention", parsed.attention, IMPLEMENTATIONS),
        ("VAE", parsed.vae, BACKENDS),
    ):
        if name not in known:
            raise UnknownNameError(kind, name, tuple(known))
    dtype = parse_dtype(parsed.dtype) if parsed.dtype else None
    runtime.start(
        host_devices=parsed.host_devices,
        cache_folder=None if parsed.no_cache else runtime.default_cache_folder(),
    )

    def load() -> Any:
        from wan_tpu.checkpoints.models import open_model
        from wan_tpu.pipeline.check import check_request
        from wan_tpu.pipeline.text_to_video import TextToVideo

        complete, _ = check_request(open_model(parsed.model), request)
        pipeline = TextToVideo.from_pretrained(
            parsed.model, layout=layout, dtype=dtype, attention=parsed.attention, vae=parsed.vae
        )
        return pipeline, complete

    _Generation(load, output).run()
    sys.stdout.write(f"{output}\n")
    return 0


class _Generation:
    """One generation on a thread of its own, so that Ctrl-C is heard while a program compiles."""

    def __init__(self, load: Any, output: pathlib.Path):
        self._load = load
        self._output = output
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._writer: VideoWriter | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Waits for the end; raises what the generation raised, leaves on Ctrl-C."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: no half file
        thread = threading.Thread(target=self._work, name="generate", daemon=True)
        thread.start()
        try:
            # An event, not join: a join that Ctrl-C interrupts can take a live thread for ended.
            while not self._ended.wait(timeout=0.2):
                pass
        except KeyboardInterrupt:
            self._cancelled.set()
            if not self._ended.wait(timeout=GRACE_SECONDS) and self._writer is not None:
                self._writer.abort()  # in the middle of a compilation or of a very long step
            sys.stderr.write("\nwan-tpu: interrupted\n")
            sys.stderr.flush()
            # Not an orderly end of the interpreter: XLA's threads, stopped in the middle of their
            # work, abort the process with a message about exceptions that were not rethrown.
            os._exit(EXIT_INTERRUPTED)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            self._generate()
        except BaseException as error:  # noqa: BLE001 - carried to the main thread, raised there
            self._error = error
        finally:
            self._ended.set()

    def _generate(self) -> None:
        from wan_tpu.cli.progress import ProgressBars

        with ProgressBars() as bars:
            with bars.stage("load"):
                pipeline, request = self._load()
            with VideoWriter(
                self._output, fps=request.fps, width=request.width, height=request.height
            ) as self._writer:
                result = pipeline(
                    request,
                    on_progress=bars.show,
                    should_cancel=self._cancelled.is_set,
                    on_frames=self._writer.write,
                )
        write_json_atomically(self._output.with_suffix(".json"), result.metadata)
        _summarise(result)


def _read_request(parsed: argparse.Namespace) -> VideoRequest:
    """The request of the command line.

    Raises:
        InputError: a value is out of range.
    """
    width, height = parse_size(parsed.size) if parsed.size else (None, None)
    return VideoRequest(
        prompt=parsed.prompt,
        negative_prompt=parsed.negative_prompt,
        width=width,
        height=height,
        num_frames=parsed.frames,
        fps=parsed.fps,
        num_inference_steps=parsed.steps,
        guidance_scale=parsed.guidance_scale,
        flow_shift=parsed.flow_shift,
        scheduler=parsed.scheduler,
        seed=parsed.seed,
    )


def _summarise(result: VideoResult) -> None:
    """A line per stage, on stderr."""
    data = result.metadata
    steps = data["request"]["num_inference_steps"]
    for name, seconds in data["seconds"].items():
        each = f"  ({seconds / steps:.3f} s per step)" if name == "denoise" else ""
        sys.stderr.write(f"{name:<22}{seconds:>9.2f} s{each}\n")
    sys.stderr.write(
        f"{data['model']}, layout {data['layout']}, attention {data['attention']}, "
        f"VAE {data['vae']}, {data['dtype']}, {data['num_devices']} x {data['device_kind']}, "
        f"seed {data['seed']}\n"
    )
