"""Programs compiled with flags that overlap transfers and products, by the real compiler."""

import os
import subprocess
import sys

import pytest

from wan_tpu.planner.program import read_program

FLAGS = " ".join(
    f"--xla_{name}=true"
    for name in (
        "enable_async_all_gather",
        "tpu_enable_async_all_to_all",
        "tpu_enable_latency_hiding_scheduler",
        "tpu_enable_async_collective_fusion",
        "tpu_enable_async_collective_fusion_fuse_all_gather",
        "tpu_enable_async_collective_fusion_multiple_steps",
        "tpu_overlap_compute_collective_tc",
        "tpu_enable_all_experimental_scheduler_features",
        "tpu_enable_scheduler_memory_pressure_tracking",
        "tpu_enable_ici_ag_pipelining",
    )
)
"""The set that makes all-gathers ride in products; libtpu reads it when it loads."""

LAYERS, WEIGHTS, WIDTH, TOKENS = 4, 3, 1024, 8192

PROGRAM = f"""
import jax, jax.numpy as jnp, sys
from wan_tpu.planner.compile import slice_devices
from wan_tpu.planner.hardware import find_slice
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import make_mesh, named

mesh = make_mesh(Layout(dp=2, sp=4), slice_devices(find_slice("v6e-8")))

def layer(x, weights):
    for weight in weights:
        x = jnp.tanh(x @ jax.lax.with_sharding_constraint(weight, named(mesh)))
    return x, None

def array(shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=named(mesh, *spec))

tokens = array((2, {TOKENS}, {WIDTH}), "dp", "sp")
weights = [array(({LAYERS}, {WIDTH}, {WIDTH}), None, ("dp", "sp"))] * {WEIGHTS}
traced = jax.jit(lambda x, w: jax.lax.scan(layer, x, w)[0]).trace(tokens, weights)
sys.stdout.write(traced.lower(lowering_platforms=("tpu",)).compile().as_text())
"""


