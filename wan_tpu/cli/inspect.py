"""show what a model weighs, on the devices and on the disk, and how a layout splits it"""

import argparse
import json
import pathlib
from typing import Any

from wan_tpu.cli.options import add_layout_arguments, add_vae_dtype_argument, read_layout
from wan_tpu.cli.streams import write_data

GIB, MIB = 2**30, 2**20

VAE_ENCODER = "vae_encoder"
"""The other half of the autoencoder's files, which text to video does not load."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu inspect`."""
    parser.add_argument(
        "model",
        help="wan-tiny, wan2.1-t2v-1.3b, wan2.1-t2v-14b (offline), a folder or a hub id",
    )
    add_layout_arguments(parser)
    parser.add_argument(
        "--dtype", default="bfloat16", help="bfloat16 or float32 (default: %(default)s)"
    )
    add_vae_dtype_argument(parser)
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def run(parsed: argparse.Namespace) -> int:
    """Prints the inventory; reads configurations only, never weights."""
    layout = read_layout(parsed)

    from wan_tpu.checkpoints.inventory import tensor_rows, weight_rows
    from wan_tpu.checkpoints.models import describe_model
    from wan_tpu.pipeline.model import VAE, make_video_model, parse_dtype
    from wan_tpu.sharding.layout import AXES, Layout
    from wan_tpu.sharding.mesh import abstract_mesh
    from wan_tpu.vae.weights import DECODER, ENCODER, expected_tensors

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
    )
    rows: list[Any] = []
    for name, component in model.components.items():
        if name != VAE:
            rows += weight_rows(name, component.module.weights(), mesh_shape)
    for name, part in ((VAE, DECODER), (VAE_ENCODER, ENCODER)):
        tensors = expected_tensors(model.vae, parts=(part,))
        rows += tensor_rows(name, tensors, model.vae_dtype, with_split=layout is not None)
    report = _summary(parsed.model, parsed.dtype, layout, rows, description.folder)
    if parsed.json:
        weights = {"weights": [row.to_json() for row in rows]}
        write_data(json.dumps(report | weights, indent=2) + "\n")
    else:
        write_data(_table(report, rows))
    return 0


def _summary(
    name: str, dtype: str, layout: Any, rows: list[Any], folder: pathlib.Path | None
) -> dict[str, Any]:
    """Bytes per component: of what lies on the devices, and of the files where they are here."""
    components = {}
    resident = dict.fromkeys(row.component for row in rows if row.component != VAE_ENCODER)
    for component in resident:
        sizes = components[component] = _sizes(component, layout, rows)
        if folder is not None:
            sizes["bytes_on_disk"] = _disk_bytes(folder / component)
    return {
        "model": name,
        "dtype": dtype,
        "layout": None if layout is None else str(layout),
        "components": components,
        "not_loaded": {VAE_ENCODER: _sizes(VAE_ENCODER, layout, rows)},
    }


def _sizes(component: str, layout: Any, rows: list[Any]) -> dict[str, int]:
    mine = [row for row in rows if row.component == component]
    sizes = {"bytes": sum(row.num_bytes for row in mine)}
    if layout is not None:
        sizes["bytes_per_device"] = sum(row.bytes_per_device for row in mine)
    return sizes


def _disk_bytes(folder: pathlib.Path) -> int:
    """All safetensors of a component; 0 where only its configuration was downloaded."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())


def _table(report: dict[str, Any], rows: list[Any]) -> str:
    """The report as text, a line per row."""
    layout = report["layout"]
    lines = [f"{report['model']}, {report['dtype']}" + (f", layout {layout}" if layout else "")]
    for component, sizes in report["components"].items():
        line = f"  {component:<14}{_size(sizes['bytes'])}"
        line += f"  {_size(sizes['bytes_per_device'])} per device" if layout else ""
        on_disk = sizes.get("bytes_on_disk", 0)
        lines.append(line + (f"  {_size(on_disk)} on the disk" if on_disk else ""))
    for component, sizes in report["not_loaded"].items():
        lines.append(f"  {component:<14}{_size(sizes['bytes'])}  not loaded")
    header = f"{'weight':<72}{'count':>6}  {'shape':<22}{'dtype':<10}{'bytes':>12}"
    lines += ["", header + (f"  {'split':<18}{'per device':>12}" if layout else "")]
    component = ""
    for row in rows:
        if row.component != component:
            component = row.component
            lines.append(f"{component}:")
        shape = "x".join(str(size) for size in row.shape)
        line = (
            f"  {row.pattern:<70}{row.count:>6}  {shape:<22}{row.dtype:<10}{_size(row.num_bytes)}"
        )
        if layout:
            line += f"  {row.split or 'whole':<18}{_size(row.bytes_per_device)}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _size(num_bytes: int) -> str:
    """Bytes in the unit that suits them, 12 characters wide."""
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:8.2f} GiB"
    if num_bytes >= MIB:
        return f"{num_bytes / MIB:8.2f} MiB"
    return f"{num_bytes / 1024:8.2f} KiB"
