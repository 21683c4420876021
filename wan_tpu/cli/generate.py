"""make a video from a prompt"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from wan_tpu.cli.options import (
    add_layout_arguments,
    add_seed_argument,
    positive_int,
    read_layout,
    read_seed,
)
from wan_tpu.cli.streams import write_data
from wan_tpu.errors import OutputError, UnknownNameError
from wan_tpu.geometry import parse_size
from wan_tpu.multihost.follower import Follower
from wan_tpu.multihost.group import Joined, ProcessGroup, find_group
from wan_tpu.multihost.identity import Identity, make_identity
from wan_tpu.multihost.join import join
from wan_tpu.multihost.leader import Leader
from wan_tpu.multihost.lockstep import EXIT_LOST, Alone, Lockstep, run_in_step
from wan_tpu.multihost.options import add_group_arguments
from wan_tpu.pipeline.progress import Progress
from wan_tpu.pipeline.side_file import (
    check_side_file,
    free_name,
    side_file_of,
    write_side_file,
)
from wan_tpu.pipeline.video_file import VideoWriter, check_output_path
from wan_tpu.request import SCHEDULERS, VideoRequest, VideoResult
from wan_tpu.text.prompt import check_prompt

logger = logging.getLogger(__name__)

DEFAULT_OUTPUT = "video.mp4"
EXIT_INTERRUPTED = 130
SHARED_ARGUMENTS = (
    "model", "layout", "sequence_parallel", "weights", "attention", "vae", "dtype", "host_devices",
)  # fmt: skip
"""What has to be the same in all processes, besides the request."""

GRACE_SECONDS = 3.0
"""How long Ctrl-C waits for the running step; a compiling program cannot be asked to stop."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu generate`."""
    parser.add_argument("prompt", help="what the video shows")
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help=".mp4, or .npy: raw frames [frames, height, width, 3]; replaced where it is there "
        f"(default: {DEFAULT_OUTPUT}, or the first of video-2.mp4, video-3.mp4, ... that is free)",
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
    video.add_argument("--scheduler", choices=SCHEDULERS, help="default: the model's")
    video.add_argument("--negative-prompt", help="what the video shall not show")
    add_seed_argument(video)
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
    add_group_arguments(
        parser.add_argument_group("several hosts (the same command on each; process 0 writes)")
    )


def run(parsed: argparse.Namespace) -> int:
    """Makes the video; what is wrong with the request is said before anything starts."""
    request = _read_request(parsed)
    layout = read_layout(parsed)
    group = find_group(
        parsed.coordinator, parsed.processes, parsed.process_id, parsed.group_secret_file
    )
    output = _check_output(parsed.output) if group.leads else None
    if group.num_processes > 1:
        _keep_stdout_for_data()

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
    generation = _Generation(group, output)

    def load() -> tuple[Any, VideoRequest]:
        from wan_tpu.checkpoints.models import open_model
        from wan_tpu.pipeline.check import check_request
        from wan_tpu.pipeline.text_to_video import TextToVideo

        @functools.cache  # both may ask the hub
        def check() -> tuple[pathlib.Path, VideoRequest]:
            description = open_model(parsed.model)
            assert description.folder is not None
            return description.folder, check_request(description, request)[0]

        def identify() -> Identity:
            folder, complete = check()
            shared = {name: getattr(parsed, name) for name in SHARED_ARGUMENTS}
            return make_identity(
                model_folder=folder,
                # A seed that is drawn is process 0's, and no two draw the same.
                settings=shared | dataclasses.asdict(complete) | {"seed": parsed.seed},
                packages=("wan_tpu",),
            )

        joined = generation.join(identify)
        _, complete = check()
        runtime.start(
            host_devices=parsed.host_devices,
            cache_folder=None if parsed.no_cache else runtime.default_cache_folder(),
            joined=joined,
        )
        pipeline = TextToVideo.from_pretrained(
            parsed.model, layout=layout, dtype=dtype, attention=parsed.attention, vae=parsed.vae
        )
        return pipeline, complete

    generation.run(load)
    if output is not None:
        _tell(output)
    return 0


def _check_output(given: str | None) -> pathlib.Path:
    """Where the video goes; it and the file beside it can be written.

    Raises:
        InputError: a suffix that is not written.
        OutputError: something is in the way.
    """
    output = pathlib.Path(DEFAULT_OUTPUT if given is None else given)
    if given is None and (os.path.lexists(output) or os.path.lexists(side_file_of(output))):
        output = free_name(output)
    output = check_output_path(output)
    check_side_file(output)
    return output


def _tell(output: pathlib.Path) -> None:
    """The name as bytes: a shell gives back what it was given. The video is there in any case."""
    try:
        write_data(os.fsencode(output) + b"\n")
    except (OutputError, BrokenPipeError) as error:
        sys.stderr.write(f"wan-tpu: {output} is complete; {error}\n")


