"""The program reader on small real TPU programs, against arithmetic by hand."""

import jax
import jax.numpy as jnp
import pytest

from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import named

MIB = 2**20


def test_a_product_in_a_scan_counts_once_a_turn(compile_for_tpu):
    def f(x, weights):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    costs, _ = compile_for_tpu(f, ((256, 512), jnp.bfloat16, ()), ((7, 512, 512), jnp.bfloat16, ()))
    assert costs.total("flops") == 7 * 2 * 256 * 512 * 512
    assert costs.unknown_loops == ()
    assert {o.times for o in costs.operations if o.flops} == {7}


def test_products_of_int8_count_apart_and_their_weights_by_the_slice(compile_for_tpu):
    """The compiler slices a stack of int8 through another tiling of the same bytes: red when that
    counts as all layers in every turn."""
    from wan_tpu.int8 import int8_linear

    def f(x, weights, scales):
        def layer(x, layer):
            return int8_linear(x, *layer), None

        return jax.lax.scan(layer, x, (weights, scales))[0]

    layers, tokens, width = 20, 1024, 2048
    costs, _ = compile_for_tpu(
        f,
        ((tokens, width), jnp.bfloat16, ()),
        ((layers, width, width), jnp.int8, ()),
        ((layers, width), jnp.float32, ()),
    )
    assert costs.total("flops") == layers * 2 * tokens * width * width
    assert costs.total("int8_flops") == costs.total("flops")
    stack = layers * width * width
    assert stack < costs.total("hbm_bytes") < 3.5 * stack


def test_a_scan_in_a_scan_multiplies(compile_for_tpu):
    def inner(x, w):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ w), x), None

    def f(x, weights):
        return jax.lax.scan(inner, x, weights)[0]

    costs, _ = compile_for_tpu(f, ((256, 512), jnp.bfloat16, ()), ((3, 512, 512), jnp.bfloat16, ()))
    assert costs.total("flops") == 15 * 2 * 256 * 512 * 512


def test_a_data_dependent_loop_is_named_and_counted_once(compile_for_tpu):
    def f(x):
        return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x @ x + 1, x)

    costs, _ = compile_for_tpu(f, ((256, 256), jnp.float32, ()))
    assert len(costs.unknown_loops) == 1
    assert costs.total("flops") == 2 * 256**3


def test_a_fusion_counts_its_operands_and_result_once(compile_for_tpu):
    shape = (8192, 4096)  # 128 MiB each: more than VMEM, so all of it stays in HBM

    def f(a, b, c):
        return jnp.tanh(a * b + c) * a

    costs, _ = compile_for_tpu(f, *[(shape, jnp.float32, ())] * 3)
    assert costs.total("plain_bytes") == 4 * 128 * MIB
    assert costs.total("hbm_bytes") == 4 * 128 * MIB
    assert (costs.total("flops"), costs.total("link_bytes")) == (0, 0)


def test_scanned_weights_count_by_the_slice_and_whole_by_the_plain_rule(compile_for_tpu):
    def f(x, weights):
        return jax.lax.scan(lambda x, w: (x + w, None), x, weights)[0]

    costs, _ = compile_for_tpu(
        f, ((8192, 4096), jnp.float32, ()), ((3, 8192, 4096), jnp.float32, ())
    )
    # Each turn reads x and one slice and writes x; before and after, x may be copied.
    turns = [o for o in costs.operations if o.times == 3]
    assert sum(o.hbm_bytes for o in turns) == pytest.approx(3 * 128 * MIB, rel=1e-4)
    assert sum(o.plain_bytes for o in turns) == pytest.approx(5 * 128 * MIB, rel=1e-4)


def test_an_update_in_place_moves_the_update(compile_for_tpu):
    def f(cache, part, at):
        return jax.lax.dynamic_update_slice(cache, part, (at, 0))

    costs, _ = compile_for_tpu(
        f,
        ((65_536, 4096), jnp.float32, ()),  # 1 GiB
        ((8192, 4096), jnp.float32, ()),  # 128 MiB
        ((), jnp.int32, ()),
        donate=(0,),
    )
    assert costs.total("hbm_bytes") == pytest.approx(2 * 128 * MIB, rel=1e-3)
    assert costs.total("plain_bytes") >= 2 * 1024 * MIB


def test_an_asynchronous_copy_counts_once(compile_for_tpu):
    costs, text = compile_for_tpu(
        lambda x: jnp.linalg.norm(x @ x.T), ((1024, 1024), jnp.bfloat16, ())
    )
    starts, dones = text.count(" copy-start("), text.count(" copy-done(")
    assert starts == dones
    assert starts >= 1, "the test needs a program with an asynchronous copy"
    assert sum(o.kind == "copy" for o in costs.operations) >= starts
    assert not any("done" in o.name for o in costs.operations)


BYTES = 4 * 1024 * 512


