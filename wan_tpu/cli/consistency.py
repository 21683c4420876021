"""compare layouts with one device: does splitting change the picture?

Runs one request on one device and on every layout from the same weights, and compares what the
transformer alone predicts, the latents after the whole run, and the decoded frames. Exit code 1
when a layout differs by more than rounding explains.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.cli.options import (
    add_attention_argument,
    add_model_arguments,
    add_quantize_argument,
    add_seed_argument,
    add_vae_dtype_argument,
    positive_int,
)
from wan_tpu.cli.progress import StageLines
from wan_tpu.cli.streams import write_data
from wan_tpu.errors import UnknownNameError
from wan_tpu.family import ModelKind
from wan_tpu.media import ROLES, Media
from wan_tpu.pipeline.check import check_request, compression_of
from wan_tpu.pipeline.drawn import draw_media
from wan_tpu.pipeline.names import DTYPES
from wan_tpu.pipeline.options import LoadOptions, listed
from wan_tpu.pipeline.pictures import VIDEO
from wan_tpu.pipeline.whole_file import check_file_path, write_json_atomically
from wan_tpu.request import VideoRequest, make_request
from wan_tpu.sharding.layout import (
    SEQUENCE_PARALLEL,
    WEIGHTS,
    Layout,
    factorisations,
    parse_layout,
)
from wan_tpu.text.prompt import check_prompt

if TYPE_CHECKING:
    from wan_tpu.pipeline.consistency import Comparison

PROMPT = "a red circle moving right on a black background"
ALL, TEXT = "all", "text"
HOST_DEVICES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu consistency`."""
    add_model_arguments(parser)
    parser.add_argument(
        "--devices", type=positive_int, metavar="N",
        help=f"how many to use at most (default: the accelerator's, or {HOST_DEVICES} virtual "
        "devices of the CPU)",
    )  # fmt: skip
    split = parser.add_argument_group("layouts")
    split.add_argument(
        "--layouts", default=ALL,
        help="all: every split of N devices, and of every number that divides N, over dp, sp and "
        "tp; or names joined by ',', for example dp2-sp4,tp8 or 'sp8 ring' (default: %(default)s)",
    )  # fmt: skip
    split.add_argument(
        "--sequence-parallel", choices=(*SEQUENCE_PARALLEL, ALL), default=ALL,
        help="each layout that has sp with this, or with all in turn (default: %(default)s)",
    )  # fmt: skip
    split.add_argument(
        "--weights", choices=(*WEIGHTS, ALL), default=ALL,
        help="each layout that has dp or sp with this, or both ways (default: %(default)s)",
    )  # fmt: skip
    add_attention_argument(parser, help_end="; of all, the one device too")
    parser.add_argument(
        "--dtype", default="float32", metavar="NAME",
        help=f"{listed(DTYPES)} (default: %(default)s)",
    )  # fmt: skip
    add_vae_dtype_argument(parser)
    add_quantize_argument(parser)
    video = parser.add_argument_group("the video")
    video.add_argument("--prompt", default=PROMPT, help="(default: %(default)s)")
    video.add_argument(
        "--size", metavar="WxH",
        help="pixels (default: 5x3 tokens, for most models 80x48; with 9 frames 45 tokens, which "
        "divide by nothing and so are padded on every split)",
    )  # fmt: skip
    video.add_argument(
        "--inputs", metavar="NAMES",
        help="what the video is made from besides the prompt, drawn for the purpose: "
        f"{', '.join(ROLES)}, two of them joined by ',', or {TEXT} for nothing (default: the "
        "pictures that the model can take, else nothing)",
    )  # fmt: skip
    video.add_argument(
        "--frames", type=positive_int, default=9, help="4n + 1 (default: %(default)s)"
    )
    video.add_argument(
        "--steps", type=positive_int, default=4, help="denoising steps (default: %(default)s)"
    )
    video.add_argument("--guidance-scale", type=float, help="1 or less runs without guidance")
    add_seed_argument(video)
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")


def run(parsed: argparse.Namespace) -> int:
    """Compares; exit code 1 when a layout is not consistent."""
    request = _read_request(parsed)
    options = LoadOptions(
        model=parsed.model,
        variant=parsed.variant,
        attention=parsed.attention,
        vae_dtype=parsed.vae_dtype,
        dtype=parsed.dtype,
        quantize=parsed.quantize,
    )
    output = None if parsed.json is None else check_file_path(parsed.json)
    model = options.open_model()
    request, media = _with_pictures(parsed, model, request)
    check_request(model, request, media)

    from wan_tpu import runtime

    host_devices = None if runtime.accelerator_present() else parsed.devices or HOST_DEVICES
    runtime.start(host_devices=host_devices, cache_folder=runtime.default_cache_folder())

    import jax

    layouts = read_layouts(parsed, jax.device_count())
    comparisons = _compare(model, options, layouts, request, media)
    consistent = all(comparison.consistent for comparison in comparisons)
    if output is not None:
        report = {
            "model": parsed.model,
            "dtype": parsed.dtype,
            "quantize": parsed.quantize,
            "inputs": list(request.media),
            "consistent": consistent,
            "layouts": [comparison.to_json() for comparison in comparisons],
        }
        write_json_atomically(output, report)
    write_data(_verdict(comparisons))
    return 0 if consistent else 1


