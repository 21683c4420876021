"""`wan-tpu dataset prepare`: clips and captions, encoded once, for trainings to read.

What is wrong with the command is said before anything is downloaded or JAX starts. Any number of
processes may run the same command on the same folder, on one host or on several.
"""

import argparse
import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING, Any

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.diffusers_folder import TOKENIZER
from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.cli import dataset_fleet
from wan_tpu.cli.dataset_options import (
    add_bucket_arguments,
    add_listing_arguments,
    is_bucket,
    read_buckets,
    read_columns,
)
from wan_tpu.cli.interruptible import Interruptible
from wan_tpu.cli.options import (
    add_dtype_and_devices_arguments,
    add_model_arguments,
    add_vae_dtype_argument,
    positive_int,
)
from wan_tpu.cli.progress import ProgressBars
from wan_tpu.cli.streams import write_data
from wan_tpu.errors import InputError
from wan_tpu.pipeline.options import LoadOptions

if TYPE_CHECKING:
    from wan_tpu.dataset.jobs import PrepareOptions
    from wan_tpu.dataset.manifest import Manifest
    from wan_tpu.dataset.prepare import Outcome

SHOWN_REFUSED = 20
"""Clips that are named with the reason; `dataset.json` names all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu dataset prepare`."""
    from wan_tpu.dataset.sampling import SAMPLINGS

    add_listing_arguments(parser)
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", required=True,
        help="where the result goes; what is there already is not made again; with --fleet "
        "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or a folder that all have mounted",
    )  # fmt: skip
    add_model_arguments(parser)
    clips = parser.add_argument_group("what is taken of the clips")
    add_bucket_arguments(clips)
    clips.add_argument(
        "--sampling", default=SAMPLINGS[0], choices=SAMPLINGS,
        help="which windows of a clip (default: %(default)s)",
    )  # fmt: skip
    clips.add_argument(
        "--windows", type=positive_int, metavar="N",
        help="of a clip; default: one, of keyframe and chunks all",
    )  # fmt: skip
    clips.add_argument(
        "--seed", type=int, default=0, help="of --sampling random (default: %(default)s)"
    )
    clips.add_argument(
        "--inputs", metavar="NAMES",
        help="frames that an image-to-video model is given: image, last_image or image+last_image; "
        "default: the model's first kind",
    )  # fmt: skip
    folder = parser.add_argument_group("the folder")
    folder.add_argument(
        "--prune", action="store_true",
        help="remove what was made there before and nothing needs any more",
    )  # fmt: skip
    folder.add_argument("--json", action="store_true", help="JSON instead of a table")
    machine = parser.add_argument_group("the machine")
    machine.add_argument(
        "--workers", type=positive_int, metavar="N",
        help="clips that are decoded at a time (default: one a core)",
    )  # fmt: skip
    add_vae_dtype_argument(machine)
    add_dtype_and_devices_arguments(machine)
    machine.add_argument(
        "--no-cache", action="store_true", help="keep no compiled programs between runs"
    )
    dataset_fleet.add_prepare_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    """Prepares, and prints what became of the clips."""
    description = describe_model(parsed.model, parsed.variant)
    options = _read(parsed, description)
    if parsed.fleet is not None:
        return dataset_fleet.run_prepare(parsed, description, options)
    dataset_fleet.check_no_fleet(parsed)
    running = Interruptible()
    outcomes: list[Outcome] = []
    running.run(lambda: outcomes.append(_prepare(parsed, description, options, running)))
    outcome = outcomes[0]
    if parsed.json:
        write_data(json.dumps(_to_json(parsed, outcome), indent=2) + "\n")
    else:
        write_data(_table(parsed, outcome))
    return 0


