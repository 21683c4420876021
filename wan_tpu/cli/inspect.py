"""show what a model weighs, on the devices and on the disk, and how a layout splits it"""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

from wan_tpu.checkpoints.models import KNOWN_MODELS, WAN_TINY
from wan_tpu.cli.options import (
    add_layout_arguments,
    add_quantize_argument,
    add_vae_dtype_argument,
    read_layout,
)
from wan_tpu.cli.streams import write_data
from wan_tpu.family import IMAGE_ENCODER, VAE

GIB, MIB = 2**30, 2**20

IMAGE_ENCODER_END = "image_encoder_end"
"""CLIP's last layer and the norm after it: in the files, but Wan takes the state before them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu inspect`."""
    parser.add_argument(
        "model",
        help=f"{', '.join([WAN_TINY, *KNOWN_MODELS])} (offline), a folder or a hub id",
    )
    add_layout_arguments(parser)
    parser.add_argument(
        "--dtype", default="bfloat16", help="bfloat16 or float32 (default: %(default)s)"
    )
    add_vae_dtype_argument(parser)
    add_quantize_argument(parser)
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def run(parsed: argparse.Namespace) -> int:
    """Prints the inventory; reads configurations only, never weights."""
    layout = read_layout(parsed)

    from wan_tpu.checkpoints.models import describe_model
    from wan_tpu.pipeline.model import make_video_model, parse_dtype
    from wan_tpu.pipeline.names import check_quantize
    from wan_tpu.sharding.layout import AXES, Layout
    from wan_tpu.sharding.mesh import abstract_mesh

    chosen = layout or Layout()
    mesh_shape: dict[str, int] | None = None
    if layout is not None:
        mesh_shape = dict(zip(AXES, layout.shape, strict=True))
    description = describe_model(parsed.model)
    model = make_video_model(
        description,
        abstract_mesh(chosen),
        chosen,
        dtype=parse_dtype(parsed.dtype),
        vae_dtype=parse_dtype(parsed.vae_dtype) if parsed.vae_dtype else None,
        attention="reference",
        quantize=check_quantize(parsed.quantize),
    )
    rows = _rows(model, mesh_shape)
    report = _summary(parsed.dtype, layout, rows, description)
    if parsed.json:
        weights = {"weights": [row.to_json() for row in rows]}
        write_data(json.dumps(report | weights, indent=2) + "\n")
    else:
        write_data(_table(report, rows))
    return 0


def _rows(model: Any, mesh_shape: dict[str, int] | None) -> list[Any]:
    """A row per pattern of weights, by component, with what is in the files and not loaded last."""
    from wan_tpu.checkpoints.inventory import tensor_rows, weight_rows
    from wan_tpu.vae.weights import expected_tensors

    rows: list[Any] = []
    for name, component in model.components.items():
        if name == VAE:
            tensors = expected_tensors(model.vae)
            split = mesh_shape is not None
            rows += tensor_rows(name, tensors, model.vae_dtype, with_split=split)
        else:
            rows += weight_rows(name, component.module.weights(), mesh_shape)
    if IMAGE_ENCODER not in model.components:
        return rows
    encoder = model.components[IMAGE_ENCODER].module
    layer = [w for w in encoder.weights() if w.stacked]
    last = [dataclasses.replace(w, tensors=w.tensors[:1]) for w in layer]
    norm = {f"post_layernorm.{part}": (encoder.config.hidden_size,) for part in ("weight", "bias")}
    rows += weight_rows(IMAGE_ENCODER_END, last, mesh_shape)
    split = mesh_shape is not None
    return rows + tensor_rows(IMAGE_ENCODER_END, norm, encoder.dtype, with_split=split)


