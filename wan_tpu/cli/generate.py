"""make a video from a prompt

Read, check, load, make, write: `run` reads, and `_generate` does the rest in every process of the
slice, in lock-step, on a thread of its own.
"""

import argparse
import dataclasses
import functools
import importlib
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.cli.in_step import in_step, make_once
from wan_tpu.cli.interruptible import Interruptible
from wan_tpu.cli.media_files import add_media_arguments, read_media_files
from wan_tpu.cli.options import (
    add_embedding_argument,
    add_few_steps_arguments,
    add_lora_argument,
    add_machine_arguments,
    add_model_arguments,
    add_seed_argument,
    add_step_cache_argument,
    positive_int,
    read_few_steps,
    read_load_options,
    read_step_cache,
)
from wan_tpu.cli.output import DEFAULT_OUTPUT, check_output, open_video, print_path, write_metadata
from wan_tpu.cli.progress import ProgressBars
from wan_tpu.cli.recording import add_profile_argument, make_profile, recording
from wan_tpu.cli.streams import keep_stdout_for_data
from wan_tpu.errors import InputError
from wan_tpu.media import Media
from wan_tpu.multihost.group import Joined, ProcessGroup, find_group
from wan_tpu.multihost.identity import Identity, make_identity
from wan_tpu.multihost.join import agree
from wan_tpu.multihost.leader import Leader
from wan_tpu.multihost.lockstep import Lockstep
from wan_tpu.multihost.options import add_group_arguments
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.fast import embedded_adapters, find_preset
from wan_tpu.pipeline.options import LoadOptions
from wan_tpu.pipeline.progress import Progress
from wan_tpu.request import ALL_SCHEDULERS, VideoRequest, VideoResult, make_request
from wan_tpu.text.embedding_file import SUFFIX, Embedding
from wan_tpu.text.new_words import NewWords
from wan_tpu.text.prompt import check_prompt, clean_prompt

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from wan_tpu.adapters.chosen import ChosenAdapter
    from wan_tpu.pipeline.profiling import Profile
    from wan_tpu.pipeline.video_pipeline import VideoPipeline

MADE_FROM = "what the video is made from besides the prompt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu generate`."""
    parser.add_argument("prompt", help="what the video shows")
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help=".mp4, or .npy: raw frames [frames, height, width, 3]; with --frames 1 also "
        ".png, .jpg or .webp; replaced where it is there "
        f"(default: {DEFAULT_OUTPUT}, or the first of video-2.mp4, video-3.mp4, ... that is free)",
    )  # fmt: skip
    add_model_arguments(parser)
    add_embedding_argument(parser)
    add_lora_argument(parser)
    video = add_video_arguments(parser)
    add_few_steps_arguments(video)
    add_step_cache_argument(video)
    add_media_arguments(parser.add_argument_group(MADE_FROM))
    _add_where_arguments(parser)


def add_video_arguments(parser: argparse.ArgumentParser) -> Any:
    """What a request holds besides its prompt and files, of `wan-tpu remote generate`, too.

    Returns:
        the group that it is in.
    """
    video = parser.add_argument_group("the video (defaults are the model's)")
    video.add_argument("--size", metavar="WxH", help="pixels, for example 1280x720")
    video.add_argument("--frames", type=positive_int, help="4n + 1, for example 81")
    video.add_argument("--fps", type=positive_int, help="frames per second of the file")
    video.add_argument("--steps", type=positive_int, help="denoising steps")
    video.add_argument("--guidance-scale", type=float, help="1 or less turns guidance off")
    video.add_argument(
        "--guidance-scale-2", type=float,
        help="of the second transformer, for low noise, in models that have two",
    )  # fmt: skip
    video.add_argument("--flow-shift", type=float, help="shift of the schedule to high noise")
    video.add_argument("--scheduler", choices=ALL_SCHEDULERS, help="default: the model's")
    video.add_argument("--negative-prompt", help="what the video shall not show")
    add_seed_argument(video)
    return video


def read_request(parsed: argparse.Namespace, **more: Any) -> VideoRequest:
    """What the options of `add_video_arguments` say, and the prompt and strength.

    Args:
        parsed: the command line.
        **more: further fields, as `wan_tpu.request.make_request` takes them.

    Raises:
        InputError: a value outside its range.
    """
    return make_request(
        parsed.prompt,
        size=parsed.size,
        frames=parsed.frames,
        fps=parsed.fps,
        steps=parsed.steps,
        guidance_scale=parsed.guidance_scale,
        guidance_scale_2=parsed.guidance_scale_2,
        flow_shift=parsed.flow_shift,
        negative_prompt=parsed.negative_prompt,
        scheduler=parsed.scheduler,
        seed=parsed.seed,
        strength=parsed.strength,
        **more,
    )


