"""FLOPs of products: `dot` and `convolution`, which the TPU compiler writes for most of them."""

import math
import re

import numpy as np

from wan_tpu.planner.hlo import Computation, Instruction


def dot_flops(computation: Computation, dot: Instruction) -> int:
    """Of a `dot`: two for each element of the result and contracted pair."""
    left = computation.instructions[dot.operands[0]].array
    contracted = re.findall(r"\d+", dot.attribute("lhs_contracting_dims") or "")
    return 2 * dot.array.elements * math.prod(left.dims[int(dim)] for dim in contracted)


def convolution_flops(computation: Computation, convolution: Instruction) -> int:
    """As XLA's HloCostAnalysis: products with padding and with holes of a dilation do not count.

    The TPU compiler writes every matrix product as a convolution, batch dimensions as windows.
    """
    left, right = (computation.instructions[name].array for name in convolution.operands[:2])
    labels = convolution.attribute("dim_labels") or ""
    found = re.fullmatch(r"(\w+)_(\w+)->(\w+)", labels.strip())
    assert found is not None, f"{convolution.name} has no dim_labels"
    inputs, kernel, outputs = found.groups()
    window = _window(convolution.attributes, len([letter for letter in kernel if letter.isdigit()]))
    positions = 1
    for number, dimension in enumerate(window):
        label = str(number)
        positions *= _valid_positions(
            input_size=left.dims[inputs.index(label)],
            output_size=convolution.array.dims[outputs.index(label)],
            **dimension,
        )
    groups = int(convolution.attribute("batch_group_count") or 1)
    products = left.dims[inputs.index("b")] // groups
    products *= right.dims[kernel.index("i")] * right.dims[kernel.index("o")]
    return 2 * products * positions


def _window(attributes: str, dims: int) -> list[dict[str, int]]:
    """Size, stride, padding and dilations of each spatial dimension."""
    text = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in text[1].split()) if text else {}

    def numbers(name: str, default: int) -> list[int]:
        return [int(n) for n in fields[name].split("x")] if name in fields else [default] * dims

    pads = [p.split("_")[0] for p in fields["pad"].split("x")] if "pad" in fields else ["0"] * dims
    names = {"size": 1, "stride": 1, "lhs_dilate": 1, "rhs_dilate": 1}
    columns = {name: numbers(name, default) for name, default in names.items()}
    return [
        {"pad": int(pads[d])} | {name: column[d] for name, column in columns.items()}
        for d in range(dims)
    ]


def _valid_positions(
    *,
    input_size: int,
    output_size: int,
    size: int,
    stride: int,
    pad: int,
    lhs_dilate: int,
    rhs_dilate: int,
) -> int:
    """Pairs of a window element and an output for which there is an input."""
    window, output = np.arange(size), np.arange(output_size)
    position = output[:, None] * stride + window[None] * rhs_dilate - pad
    inside = (position >= 0) & (position < (input_size - 1) * lhs_dilate + 1)
    return int((inside & (position % lhs_dilate == 0)).sum())