@pytest.mark.parametrize(
    ("kind", "out", "expected"),
    [
        ("all-gather", (), BYTES * 3 // 4),
        ("all-to-all", (None, "sp"), BYTES // 4 * 3 // 4),
    ],
)
def test_collectives_count_what_each_chip_sends(compile_for_tpu, kind, out, expected):
    costs, _ = compile_for_tpu(
        lambda x: x * 1.0,
        ((1024, 512), jnp.float32, ("sp",)),
        name="v6e-4",
        layout=Layout(sp=4),
        out=out,
    )
    kinds = costs.collectives_by_kind()
    assert kinds == {kind: {"runs": 1, "link_bytes": expected}}


def test_all_reduce_sends_twice_and_a_group_is_not_the_slice(compile_for_tpu, tpu_mesh):
    layout = Layout(dp=2, tp=2)
    mesh = tpu_mesh("v6e-4", layout)

    def f(x, w):
        y = jax.lax.with_sharding_constraint(x @ w, named(mesh, "dp", None))
        return jnp.tanh(y)

    costs, _ = compile_for_tpu(
        f,
        ((512, 1024), jnp.float32, ("dp", "tp")),
        ((1024, 512), jnp.float32, ("tp", None)),
        name="v6e-4",
        layout=layout,
    )
    sent = [c for o in costs.operations for c in o.collectives]
    assert {c.group_size for c in sent} == {2}
    # All-reduce, or reduce-scatter and all-gather of the same: 2 x (1/2) of [256, 512] float32.
    # The permutes of a windowed product send as much.
    assert sum(c.link_bytes for c in sent) == pytest.approx(256 * 512 * 4, rel=0.01)
    assert costs.total("flops") == 2 * 256 * 512 * 512


def test_an_attention_kernel_shows_its_shapes(compile_for_tpu, tpu_mesh):
    from wan_tpu.attention.api import attend

    mesh = tpu_mesh("v6e-1", Layout())
    whole = jax.sharding.PartitionSpec()

    def local(q, k, v):
        return attend(q, k, v, implementation="splash", device=mesh.devices.flat[0])

    def f(q, k, v):
        return jax.shard_map(local, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)(
            q, k, v
        )

    costs, _ = compile_for_tpu(f, *[((1, 256, 3, 128), jnp.bfloat16, ())] * 3)
    (kernel,) = [o for o in costs.operations if o.kind == "kernel"]
    assert kernel.attention is not None
    shape = kernel.attention
    assert (shape.heads, shape.queries, shape.keys, shape.head_dim) == (3, 256, 256, 128)
    assert kernel.flops == 2 * 2 * 3 * 256 * 256 * 128


def test_a_weight_s_gradient_is_scattered(compile_for_tpu):
    """Red when the fusion of an all-reduce and its slice sends what an all-reduce does."""
    costs, text = compile_for_tpu(
        lambda x, d_out: x.T @ d_out,
        *[((2048, 1024), jnp.bfloat16, ("sp",))] * 2,
        name="v6e-4",
        layout=Layout(sp=4),
        out=("sp",),
    )
    assert " reduce-scatter(" not in text
    kinds = costs.collectives_by_kind()
    assert kinds == {"reduce-scatter": {"runs": 1, "link_bytes": 1024 * 1024 * 2 * 3 // 4}}


@pytest.mark.parametrize("implementation", ["splash", "flash"])
def test_a_gradient_s_kernel_is_attention_of_five_products(
    compile_for_tpu, tpu_mesh, implementation
):
    """Red when it goes for a forward kernel, or for none: most of a training's time is in it."""
    from wan_tpu.attention.api import attend_chunks

    mesh = tpu_mesh("v6e-1", Layout())
    whole = jax.sharding.PartitionSpec()

    def local(q, k, d_out):
        def attention(q, k):
            return attend_chunks(
                q, k, k, head_dim=128, implementation=implementation, num_keys=500,
                device=mesh.devices.flat[0],
            )  # fmt: skip

        return jax.vjp(attention, q, k)[1](d_out)

    def f(*arrays):
        return jax.shard_map(local, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)(
            *arrays
        )

    costs, _ = compile_for_tpu(
        f, *[((chunks, 1, 256, 3 * 128), jnp.bfloat16, ()) for chunks in (3, 2, 3)]
    )
    kernels = [o for o in costs.operations if o.attention is not None]
    backward, forward = sorted(kernels, key=lambda o: not o.attention.is_backward)
    assert (backward.attention.products, forward.attention.products) == (5, 2)
    for kernel in kernels:
        shape = kernel.attention
        assert (shape.heads, shape.head_dim, shape.keys) == (3, 128, 512)
        assert 768 <= shape.queries <= 1024
        assert kernel.flops == 2 * shape.products * 3 * shape.queries * 512 * 128


def test_a_convolution_counts_no_padding_of_its_window(compile_for_tpu):
    def f(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    costs, text = compile_for_tpu(
        f, ((1, 32, 32, 128), jnp.bfloat16, ()), ((3, 3, 128, 256), jnp.bfloat16, ())
    )
    # The compiler makes 8 x 5 columns of the 32 and fills them up, so each of 40 meets 3 taps; of
    # the rows, 3 x 32 - 2 pairs of an output and a tap hit the picture.
    assert "window={size=3x3 pad=1_1x0_0}" in text
    assert "bf16[32,8,5,256]" in text
    assert costs.total("flops") == 2 * 128 * 256 * (3 * 32 - 2) * (3 * 40)


def test_of_the_branches_of_a_conditional_the_costliest_counts(compile_for_tpu):
    """Red when all of them do: ring attention has one with padding and one without."""

    def f(which, x):
        branches = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x]
        return jax.lax.switch(which, branches, x)

    costs, _ = compile_for_tpu(f, ((), jnp.int32, ()), ((512, 512), jnp.bfloat16, ()))
    assert costs.total("flops") == 2 * 2 * 512**3
