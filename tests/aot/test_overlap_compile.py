"""Transfers beside other work, by the real TPU compiler: what each of the options does.

A layer as the model's are: gathered weights, heads traded for tokens and back. The 14B's own step
is in `test_step_compile.py`.
"""

import collections

import jax
import jax.numpy as jnp
import pytest

from wan_tpu.attention.sequence_parallel import group_heads, sharded_attend, ungroup_heads
from wan_tpu.planner.compile import slice_devices
from wan_tpu.planner.hardware import find_slice
from wan_tpu.planner.program import read_program
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import make_mesh, named
from wan_tpu.sharding.rules import RESIDUAL, TRANSFERS_BESIDE_WORK
from wan_tpu.stage import abstract

LAYERS, WIDTH, TOKENS = 2, 1024, 8192

pytestmark = pytest.mark.slow
"""Four compilations; the step's test holds what they bring together."""

GATHER = (
    "xla_enable_async_all_gather",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
)
TRADE = "xla_tpu_enable_async_all_to_all"


@pytest.fixture(scope="module")
def lowered():
    """Queries, keys, values and what comes after attention, each a product with its weight."""
    layout = Layout(dp=2, sp=4)
    mesh = make_mesh(layout, slice_devices(find_slice("v6e-8")))

    def layer(hidden, weights):
        *inputs, out = (jax.lax.with_sharding_constraint(w, named(mesh)) for w in weights)
        attended = sharded_attend(
            *(group_heads(hidden @ w, mesh=mesh, layout=layout) for w in inputs),
            head_dim=128,
            mesh=mesh,
            layout=layout,
            implementation="flash",
        )
        return hidden + jnp.tanh(ungroup_heads(attended, mesh=mesh) @ out), None

    hidden = abstract((2, TOKENS, WIDTH), jnp.bfloat16, named(mesh, *RESIDUAL))
    weight = abstract((LAYERS, WIDTH, WIDTH), jnp.bfloat16, named(mesh, None, ("dp", "sp")))
    step = jax.jit(lambda hidden, weights: jax.lax.scan(layer, hidden, weights)[0])
    with jax.set_mesh(mesh):
        return step.trace(hidden, [weight] * 4).lower(lowering_platforms=("tpu",))


def beside_work(lowered, *names):
    """Of the four gathers and the four all-to-alls of a layer, how many go on beside other work."""
    options = {name: TRANSFERS_BESIDE_WORK[name] for name in names}
    costs = read_program(lowered.compile(compiler_options=options or None).as_text())
    found = [o for o in costs.operations if o.collectives]
    assert collections.Counter(o.kind for o in found) == {"all-gather": 4, "all-to-all": 4}
    beside = collections.Counter(o.kind for o in found if o.waited_at is not None)
    return beside["all-gather"], beside["all-to-all"]


def test_all_but_one_of_a_kind_goes_on_beside_other_work(lowered):
    """One has nothing before it (the first weight) or beside it (the last thing that attention
    waits for). Gathers of so small a layer are not started while an all-to-all is under way."""
    assert {*GATHER, TRADE} == TRANSFERS_BESIDE_WORK.keys()
    assert beside_work(lowered, *GATHER) == (3, 0)
    assert beside_work(lowered, *GATHER, TRADE) == (0, 3)


@pytest.mark.parametrize("name", GATHER)
def test_neither_option_of_gathers_does_anything_alone(name, lowered):
    """Red once one of them is enough: then the other can go."""
    assert beside_work(lowered, name) == (0, 0)