class _Generation:
    """One generation on a thread of its own, so that Ctrl-C is heard while a program compiles.

    Of several processes each has one; process 0 alone shows progress and writes the video.
    """

    def __init__(self, group: ProcessGroup, output: pathlib.Path | None):
        self._group = group
        self._output = output
        self._process: Lockstep = Alone()
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._writer: VideoWriter | None = None
        self._error: BaseException | None = None
        self._is_leaving = False

    def join(self, identify: Callable[[], Identity]) -> Joined | None:
        """Finds the other processes; see `wan_tpu.multihost.join`."""

        def know(process: Lockstep) -> None:
            self._process = process

        _, joined = join(
            self._group,
            identify,
            on_lost=lambda message: self._end(EXIT_LOST, message),
            on_stop=self._stop,
            on_process=know,
            on_waiting=_say,
        )
        return joined

    def run(self, load: Callable[[], tuple[Any, VideoRequest]]) -> None:
        """Waits for the end; raises what the generation raised, leaves on Ctrl-C.

        SIGTERM and SIGHUP, which a terminal sends when it closes, end it likewise: no half file.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or in the background
                signal.signal(number, self._interrupt)
        thread = threading.Thread(target=self._work, args=(load,), name="generate", daemon=True)
        thread.start()
        try:
            # An event, not join: a join that Ctrl-C interrupts can take a live thread for ended.
            while not self._ended.wait(timeout=0.2):
                pass
        except KeyboardInterrupt:
            self._cancelled.set()
            if self._group.leads:
                self._ended.wait(timeout=GRACE_SECONDS)
            self._process.give_up("it was interrupted")
            self._end(EXIT_INTERRUPTED, "interrupted")
        if self._error is not None:
            raise self._error

    def _interrupt(self, number: int, frame: object) -> None:
        """A signal to leave; a second one does not wait for what the first one waits for."""
        if self._is_leaving:
            self._end(EXIT_INTERRUPTED, "interrupted")
        self._is_leaving = True
        raise KeyboardInterrupt

    def _end(self, status: int, message: str) -> NoReturn:
        """Ends at once and leaves no half file, also in the middle of a very long step.

        Not an orderly end of the interpreter: XLA's threads, stopped in the middle of their work,
        abort the process with a message about exceptions that were not rethrown.
        """
        if self._writer is not None and not self._ended.is_set():
            with contextlib.suppress(OSError):  # a disk that has become read-only keeps it
                self._writer.abort()
        below_the_bar = "\n" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{below_the_bar}wan-tpu: {message}\n")
        sys.stderr.flush()
        os._exit(status)

    def _stop(self) -> None:
        """Process 0 has stopped all: once they have left the job, or because it must end."""
        if isinstance(self._process, Follower) and self._process.is_in_job:
            self._end(EXIT_LOST, "process 0 ended in the middle of the job")

    def _work(self, load: Callable[[], tuple[Any, VideoRequest]]) -> None:
        try:
            self._generate(load)
        except BaseException as error:  # noqa: BLE001 - carried to the main thread, raised there
            self._process.give_up(f"{type(error).__name__}: {error}")
            self._error = error
        finally:
            self._ended.set()

    def _generate(self, load: Callable[[], tuple[Any, VideoRequest]]) -> None:
        from wan_tpu.cli.progress import ProgressBars

        with ProgressBars(shown=self._group.leads) as bars:
            with bars.stage("load"):
                pipeline, request = load()
                self._process.loaded()

            def show(progress: Progress) -> None:
                self._process.note(progress.stage, is_over=progress.done >= progress.total)
                bars.show(progress)

            def make(task: dict[str, Any], should_stop: Callable[[], bool]) -> VideoResult:
                return pipeline(
                    VideoRequest(**task),
                    on_progress=show,
                    should_cancel=should_stop,
                    on_frames=on_frames,
                )

            task = dataclasses.asdict(request) if self._group.leads else None
            try:
                with self._open_output(request) as on_frames:
                    result = run_in_step(self._process, task, make, asked=self._cancelled.is_set)
            finally:
                self._process.close()
        if self._output is not None:
            metadata = result.metadata
            if isinstance(self._process, Leader):
                metadata = {**metadata, "lockstep": self._process.account()}
            write_side_file(self._output, metadata)
            _summarise(metadata)

    @contextlib.contextmanager
    def _open_output(self, request: VideoRequest) -> Iterator[Callable[[np.ndarray], None] | None]:
        """What takes the frames; None in a process that writes nothing."""
        if self._output is None:
            yield None
            return
        assert request.fps is not None
        assert request.width is not None
        assert request.height is not None
        with VideoWriter(
            self._output, fps=request.fps, width=request.width, height=request.height
        ) as self._writer:
            yield self._writer.write


def _say(words: str) -> None:
    """A line on stderr that leaves progress bars whole."""
    from tqdm import tqdm

    tqdm.write(f"wan-tpu: {words}", file=sys.stderr)


def _keep_stdout_for_data() -> None:
    """Drops what C++ prints there: Gloo tells, program by program, whom it has connected."""
    sys.stdout = os.fdopen(os.dup(1), "w", errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _read_request(parsed: argparse.Namespace) -> VideoRequest:
    """The request of the command line.

    Raises:
        InputError: a value is out of range.
    """
    width, height = parse_size(parsed.size) if parsed.size is not None else (None, None)
    check_prompt(parsed.prompt)
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
        seed=read_seed(parsed),
    )


def _summarise(data: Mapping[str, Any]) -> None:
    """A line per stage, on stderr."""
    steps = data["request"]["num_inference_steps"]
    for name, seconds in data["seconds"].items():
        each = f"  ({seconds / steps:.3f} s per step)" if name == "denoise" else ""
        sys.stderr.write(f"{name:<22}{seconds:>9.2f} s{each}\n")
    sys.stderr.write(
        f"{data['model']}, layout {data['layout']}, attention {data['attention']}, "
        f"VAE {data['vae']}, {data['dtype']}, {data['num_devices']} x {data['device_kind']}, "
        f"seed {data['seed']}\n"
    )
