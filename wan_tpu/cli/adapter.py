"""show what an adapter's file is, which models it fits and what of it would be left out

`wan-tpu adapter inspect` reads the file's header and no numbers, without JAX and torch.
"""

import argparse
import json
import pathlib
from typing import Any

from wan_tpu.cli.streams import write_data
from wan_tpu.errors import CheckpointError

_MIB = 2**20
SHOWN_TARGETS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands of `wan-tpu adapter`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "say what a file is and which models it fits"
    inspect = actions.add_parser("inspect", help=summary, description=summary)
    inspect.add_argument("adapter", metavar="FILE|FOLDER|ID", help="what --lora takes")
    inspect.add_argument(
        "--model", help="this model alone, and an error where it does not fit (default: the known)"
    )
    inspect.add_argument("--json", action="store_true", help="JSON instead of lines")


def run(parsed: argparse.Namespace) -> int:
    """Prints the account of each file that is meant."""
    from wan_tpu.adapters.account import describe_adapter
    from wan_tpu.adapters.choice import AdapterChoice
    from wan_tpu.adapters.files import find_files

    models = _models(parsed.model)
    files = find_files(AdapterChoice(path=parsed.adapter).path)
    accounts = [describe_adapter(path, models) for path in files]
    if parsed.model is not None:
        for account in accounts:
            fit = account["models"][parsed.model]
            if not fit["fits"]:
                raise CheckpointError(fit["why_not"])
    if parsed.json:
        write_data(json.dumps(accounts, indent=2) + "\n")
    else:
        write_data("\n".join(map(_lines, accounts)))
    return 0


def _models(name: str | None) -> list[Any]:
    """The model that is named, or all that are known offline."""
    from wan_tpu.adapters.account import ModelShapes
    from wan_tpu.adapters.known_shapes import transformer_shapes
    from wan_tpu.checkpoints.known import KNOWN_MODELS, embedded_folders
    from wan_tpu.checkpoints.models import describe_model

    names = [name] if name is not None else [*embedded_folders(), *KNOWN_MODELS]
    described = [describe_model(each) for each in names]
    return [
        ModelShapes(
            name=model.name,
            shapes=transformer_shapes(model.configs["transformer"]),
            num_experts=len(model.kind.experts),
        )
        for model in described
    ]


def _lines(account: dict[str, Any]) -> str:
    """The account as text."""
    dtypes = ", ".join(account["dtypes"])
    pathname = pathlib.Path(account["file"]).name
    lines = [
        f"{pathname}: {account['style']}, {account['keys']} keys, {dtypes}, "
        f"{account['bytes'] / _MIB:.2f} MiB"
    ]
    if account["expert"] is not None:
        lines.append(f"expert   {account['expert']}, as its {account['expert_from']} says")
    for part in account["parts"]:
        of = "" if part["expert"] is None else f"{part['expert']}: "
        lines.append(f"holds    {of}{part['described']}")
        alphas = _listed(part["alphas"]) or "none: as the rank"
        lines.append(f"alpha    {alphas}; scale {_listed(part['scales']) or '1'}")
        for called, counts in (("targets", part["targets"]), ("whole", part["whole_tensors"])):
            if counts:
                shown = [f"{name} x{count}" for name, count in counts.items()]
                more = len(shown) - SHOWN_TARGETS
                rest = f", and {more} more" if more > 0 else ""
                lines.append(f"{called:<9}{', '.join(shown[:SHOWN_TARGETS])}{rest}")
    fitting = {name: fit for name, fit in account["models"].items() if fit["fits"]}
    lines.append(f"fits     {', '.join(fitting) or 'no known model'}")
    for name, fit in fitting.items():
        if fit["left_out"]:
            lines.append(f"         {name} leaves out {len(fit['left_out'])} for image tokens")
    return "\n".join(lines) + "\n"


def _listed(values: list[float]) -> str:
    if len(values) > 4:
        return f"{values[0]:g} to {values[-1]:g}"
    return ", ".join(f"{value:g}" for value in values)