def _summary(dtype: str, layout: Any, rows: list[Any], description: Any) -> dict[str, Any]:
    """Bytes per component: of what lies on the devices, and of the files where they are here.

    And what the model is made of, takes, and can be run with in few steps.
    """
    from wan_tpu.pipeline.fast import presets_of

    kind = description.kind
    components = {}
    for component in kind.components:
        sizes = components[component] = _sizes(component, layout, rows)
        path = description.files.get(component)
        if path is None and description.folder is not None:
            path = description.folder / component
        if path is not None:
            sizes["bytes_on_disk"] = _disk_bytes(path)
    others = dict.fromkeys(row.component for row in rows if row.component not in components)
    return {
        "model": description.name,
        "kind": kind.words,
        "takes": kind.described_inputs(),
        "inputs": [sorted(roles) for roles in kind.inputs],
        "boundary_ratio": kind.boundary_ratio,
        "fast": [preset.to_json() for preset in presets_of(description)],
        "dtype": dtype,
        "layout": None if layout is None else str(layout),
        "components": components,
        "not_loaded": {component: _sizes(component, layout, rows) for component in others},
    }


def _sizes(component: str, layout: Any, rows: list[Any]) -> dict[str, int]:
    mine = [row for row in rows if row.component == component]
    sizes = {"bytes": sum(row.num_bytes for row in mine)}
    sizes["parameters"] = sum(row.parameters for row in mine)
    if layout is not None:
        sizes["bytes_per_device"] = sum(row.bytes_per_device for row in mine)
    return sizes


def _disk_bytes(path: pathlib.Path) -> int:
    """All safetensors of a component; 0 where only its configuration was downloaded."""
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files if file.is_file())


def _table(report: dict[str, Any], rows: list[Any]) -> str:
    """The report as text, a line per row."""
    layout = report["layout"]
    lines = [f"{report['model']}, {report['dtype']}" + (f", layout {layout}" if layout else "")]
    lines.append(f"{report['kind']}, takes {report['takes']}")
    if report["boundary_ratio"] is not None:
        first = f"{1000 * report['boundary_ratio']:g}"
        lines.append(
            f"transformer runs the steps from timestep {first} up, transformer_2 the others"
        )
    for preset in report["fast"]:
        needs = f", with {' and '.join(preset['adapters'])}" if preset["adapters"] else ""
        told = ", ".join(f"{timestep:g}" for timestep in preset["timesteps"])
        lines.append(f"fast: {preset['name']}: {preset['update']} at timesteps {told}{needs}")
    for component, sizes in report["components"].items():
        line = f"  {component:<18}{_sized(sizes)}"
        line += f"  {_size(sizes['bytes_per_device'])} per device" if layout else ""
        on_disk = sizes.get("bytes_on_disk", 0)
        lines.append(line + (f"  {_size(on_disk)} on the disk" if on_disk else ""))
    for component, sizes in report["not_loaded"].items():
        lines.append(f"  {component:<18}{_sized(sizes)}  not loaded")
    header = f"{'weight':<72}{'count':>6}  {'shape':<22}{'dtype':<10}{'bytes':>12}"
    lines += ["", header + (f"  {'split':<18}{'per device':>12}" if layout else "")]
    shown: dict[str, str] = {}
    for component in dict.fromkeys(row.component for row in rows):
        table = "\n".join(_line(row, layout) for row in rows if row.component == component)
        same = next((other for other, text in shown.items() if text == table), None)
        lines += [f"{component}: as {same}"] if same else [f"{component}:", table]
        shown[component] = table
    return "\n".join(lines) + "\n"


def _line(row: Any, layout: str | None) -> str:
    shape = "x".join(str(size) for size in row.shape)
    line = f"  {row.pattern:<70}{row.count:>6}  {shape:<22}{row.dtype:<10}{_size(row.num_bytes)}"
    if layout:
        line += f"  {row.split or 'whole':<18}{_size(row.bytes_per_device)}"
    return line


def _sized(sizes: dict[str, int]) -> str:
    return f"{_size(sizes['bytes'])}  {sizes['parameters']:>16,} parameters"


def _size(num_bytes: int) -> str:
    """Bytes in the unit that suits them, 12 characters wide."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:8.2f} GiB"
    if num_bytes >= MIB:
        return f"{num_bytes / MIB:8.2f} MiB"
    return f"{num_bytes / 1024:8.2f} KiB"
