"""Merged on the devices, beside the base: the weights that loading with the same adapters gives."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.adapters.small import CONFIG, base_source, linears, make_factors, normal, pair
from tests.tolerances import MERGED
from wan_tpu.adapters.form import Adapter, Hadamard, Kronecker
from wan_tpu.adapters.merge import MergedSource, Strengthened
from wan_tpu.adapters.on_mesh import merge_on_mesh, merge_stage
from wan_tpu.adapters.placing import place_terms
from wan_tpu.adapters.terms import Low
from wan_tpu.checkpoints.source import ArraySource
from wan_tpu.checkpoints.weights import load_weights
from wan_tpu.pipeline.programs import compile_stage
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.stage import abstract_like
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.weights import denoiser_weights

SHAPES = base_source().shapes
TRANSFORMER = TransformerConfig.from_json(CONFIG)


def lora(seed: int = 0) -> Adapter:
    """Of weights ordered and split each in its way, in two of three layers; ranks differ."""
    ends = ("attn1.to_q", "attn1.to_out.0", "add_k_proj", "ffn.net.2", "time_proj")
    modules = [
        name for name in linears(embedders=True) if name.endswith(ends) and ".1." not in name
    ]
    return Adapter(factors=make_factors(modules, ranks=(4, 2), alphas=(None, 1), seed=seed))


def other_forms() -> Adapter:
    """Everything else that an adapter can be."""
    names = {
        form: f"blocks.{layer}.{module}.weight"
        for form, layer, module in (
            ("hadamard", 0, "attn1.to_q"),
            ("kronecker", 1, "attn1.to_q"),
            ("kronecker of factors", 2, "ffn.net.0.proj"),
            ("rows", 2, "attn1.to_k"),
            ("columns", 1, "attn2.to_out.0"),
            ("rows of split columns", 0, "ffn.net.2"),
            ("rows of a hadamard", 0, "attn2.to_v"),
        )
    }
    names["kernel"] = "patch_embedding.weight"
    wide = {form: (SHAPES[name][0], int(np.prod(SHAPES[name][1:]))) for form, name in names.items()}
    hadamard = [pair(*wide["hadamard"], 3, seed=seed) for seed in (1, 2)]
    rows, columns = wide["kronecker"]
    inner = wide["kronecker of factors"]
    factors = {
        "hadamard": Hadamard(first=hadamard[0], second=hadamard[1], alpha=2.0),
        "kronecker": Kronecker(left=normal(4, 3), right=normal(rows // 4, columns // 3)),
        "kronecker of factors": Kronecker(
            left=normal(2, 2, seed=3), right=pair(inner[0] // 2, inner[1] // 2, 3), alpha=1.5
        ),
        "rows": pair(*wide["rows"], 4, seed=4),
        "columns": pair(*wide["columns"], 4, seed=5),
        "rows of split columns": pair(*wide["rows of split columns"], 4, seed=6),
        "rows of a hadamard": Hadamard(
            first=pair(*wide["rows of a hadamard"], 2, seed=7),
            second=pair(*wide["rows of a hadamard"], 2, seed=8),
        ),
        "kernel": pair(*wide["kernel"], 4, seed=9),
    }
    magnitudes = {
        form: np.abs(normal(wide[form][0], 1)) + 1
        for form in ("rows", "rows of split columns", "rows of a hadamard")
    } | {"columns": np.abs(normal(1, wide["columns"][1])) + 1}
    changed = (
        "blocks.0.attn1.to_q.bias", "blocks.1.attn1.norm_q.weight", "blocks.2.ffn.net.0.proj.bias",
        "blocks.0.scale_shift_table", "scale_shift_table", "blocks.1.attn1.to_q.weight",
        "patch_embedding.weight", "patch_embedding.bias", "blocks.2.norm2.weight",
    )  # fmt: skip
    return Adapter(
        factors={names[form]: made for form, made in factors.items()},
        differences={
            name: normal(*SHAPES[name], seed=number) for number, name in enumerate(changed)
        },
        magnitudes={names[form]: norms for form, norms in magnitudes.items()},
    )


@dataclasses.dataclass
class Merging:
    """The same adapters merged on a layout both ways."""

    base: dict[str, jax.Array]
    loaded: dict[str, jax.Array]
    merged: dict[str, jax.Array]
    bytes_moved: int


def merge(
    adapters: list[Strengthened],
    devices,
    layout: str = "single",
    dtype: str = "float32",
    source: ArraySource | None = None,
) -> Merging:
    source = source or base_source()
    parsed = parse_layout(layout)
    mesh = make_mesh(parsed, devices[: parsed.num_devices])
    weights = denoiser_weights(TRANSFORMER, parsed, jnp.dtype(dtype))
    base = load_weights("transformer", weights, source, mesh)
    before = {name: np.asarray(array).tobytes() for name, array in base.items()}
    found = merge_on_mesh(weights, base, adapters, mesh, compile_stage)
    assert {name: np.asarray(array).tobytes() for name, array in base.items()} == before
    loaded = load_weights("transformer", weights, MergedSource(source, adapters), mesh)
    return Merging(
        base=base, loaded=loaded, merged={**base, **found.changed}, bytes_moved=found.bytes_moved
    )


def assert_merged(merging: Merging, *, changes: int) -> None:
    changed = [name for name in merging.base if merging.merged[name] is not merging.base[name]]
    assert len(changed) == changes
    for name, expected in merging.loaded.items():
        got = merging.merged[name]
        assert got.sharding.is_equivalent_to(expected.sharding, got.ndim), name
        assert got.dtype == expected.dtype
        error = np.abs(np.asarray(got, np.float64) - np.asarray(expected, np.float64)).max()
        assert error <= MERGED * max(1, np.abs(np.asarray(expected)).max()), (name, error)
        assert not np.array_equal(np.asarray(got), np.asarray(merging.base[name])) or (
            name not in changed
        ), name


@pytest.mark.parametrize(
    "layout",
    [
        "dp2-sp2-tp2",
        "tp4 replicated",  # pads three heads
        pytest.param("single", marks=pytest.mark.slow),
        pytest.param("sp4 ring replicated", marks=pytest.mark.slow),
    ],
)
def test_every_form_on_every_kind_of_split(layout, devices):
    adapters = [
        Strengthened(adapter=lora(), strength=0.75),
        Strengthened(adapter=other_forms(), strength=0.5),
        Strengthened(adapter=lora(seed=1), strength=-1.5),
    ]
    merging = merge(adapters, devices, layout)
    assert_merged(merging, changes=17)


def test_what_is_rounded_to_bfloat16_is_the_sum(devices):
    """Of a base that is bfloat16 already both ways give the same number, or its neighbour.

    The sum's last float32 bit may differ, which decides a rounding where it lies in the middle.
    """
    adapters = [Strengthened(adapter=lora(), strength=0.75)]
    rounded = {
        name: base_source().read(name).astype(ml_dtypes.bfloat16).astype(np.float32)
        for name in SHAPES
    }
    merging = merge(adapters, devices, dtype="bfloat16", source=ArraySource(rounded))
    differing = total = 0
    for name, expected in merging.loaded.items():
        got, expected = (np.asarray(each, np.float32) for each in (merging.merged[name], expected))
        # A step of bfloat16 is 2^-7 of the power of two below a number at most.
        assert np.all(np.abs(got - expected) <= 2**-7 * np.abs(expected)), name
        differing += np.count_nonzero(got != expected)
        total += got.size
    assert differing <= 1e-4 * total


def test_strength_0_changes_nothing_and_costs_nothing(devices):
    merging = merge([Strengthened(adapter=lora(), strength=0.0)], devices)
    assert merging.bytes_moved == 0
    assert all(merging.merged[name] is array for name, array in merging.base.items())


def test_sharded_no_device_gets_the_whole(devices):
    """Of the factors' halves that follow a split each device is sent its part, and of a weight's
    shards none is gathered; but for a DoRA, whose norms are sums over them."""
    layout = parse_layout("sp2-tp2")
    mesh = make_mesh(layout, devices[:4])
    weights = {w.name: w for w in denoiser_weights(TRANSFORMER, layout, jnp.float32)}
    weight = dataclasses.replace(
        weights["blocks.*.ffn.net.2.weight"], spec=PartitionSpec(None, "sp", "tp")
    )
    adapters = [Strengthened(adapter=lora(), strength=1.0)]
    (term,) = place_terms(weight, adapters, mesh)
    low = term.matrix
    assert isinstance(low, Low)
    assert low.up.sharding.spec == PartitionSpec(None, "sp", None)
    assert low.down.sharding.spec == PartitionSpec(None, None, "tp")
    stage = merge_stage(weight, mesh, (weight.abstract(mesh), abstract_like((term,)), None))
    text = stage.compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" not in text
