"""measure how a model's denoising steps change, for its step cache

Makes one video of every step and writes MagCache's ratios of it, for `--step-cache
magcache:0.12@FILE`. They are of the model with its adapters, its noise levels and its sampler.
"""

import argparse
import datetime
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wan_tpu import __version__
from wan_tpu.cli.generate import MADE_FROM, add_video_arguments, read_request
from wan_tpu.cli.interruptible import Interruptible
from wan_tpu.cli.media_files import add_media_arguments, read_media_files
from wan_tpu.cli.options import (
    add_embedding_argument,
    add_lora_argument,
    add_machine_arguments,
    read_load_options,
)
from wan_tpu.cli.output import print_path
from wan_tpu.cli.progress import ProgressBars
from wan_tpu.errors import InputError
from wan_tpu.media import Media
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.options import LoadOptions
from wan_tpu.pipeline.step_cache import sizes_of
from wan_tpu.pipeline.whole_file import check_file_path, write_json_atomically
from wan_tpu.request import VideoRequest
from wan_tpu.step_cache import Curve
from wan_tpu.text.prompt import check_prompt

if TYPE_CHECKING:
    from wan_tpu.checkpoints.models import ModelDescription

PROMPT = "A cat walks through tall grass in the evening sun, and the camera follows it."
DEFAULTS = {"threshold": 0.12, "most_in_a_row": 2, "retention": 0.2}
"""What `--step-cache` takes of a new curve where it says nothing: MagCache's for Wan 2.1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu calibrate`."""
    parser.add_argument("model", help="as --model of generate: wan-tiny, a folder, a hub id")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True,
        help="the ratios, JSON; replaced where it is there",
    )  # fmt: skip
    parser.add_argument("--variant", metavar="NAME", help="of the weights' files, for example fp16")
    parser.add_argument("--prompt", default=PROMPT, help="(default: %(default)s)")
    add_embedding_argument(parser)
    add_lora_argument(parser)
    add_video_arguments(parser)
    add_media_arguments(parser.add_argument_group(MADE_FROM))
    add_machine_arguments(parser.add_argument_group("the machine"))


def run(parsed: argparse.Namespace) -> int:
    """Writes the ratios, all of them or no file."""
    check_prompt(parsed.prompt)
    files = read_media_files(parsed)
    request = read_request(parsed, **files.digests)
    if request.video is not None:
        raise InputError("calibrate measures all steps, and of a clip only the last ones run")
    options = read_load_options(parsed)
    output = check_file_path(parsed.output)
    running = Interruptible()
    running.run(lambda: _calibrate(options, request, files.media, output, running))
    print_path(output)
    return 0


def _calibrate(
    options: LoadOptions,
    request: VideoRequest,
    media: Media,
    output: pathlib.Path,
    running: Interruptible,
) -> None:
    """Check, load, measure, write."""
    with ProgressBars() as bars:
        with bars.stage("load"):
            request, _ = check_request(options.describe_model(), request, media)
            adapters = options.open_adapters()
            model = options.open_model()

            from wan_tpu import runtime

            runtime.start(
                host_devices=options.host_devices, cache_folder=runtime.default_cache_folder()
            )
            pipeline = options.load(model, adapters=adapters, compile_for=None)
        ratios = pipeline.step_ratios(
            request, media=media, on_progress=bars.show, should_cancel=running.is_asked
        )
    curve = make_curve(
        model,
        request,
        ratios,
        adapters=[f"{each.file.path.name}:{each.choice.strength:g}" for each in adapters],
    )
    write_json_atomically(output, curve.to_json())


def make_curve(
    model: "ModelDescription",
    request: VideoRequest,
    ratios: Any,
    *,
    adapters: Sequence[str] = (),
) -> Curve:
    """What a file says of a run.

    Args:
        model: that made it.
        request: complete.
        ratios: `[steps, 2]`, of `VideoPipeline.step_ratios`.
        adapters: names of what was added to the model.
    """
    assert request.flow_shift is not None
    assert request.scheduler is not None
    conditional, unconditional = (
        (1.0, *(round(float(ratio), 5) for ratio in column[1:])) for column in ratios.T
    )
    added = f" with {', '.join(adapters)}" if adapters else ""
    size = f"{request.width}x{request.height}, {request.num_frames} frames"
    today = datetime.datetime.now(datetime.UTC).date()
    return Curve(
        name=f"{model.name}{added}",
        flow_shift=request.flow_shift,
        scheduler=request.scheduler,
        conditional=conditional,
        unconditional=unconditional,
        source=f"wan-tpu {__version__} calibrate, {today}, {size}, {request.prompt!r}",
        transformer=sizes_of(model),
        **DEFAULTS,
    )