def _compare(
    model: ModelDescription,
    options: LoadOptions,
    layouts: list[Layout],
    request: VideoRequest,
    media: Media,
) -> "list[Comparison]":
    """Runs them, and prints a line for each as it is done."""
    from wan_tpu.pipeline.consistency import compare_layouts

    write_data(_HEADER)
    comparisons = []
    progress = _Progress(len(layouts))
    found = compare_layouts(model, options, layouts, request, media=media, on_start=progress.show)
    for comparison in found:
        comparisons.append(comparison)
        write_data(_row(comparison))
    return comparisons


def read_layouts(parsed: argparse.Namespace, num_here: int) -> list[Layout]:
    """The layouts that the options name, each once; a choice in a layout's text stays.

    Raises:
        LayoutError: a text is not a layout, or one needs more devices than there are.
    """
    most = min(parsed.devices or num_here, num_here)
    if parsed.layouts == ALL:
        counts = [n for n in range(2, most + 1) if most % n == 0]
        texts = [str(layout) for count in counts for layout in factorisations(count)]
    else:
        texts = [text.strip() for text in parsed.layouts.split(",")]
    modes = SEQUENCE_PARALLEL if parsed.sequence_parallel == ALL else (parsed.sequence_parallel,)
    kinds = WEIGHTS if parsed.weights == ALL else (parsed.weights,)
    found = [
        parse_layout(text, sequence_parallel=mode, weights=kind)
        for text in texts
        for mode in modes
        for kind in kinds
    ]
    for layout in found:
        if layout.num_devices > most:
            layout.require_devices(most)
    return list(dict.fromkeys(found))


def _read_request(parsed: argparse.Namespace) -> VideoRequest:
    check_prompt(parsed.prompt)
    return make_request(
        parsed.prompt,
        size=parsed.size,
        frames=parsed.frames,
        steps=parsed.steps,
        guidance_scale=parsed.guidance_scale,
        seed=parsed.seed,
    )


def _with_pictures(
    parsed: argparse.Namespace, model: ModelDescription, request: VideoRequest
) -> tuple[VideoRequest, Media]:
    """The request in a size of the model, with drawn pictures, and those."""
    if request.width is None:
        compression = compression_of(model)
        request = dataclasses.replace(
            request, width=5 * compression.width_multiple, height=3 * compression.height_multiple
        )
    roles = read_inputs(parsed.inputs, model.kind)
    request = request.resolved(model.defaults)
    assert request.fps is not None
    digests, media = draw_media(roles, request.geometry(compression_of(model)), request.fps)
    return dataclasses.replace(request, **digests), media


def read_inputs(text: str | None, kind: ModelKind) -> frozenset[str]:
    """The roles that `--inputs` names; without it those that most of the model runs for.

    Raises:
        UnknownNameError: there is no such role.
    """
    if text is None:
        pictures = [roles for roles in kind.inputs if roles and VIDEO not in roles]
        return pictures[0] if pictures else kind.inputs[0]
    roles = frozenset() if text == TEXT else frozenset(text.split(","))
    for role in roles - set(ROLES):
        raise UnknownNameError("input", role, (TEXT, *ROLES))
    return roles


class _Progress:
    """Says on stderr what is being done, with the seconds since the start."""

    def __init__(self, num_layouts: int) -> None:
        self._lines = StageLines()
        self._num_layouts = num_layouts
        self._done = 0

    def show(self, layout: Layout) -> None:
        """The one device first, then layout after layout."""
        what = f"{self._done} of {self._num_layouts}: {layout}"
        if self._done == 0:
            what = "one device, to compare with"
        self._done += 1
        self._lines.say(what)


_HEADER = (
    f"{'':<42}{'transformer alone':^27}{'latents after the run':^27}{'frames':>10}\n"
    f"{'layout':<31}{'attention':<11}"
    + f"{'max abs':>9}{'rel':>9}{'cosine':>9}" * 2
    + f"{'PSNR dB':>10}\n"
)


def _row(comparison: "Comparison") -> str:
    """A line of the table."""
    differences = "".join(
        f"{d.max_absolute:>9.1e}{d.max_relative:>9.1e}{d.cosine:>9.6f}"
        for d in (comparison.velocity, comparison.latents)
    )
    mark = "" if comparison.consistent else "  <- not consistent"
    return (
        f"{comparison.layout!s:<31}{comparison.attention:<11}{differences}"
        f"{comparison.psnr:>10.1f}{mark}\n"
    )


def _verdict(comparisons: "Sequence[Comparison]") -> str:
    """The last line."""
    wrong = [c for c in comparisons if not c.consistent]
    if not wrong:
        give = "layout gives" if len(comparisons) == 1 else "layouts give"
        return f"consistent: {len(comparisons)} {give} the one device's video\n"
    amounts = (
        f"{c.layout} by {c.velocity.max_relative:.1e} of the transformer's output, "
        f"frames {c.psnr:.1f} dB"
        for c in wrong
    )
    return f"not consistent, {len(wrong)} of {len(comparisons)}: {'; '.join(amounts)}\n"