def compile_with(flags):
    environment = os.environ | {"LIBTPU_INIT_ARGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def overlapping():
    """The text of a small layer's program with the flags."""
    text = compile_with(FLAGS)
    assert "AsyncCollectiveStart" in text, "the test needs a program with a chain of fusions"
    assert " slice-start(" in text
    return text


def test_a_gather_that_rides_in_a_product_counts_once(overlapping):
    """Red when each fusion of a chain counts it: twice the bytes, all of them synchronous."""
    costs = read_program(overlapping)
    gathered = LAYERS * WEIGHTS * WIDTH * WIDTH * 2
    assert costs.collectives_by_kind() == {
        "all-gather": {"runs": LAYERS * WEIGHTS, "link_bytes": gathered * 7 // 8}
    }
    riding = [o for o in costs.operations if o.collectives and o.waited_at is not None]
    asynchronous = sum(o.times * o.link_bytes for o in riding)
    starts = overlapping.count('custom_call_target="AsyncCollectiveStart"')
    assert 0 < asynchronous < costs.total("link_bytes")
    assert asynchronous % (WIDTH * WIDTH * 2 * 7 // 8) == 0
    assert len(riding) == starts
    assert {o.kind for o in riding} == {"all-gather"}


def test_the_flags_change_no_product(overlapping):
    plain, overlapped = read_program(compile_with("")), read_program(overlapping)
    assert overlapped.total("flops") == plain.total("flops")
    assert overlapped.total("link_bytes") == plain.total("link_bytes")


CHAIN = """\
HloModule cut_from_a_step, is_scheduled=true, num_partitions=8

%start (shard: bf16[128,1024]) -> (bf16[128,1024], bf16[1024,1024], u32[]) {
  %shard = bf16[128,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %gather.0 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-gather(%shard), replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="4"}
  ROOT %begin = (bf16[128,1024]{1,0:T(8,128)(2,1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) custom-call(%gather.0), custom_call_target="AsyncCollectiveStart"
}

%ride (shard.1: bf16[128,1024], whole.1: bf16[1024,1024], flag.1: u32[], x: bf16[2048,1024], w: bf16[1024,1024]) -> (bf16[2048,1024], bf16[128,1024], bf16[1024,1024], bf16[1024,1024], u32[]) {
  %x = bf16[2048,1024]{1,0:T(8,128)(2,1)} parameter(3)
  %w = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(4)
  %product = bf16[2048,1024]{1,0:T(8,128)(2,1)} convolution(%x, %w), dim_labels=bf_io->bf
  %shard.1 = bf16[128,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %whole.1 = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(1)
  %flag.1 = u32[]{:S(2)} parameter(2)
  %gather.1 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-gather(%shard.1), replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="4"}
  ROOT %all = (bf16[2048,1024]{1,0:T(8,128)(2,1)}, bf16[128,1024]{1,0:T(8,128)(2,1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) tuple(%product, %shard.1, %whole.1, %gather.1, %flag.1)
}

%done (shard.2: bf16[128,1024], whole.2: bf16[1024,1024], flag.2: u32[]) -> bf16[1024,1024] {
  %shard.2 = bf16[128,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %whole.2 = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(1)
  %gather.2 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-gather(%shard.2), replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="4"}
  %flag.2 = u32[]{:S(2)} parameter(2)
  ROOT %end = bf16[1024,1024]{1,0:T(8,128)(2,1)} custom-call(%shard.2, %whole.2, %gather.2, %flag.2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[128,1024], b: bf16[2048,1024], c: bf16[1024,1024]) -> bf16[1024,1024] {
  %a = bf16[128,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[2048,1024]{1,0:T(8,128)(2,1)} parameter(1)
  %c = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(2)
  %async-collective-start = (bf16[128,1024]{1,0:T(8,128)(2,1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%start
  %s.0 = bf16[128,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%async-collective-start), index=0
  %s.1 = bf16[1024,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%async-collective-start), index=1
  %s.2 = u32[]{:S(2)} get-tuple-element(%async-collective-start), index=2
  %fusion.1 = (bf16[2048,1024]{1,0:T(8,128)(2,1)}, bf16[128,1024]{1,0:T(8,128)(2,1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)}, bf16[1024,1024]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) fusion(%s.0, %s.1, %s.2, %b, %c), kind=kOutput, calls=%ride
  %r.1 = bf16[128,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%fusion.1), index=1
  %r.3 = bf16[1024,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%fusion.1), index=3
  %r.4 = u32[]{:S(2)} get-tuple-element(%fusion.1), index=4
  ROOT %async-collective-done = bf16[1024,1024]{1,0:T(8,128)(2,1)} fusion(%r.1, %r.3, %r.4), kind=kCustom, calls=%done
}
"""  # noqa: E501


def test_what_a_product_carries_along_is_not_its_own():
    """In HBM, as the 14B model's feed-forward weights are. Red when a fusion counts what it passes
    on: 10 MiB more in the product, 4.25 in the last one."""
    start, product = read_program(CHAIN).operations
    mib = 2**20
    assert (start.name, start.kind, start.times) == ("async-collective-start", "all-gather", 1)
    assert start.hbm_bytes == start.plain_bytes == (2 + 1 / 4) * mib  # the shard and the whole
    assert start.link_bytes == 7 / 8 * 2 * mib
    assert start.waited_at == 2, "after the product"
    assert (product.name, product.kind) == ("fusion.1", "matmul")
    assert product.hbm_bytes == product.plain_bytes == (4 + 2 + 4) * mib
    assert product.flops == 2 * 2048 * 1024 * 1024
    assert product.collectives == ()


def test_a_slice_fetched_ahead_counts_as_its_piece():
    """Red when each piece counts the whole array: here three times by the plain rule."""
    text = """\
HloModule prefetch, is_scheduled=true

ENTRY %main (w: s8[4096]) -> s8[1024] {
  %w = s8[4096]{0:T(1024)(128)(4,1)} parameter(0)
  %one = ((s8[4096]{0:T(1024)(128)(4,1)}), s8[1024]{0:T(1024)(128)(4,1)S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[0:1024]}
  %two = ((s8[4096]{0:T(1024)(128)(4,1)}), s8[3072]{0:T(1024)(128)(4,1)S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[1024:4096]}
  %two.done = s8[3072]{0:T(1024)(128)(4,1)S(1)} slice-done(%two)
  ROOT %one.done = s8[1024]{0:T(1024)(128)(4,1)S(1)} slice-done(%one)
}
"""  # noqa: E501
    costs = read_program(text)
    assert [(o.kind, o.hbm_bytes, o.plain_bytes) for o in costs.operations] == [
        ("slice", 1024, 1024),
        ("slice", 3072, 3072),
    ]


def test_what_runs_on_its_own_is_asynchronous():
    """A computation started beside the program. Red when its collective counts as waited for."""
    text = """\
HloModule beside, is_scheduled=true, num_partitions=8

%beside (x: f32[1024]) -> f32[128] {
  %x = f32[1024]{0:T(1024)} parameter(0)
  ROOT %scatter = f32[128]{0:T(128)} reduce-scatter(%x), replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (a: f32[1024]) -> f32[128] {
  %a = f32[1024]{0:T(1024)} parameter(0)
  %go = ((f32[1024]{0:T(1024)}), f32[128]{0:T(128)}, u32[]{:S(2)}) async-start(%a), calls=%beside
  ROOT %wait = f32[128]{0:T(128)} async-done(%go), calls=%beside
}
"""
    (operation,) = read_program(text).operations
    (collective,) = operation.collectives
    assert (collective.kind, collective.link_bytes) == ("reduce-scatter", 4096 * 7 // 8)
    assert operation.waited_at == 1
