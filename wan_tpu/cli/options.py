"""Options that several commands share, and how their values are read."""

import argparse
import pathlib
from typing import Any

from wan_tpu.adapters.choice import AdapterChoice
from wan_tpu.attention.choice import FORM
from wan_tpu.attention.names import IMPLEMENTATIONS
from wan_tpu.checkpoints.models import WAN_TINY
from wan_tpu.errors import InputError
from wan_tpu.pipeline.names import DTYPES, QUANTIZE, VAES
from wan_tpu.pipeline.options import LoadOptions, listed
from wan_tpu.sharding.layout import SEQUENCE_PARALLEL, WEIGHTS, Layout
from wan_tpu.step_cache import split_file


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def add_seed_argument(parser: Any) -> None:
    """`--seed`; `wan_tpu.request.make_request` draws one where it is -1."""
    parser.add_argument(
        "--seed", type=int, default=0,
        help="of the noise; -1 draws one, which the summary tells (default: %(default)s)",
    )  # fmt: skip


def add_model_arguments(parser: Any) -> None:
    """`--model`, `--variant`."""
    parser.add_argument(
        "--model", default=WAN_TINY,
        help="wan-tiny (embedded), a folder, a hub id, or one file of a known model's transformer "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--variant", metavar="NAME",
        help="of the weights' files, as diffusers names them: fp16 takes model.fp16.safetensors",
    )  # fmt: skip


def add_embedding_argument(parser: Any) -> None:
    """`--embedding`, any number of times."""
    parser.add_argument(
        "--embedding", action="append", default=[], metavar="FILE[:WORD]",
        help="vectors for a word of the prompt (textual inversion), a .safetensors file; the word "
        "is the file's own, else its name; may be given again",
    )  # fmt: skip


def add_lora_argument(parser: Any) -> None:
    """`--lora`, repeatable."""
    parser.add_argument(
        "--lora", action="append", default=[], metavar="FILE[:STRENGTH][@high|@low]",
        help="an adapter of the transformer: a file of any tool, a folder or a hub id; how much of "
        "it (default: 1); of two experts the one it is for; may be repeated",
    )  # fmt: skip


def add_few_steps_arguments(parser: Any) -> None:
    """`--sigmas`, `--fast`, `--fast-preset`."""
    parser.add_argument(
        "--sigmas", metavar="S,S,...",
        help="noise level of each step, falling from at most 1; instead of steps and flow shift, "
        "for example 1,0.9375,0.8333,0.625",
    )  # fmt: skip
    parser.add_argument(
        "--fast", action="store_true",
        help="the few steps that the model or its adapters were distilled to, without guidance",
    )  # fmt: skip
    parser.add_argument(
        "--fast-preset", metavar="NAME",
        help="the same by name; `wan-tpu inspect MODEL` lists a model's",
    )  # fmt: skip


def add_step_cache_argument(parser: Any) -> None:
    """`--step-cache`."""
    parser.add_argument(
        "--step-cache", metavar="CACHE",
        help="leave out steps that change little: magcache[:THRESHOLD[:MOST_IN_A_ROW[:RETENTION]]]"
        "[@FILE of `wan-tpu calibrate`], for example magcache:0.12, or easycache[:THRESHOLD]; "
        "default: every step is computed",
    )  # fmt: skip


def read_step_cache(parsed: argparse.Namespace) -> tuple[str | None, pathlib.Path | None]:
    """What it says, for a request; and the file of ratios, for `LoadOptions`.

    Raises:
        InputError: a file is named that the cache does not take.
    """
    text = getattr(parsed, "step_cache", None)
    return (None, None) if text is None else split_file(text)


def read_few_steps(parsed: argparse.Namespace) -> dict[str, Any]:
    """What they say, for `wan_tpu.request.make_request`."""
    return {"sigmas": parsed.sigmas, "fast": parsed.fast_preset or parsed.fast or None}