def _add_where_arguments(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("the machine")
    add_machine_arguments(machine)
    machine.add_argument(
        "--no-cache", action="store_true", help="keep no compiled programs between runs"
    )
    add_profile_argument(machine)
    add_group_arguments(
        parser.add_argument_group("several hosts (the same command on each; process 0 writes)")
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the command line says, checked as far as it can be without the model.

    Attributes:
        request: the video; what was left out is open.
        media: the pictures and clips that it names.
        seed: as it was said: a seed that is drawn is process 0's, and no two processes draw the
            same.
        options: what the model is loaded with.
        output: the video's file; None in a process that writes nothing.
        group: the processes that make it together.
        keeps_programs: whether compiled programs are kept for the next run.
        profile: what records some steps; None where none was asked for.
    """

    request: VideoRequest
    media: Media
    seed: int
    options: LoadOptions
    output: pathlib.Path | None
    group: ProcessGroup
    keeps_programs: bool
    profile: "Profile | None"


def run(parsed: argparse.Namespace) -> int:
    """Makes the video; what is wrong with the request is said before anything starts."""
    order = _read(parsed)
    if order.group.num_processes > 1:
        keep_stdout_for_data()
    running = Interruptible()
    running.run(lambda: _generate(order, running))
    if order.output is not None:
        print_path(order.output)
    return 0


def _read(parsed: argparse.Namespace) -> Order:
    """The command line.

    Raises:
        InputError: a value is out of range, or a name does not exist.
        OutputError: something is in the way of the output, or of the profile.
    """
    check_prompt(parsed.prompt)
    files = read_media_files(parsed)
    few_steps, (cache, _) = read_few_steps(parsed), read_step_cache(parsed)
    request = read_request(parsed, **few_steps, step_cache=cache, **files.digests)
    options = read_load_options(parsed)
    group = find_group(
        parsed.coordinator, parsed.processes, parsed.process_id, parsed.group_secret_file
    )
    return Order(
        request=request,
        media=files.media,
        seed=parsed.seed,
        options=options,
        output=check_output(parsed.output, parsed.frames) if group.leads else None,
        group=group,
        keeps_programs=not parsed.no_cache,
        profile=make_profile(parsed, group),
    )


def _generate(order: Order, running: Interruptible) -> None:
    """Check, load, make, write; with the other processes of the slice in step around it."""
    with ProgressBars(shown=order.group.leads) as bars, in_step(order.group, running) as process:
        with bars.stage("load"):
            model, adapters, request = _check(order)
            identify = functools.partial(_identify, order, model, adapters, request)
            joined = agree(process, order.group, identify)
            pipeline = _load(order, model, adapters, request, joined)
            process.loaded()
        with (
            open_video(order.output, request, running) as on_frames,
            recording(order.profile, bars.show) as on_progress,
        ):
            result = _make(
                pipeline, request, order.media, process,
                on_progress=on_progress, on_frames=on_frames, asked=running.is_asked,
            )  # fmt: skip
    if order.output is not None:
        write_metadata(order.output, result.metadata)


def _check(order: Order) -> "tuple[ModelDescription, tuple[ChosenAdapter, ...], VideoRequest]":
    """The model and adapters, whose files are here, and the complete request, which it can make.

    What is wrong with the request, its pictures or an adapter's file is said before gigabytes are
    downloaded.
    """
    described = order.options.describe_model()
    request, _ = check_request(described, order.request, order.media)
    _check_words(order.options.open_embeddings(described), request)
    preset = find_preset(described, request.fast)
    options = order.options.with_adapters(embedded_adapters(preset))
    if preset is not None and not options.adapters:  # who names some, names all
        options = options.with_adapters(preset.hub_adapters(described.kind))
    if preset is not None and not options.adapters:
        preset.check_adapters((), described.kind, described.name)
    if preset is None and described.distilled is not None:
        label = described.distilled.label
        logger.warning("%s is distilled (%s); --fast runs it so", described.name, label)
    adapters = options.open_adapters()
    model = order.options.open_model()
    check_request(model, request)
    return model, adapters, request


def _check_words(embeddings: Sequence[Embedding], request: VideoRequest) -> None:
    """Refuses a file of a word that neither prompt holds: it would change nothing.

    Raises:
        InputError: says which word.
    """
    used = NewWords(embeddings).used(map(clean_prompt, request.prompts))
    for number, embedding in enumerate(embeddings):
        if number not in used:
            raise InputError(
                f"the prompt does not hold the word {embedding.word!r} of {embedding.name}"
                f"{SUFFIX}; write it where it belongs, or leave the file out"
            )


def _identify(
    order: Order,
    model: ModelDescription,
    adapters: "tuple[ChosenAdapter, ...]",
    request: VideoRequest,
) -> Identity:
    """What has to be the same in all processes; of adapters what they hold and not where."""
    importlib.import_module("wan_tpu.runtime")  # JAX changes variables that are compared
    return make_identity(
        model_paths=model.paths,
        settings=order.options.identity()
        | dataclasses.asdict(request)
        | {"seed": order.seed, "adapters": [adapter.to_json() for adapter in adapters]},
        packages=("wan_tpu",),
    )


def _load(
    order: Order,
    model: ModelDescription,
    adapters: "tuple[ChosenAdapter, ...]",
    request: VideoRequest,
    joined: Joined | None,
) -> "VideoPipeline":
    """The pipeline, with what the request runs."""
    from wan_tpu import runtime

    runtime.start(
        host_devices=order.options.host_devices,
        cache_folder=runtime.default_cache_folder() if order.keeps_programs else None,
        joined=joined,
    )
    return order.options.load(model, adapters=adapters, compile_for=request)


def _make(
    pipeline: "VideoPipeline",
    request: VideoRequest,
    media: Media,
    process: Lockstep,
    *,
    on_progress: Callable[[Progress], None],
    on_frames: Callable[[np.ndarray], None] | None,
    asked: Callable[[], bool],
) -> VideoResult:
    """The video; all processes make process 0's request, of its pictures."""

    def report(progress: Progress) -> None:
        process.note(progress.stage, is_over=progress.done >= progress.total)
        on_progress(progress)

    def make(task: dict[str, Any], should_cancel: Callable[[], bool]) -> VideoResult:
        return pipeline(
            VideoRequest(**task),
            media=process.receive_media(),
            on_progress=report,
            should_cancel=should_cancel,
            on_frames=on_frames,
            keep_frames=False,
        )

    task = dataclasses.asdict(request)
    result = make_once(process, task, make, media=media, asked=asked)
    if isinstance(process, Leader):
        metadata = {**result.metadata, "lockstep": process.account()}
        return dataclasses.replace(result, metadata=metadata)
    return result