def _read(parsed: argparse.Namespace, description: ModelDescription) -> "PrepareOptions":
    """The command line, checked as far as it can be without the model's files.

    Raises:
        InputError: a value is out of range, a name does not exist, or the model takes no such.
    """
    from wan_tpu.dataset.jobs import PrepareOptions
    from wan_tpu.dataset.sampling import Sampling

    load = LoadOptions(
        model=parsed.model,
        variant=parsed.variant,
        dtype=parsed.dtype,
        vae_dtype=parsed.vae_dtype,
    )
    buckets = read_buckets(parsed, description)
    options = PrepareOptions(
        sizes=buckets.sizes,
        lengths=buckets.lengths,
        fps=float(buckets.fps),
        sampling=Sampling(method=parsed.sampling, count=parsed.windows, seed=parsed.seed),
        inputs=None if parsed.inputs is None else tuple(parsed.inputs.split("+")),
        columns=read_columns(parsed),
        dtype=load.dtype,
        vae_dtype=load.vae_dtype,
        workers=parsed.workers,
    )
    options.inputs_for(description)
    if is_bucket(parsed.path) and parsed.fleet is None:
        raise InputError(f"{parsed.path} is a bucket: clips there are prepared with --fleet")
    if not is_bucket(parsed.path) and not pathlib.Path(parsed.path).expanduser().exists():
        raise InputError(f"{parsed.path} is not there: a folder with clips, or a manifest")
    return options


def _prepare(
    parsed: argparse.Namespace,
    description: ModelDescription,
    options: "PrepareOptions",
    running: Interruptible,
) -> "Outcome":
    """Model, JAX, samples."""
    from wan_tpu import runtime
    from wan_tpu.dataset.encode import encoders_of
    from wan_tpu.dataset.prepare import prepare

    with ProgressBars() as bars:
        parts = (*encoders_of(description), TOKENIZER)
        model = open_model(parsed.model, parsed.variant, parts)
        runtime.start(
            host_devices=parsed.host_devices,
            cache_folder=None if parsed.no_cache else runtime.default_cache_folder(),
        )
        return prepare(
            pathlib.Path(parsed.path).expanduser(),
            pathlib.Path(parsed.output).expanduser(),
            model,
            options,
            prune=parsed.prune,
            on_progress=bars.show,
            should_cancel=running.is_asked,
        )


def _table(parsed: argparse.Namespace, outcome: "Outcome") -> str:
    """Samples by size, what was refused, and what this run has done."""
    manifest = outcome.manifest
    lines = manifest_lines(manifest)
    lines.append(
        f"{_counted(len(manifest.samples), 'sample')} in {parsed.output} for {manifest.model}: "
        f"{outcome.num_made} files made, {outcome.num_found} were there"
    )
    if outcome.unused:
        files = _counted(len(outcome.unused), "file")
        lines.append(
            f"{files} of earlier runs removed"
            if outcome.is_pruned
            else f"{files} of earlier runs that nothing needs any more; --prune removes them"
        )
    return "\n".join(lines) + "\n"


def manifest_lines(manifest: "Manifest") -> list[str]:
    """Samples by size, and what was refused."""
    from wan_tpu.dataset.buckets import describe

    lines = [f"{'size':<24}{'samples':>8}"]
    for size, count in manifest.counts().items():
        lines.append(f"{describe(manifest.geometry(size)):<24}{count:>8}")
    if manifest.refused:
        lines.append(f"{'refused':<24}{len(manifest.refused):>8}")
        lines += [
            f"  {refusal.name}: {refusal.kind}: {refusal.reason}"
            for refusal in manifest.refused[:SHOWN_REFUSED]
        ]
        more = len(manifest.refused) - SHOWN_REFUSED
        lines += [f"  and {more} more, in dataset.json"] if more > 0 else []
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _to_json(parsed: argparse.Namespace, outcome: "Outcome") -> dict[str, Any]:
    return {
        "folder": parsed.output,
        **manifest_json(outcome.manifest),
        "made": outcome.num_made,
        "found": outcome.num_found,
        "unused": [str(path) for path in outcome.unused],
        "pruned": outcome.is_pruned,
    }


def manifest_json(manifest: "Manifest") -> dict[str, Any]:
    """What `--json` says of the result itself."""
    return {
        "model": manifest.model,
        "digest": manifest.digest,
        "samples": len(manifest.samples),
        "sizes": [
            {"width": width, "height": height, "num_frames": frames, "samples": count}
            for (width, height, frames), count in manifest.counts().items()
        ],
        "refused": [dataclasses.asdict(refusal) for refusal in manifest.refused],
    }