def add_attention_argument(parser: Any, *, help_end: str = "") -> None:
    """`--attention`, with every name that it takes."""
    parser.add_argument(
        "--attention", default="auto", metavar="NAME",
        help=f"{listed(IMPLEMENTATIONS)}{help_end} (default: %(default)s); {FORM}, scores of 8 "
        "bits, leaves so many steps (default: 1) and layers (0) exact at each end, 2+1 where the "
        "ends differ",
    )  # fmt: skip


def add_vae_dtype_argument(parser: Any) -> None:
    """`--vae-dtype`."""
    parser.add_argument(
        "--vae-dtype", metavar="NAME",
        help=f"of the VAE, {listed(DTYPES)} (default: as --dtype)",
    )  # fmt: skip


def add_quantize_argument(parser: Any) -> None:
    """`--quantize`."""
    parser.add_argument(
        "--quantize", metavar="NAME",
        help=f"weights and products of the transformer's blocks in {' or '.join(QUANTIZE)}: half "
        "the memory, faster linears (default: as --dtype)",
    )  # fmt: skip


def add_layout_arguments(parser: Any) -> None:
    """`--layout`, `--sequence-parallel`, `--weights`."""
    parser.add_argument(
        "--layout",
        metavar="LAYOUT",
        help="split over devices: dpN (batch), spN (tokens), tpN (heads) joined by '-', "
        "for example dp2-sp4, or single; default: chosen for the devices",
    )
    parser.add_argument(
        "--sequence-parallel",
        choices=SEQUENCE_PARALLEL,
        help="how attention sees the tokens of other devices (default: ulysses, or what the "
        "layout that is chosen needs)",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        help="keep each weight over all devices, or a copy on each dp and sp index "
        "(default: sharded, or what the layout that is chosen needs)",
    )


def add_machine_arguments(parser: Any) -> None:
    """What a model is loaded with, besides `add_model_arguments`."""
    add_layout_arguments(parser)
    add_attention_argument(parser)
    parser.add_argument(
        "--vae", default="flax", metavar="NAME", help=f"{listed(VAES)} (default: %(default)s)"
    )
    add_vae_dtype_argument(parser)
    add_quantize_argument(parser)
    add_dtype_and_devices_arguments(parser)


def add_dtype_and_devices_arguments(parser: Any) -> None:
    """`--dtype`, `--host-devices`."""
    parser.add_argument(
        "--dtype", metavar="NAME",
        help=f"{listed(DTYPES)} (default: bfloat16, on a CPU float32)",
    )  # fmt: skip
    parser.add_argument(
        "--host-devices", type=positive_int, metavar="N",
        help="N virtual CPU devices, no accelerator",
    )  # fmt: skip


def read_load_options(parsed: argparse.Namespace) -> LoadOptions:
    """What `add_model_arguments` and `add_machine_arguments` say.

    Raises:
        InputError: the layout is none, or a name does not exist.
    """
    return LoadOptions.from_text(
        model=parsed.model,
        variant=parsed.variant,
        layout=parsed.layout,
        sequence_parallel=parsed.sequence_parallel,
        weights=parsed.weights,
        attention=parsed.attention,
        vae=parsed.vae,
        vae_dtype=parsed.vae_dtype,
        dtype=parsed.dtype,
        quantize=parsed.quantize,
        host_devices=parsed.host_devices,
        embeddings=tuple(parsed.embedding),
        adapters=tuple(AdapterChoice.parse(text) for text in getattr(parsed, "lora", ())),
        ratios=read_step_cache(parsed)[1],
    )


def read_layout(parsed: argparse.Namespace) -> Layout | None:
    """The layout that the options name, where none is chosen; None without one.

    Raises:
        InputError: the text is not a layout, or the other two options have none to belong to.
    """
    options = LoadOptions.from_text(
        layout=parsed.layout, sequence_parallel=parsed.sequence_parallel, weights=parsed.weights
    )
    for option in ("sequence_parallel", "weights"):
        name = getattr(options, option)
        if name is not None:
            raise InputError(
                f"--{option.replace('_', '-')} {name} says how a layout is split, and there is no "
                "--layout; give one, for example --layout dp2-sp4"
            )
    return options.layout
