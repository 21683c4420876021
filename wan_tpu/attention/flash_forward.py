"""Flash attention's forward kernel for TPU: tokens stay where the products leave them.

The kernel reads and writes `[tokens, heads * head_dim]`, the form that the projections around it
have, so nothing is transposed, split into heads or padded in memory. It takes any length.

Softmax needs a reference to subtract from the scores; any is exact, as long as nothing overflows.
The usual one, the running maximum, must be known before the first exponential of a tile, so matrix
and vector units wait for each other. Here it is the logsumexp of the keys before the block: known
when the block starts, and within `log(keys)` of their maximum. Should a block's keys stand so far
above it that their sum overflows, that block is done again from its true maximum.

A matrix unit 256 wide has half of its rows idle in a product over head_dim 128, so the subtraction
costs nothing there: the reference is one more feature of the queries, against a 1 in the keys. One
of 128 has none idle, and a v7x's takes fewer cycles for 128 features than for more: there the
vector unit subtracts (`flash_blocks.Order.subtracts`).

Scores are kept as `[keys, queries]`: their sums over keys are then sums of whole registers, and the
second product, `value^T weights`, keeps the matrix unit full.

Here is the grid; what a step does, and in which order, is in `wan_tpu.attention.flash_kernel`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float32, Int32

from wan_tpu.attention.arrays import Int8KeyChunks, KeyChunks, LogSumExp, QueryChunks
from wan_tpu.attention.flash_blocks import BlockLimits, Blocks, block_limits, choose_blocks
from wan_tpu.attention.flash_kernel import Index, Step, scratch_shapes
from wan_tpu.attention.flash_short import short_forward
from wan_tpu.attention.flash_short import takes as takes_few

KERNEL_NAME = "flash_attention"
"""Programs call it so, with the head's features: `flash_attention_head128`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One of those that have this grid.

    Attributes:
        name: that programs call it by, before the head's features.
        step: what a step of the grid does.
        scratch_shapes: its memory by the names of `step`, for blocks, features and the queries'
            dtype.
        limits: of its blocks, by the chip's `jax.Device.device_kind`.
    """

    name: str
    step: type[Step]
    scratch_shapes: Callable[[Blocks, int, jnp.dtype], dict[str, Any]]
    limits: Callable[[str], BlockLimits] = block_limits


EXACT = Kernel(name=KERNEL_NAME, step=Step, scratch_shapes=scratch_shapes)


def flash_forward(
    query: QueryChunks,
    key: KeyChunks | Int8KeyChunks,
    value: KeyChunks,
    *,
    head_dim: int,
    num_keys: int,
    blocks: Blocks | None,
    interpret: bool,
    device_kind: str,
    logsumexp: bool,
    kernel: Kernel = EXACT,
    of_heads: Mapping[str, Float32[Array, "batch heads"]] = MappingProxyType({}),
    of_steps: Mapping[str, Int32[Array, "query_blocks key_blocks _"]] = MappingProxyType({}),
) -> tuple[QueryChunks, LogSumExp | None]:
    """A kernel, without a derivative; arguments as of `wan_tpu.attention.flash.flash_attention`.

    Args:
        logsumexp: whether it is written, too.
        kernel: which.
        of_heads: one number for each head of a batch item, by the names that its step has them by.
        of_steps: whole numbers for each block of queries and of keys, likewise.

    Returns:
        like `query`; [batch, heads, queries of all chunks] in float32, or None.
    """
    query_chunks, batch, query_chunk, channels = query.shape
    key_chunks, _, key_chunk, _ = key.shape
    name = f"{kernel.name}_head{head_dim}"
    if kernel is EXACT and blocks is None and takes_few(key_chunks, key_chunk):
        return short_forward(
            query,
            key,
            value,
            head_dim=head_dim,
            num_keys=num_keys,
            interpret=interpret,
            device_kind=device_kind,
            logsumexp=logsumexp,
            name=name,
        )
    limits = kernel.limits(device_kind)
    blocks = blocks or choose_blocks(
        query_chunk, key_chunks, key_chunk, limits=limits, itemsize=query.dtype.itemsize
    )
    query_blocks, key_blocks = pl.cdiv(query_chunk, blocks.queries), pl.cdiv(key_chunk, blocks.keys)
    query_steps = query_chunks * query_blocks
    key_steps = pl.cdiv(key_chunks, blocks.key_chunks) * key_blocks
    query_spec, key_spec, logsumexp_spec = _specs(blocks, head_dim, query_blocks, key_blocks)
    body = functools.partial(
        _kernel,
        step=kernel.step,
        of_heads=tuple(of_heads),
        of_steps={name: x.shape[2] for name, x in of_steps.items()},
        blocks=blocks,
        num_keys=num_keys,
        key_chunk=key_chunk,
        key_blocks=key_blocks,
    )
    numbers = [pl.BlockSpec(memory_space=pltpu.SMEM)] * (len(of_heads) + len(of_steps))
    out, *rows = pl.pallas_call(
        body,
        grid=(batch, channels // head_dim, query_steps, key_steps),
        in_specs=[*numbers, query_spec, key_spec, key_spec],
        out_specs=[query_spec, logsumexp_spec][: 1 + logsumexp],
        out_shape=_result_shapes(query, head_dim)[: 1 + logsumexp],
        scratch_shapes=kernel.scratch_shapes(blocks, head_dim, query.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=limits.vmem_bytes,
        ),
        interpret=interpret,
        name=name,
    )(*of_heads.values(), *(x.reshape(-1) for x in of_steps.values()), query, key, value)
    return out, _of_queries(rows[0]) if logsumexp else None


def _result_shapes(query: QueryChunks, head_dim: int) -> list[jax.ShapeDtypeStruct]:
    """Of the result, and of the logsumexp as the kernel writes it."""
    chunks, batch, chunk, channels = query.shape
    rows = (chunks, batch, channels // head_dim, 1, chunk)
    return [
        jax.ShapeDtypeStruct(query.shape, query.dtype),
        jax.ShapeDtypeStruct(rows, jnp.float32),
    ]


def _of_queries(rows: Float32[Array, "chunks batch heads 1 chunk"]) -> LogSumExp:
    """[batch, heads, queries of all chunks]."""
    rows = jnp.moveaxis(rows[:, :, :, 0], 0, 2)  # [batch, heads, chunks, chunk]
    return rows.reshape(*rows.shape[:2], -1)


def _specs(
    blocks: Blocks, head_dim: int, query_blocks: int, key_blocks: int
) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """Of queries and the result, of keys and values, and of the logsumexp.

    Args:
        blocks: sizes.
        head_dim: features.
        query_blocks: blocks of queries in a chunk.
        key_blocks: blocks of keys in a chunk, or in as many chunks as are fetched at a time.
    """

    def query_index(b, h, i, j):
        return (i // query_blocks, b, i % query_blocks, h)

    def key_index(b, h, i, j):
        return (j // key_blocks, b, j % key_blocks, h)

    def logsumexp_index(b, h, i, j):
        return (i // query_blocks, b, h, 0, i % query_blocks)

    return (
        pl.BlockSpec((None, None, blocks.queries, head_dim), query_index),
        pl.BlockSpec((blocks.key_chunks, None, blocks.keys, head_dim), key_index),
        pl.BlockSpec((None, None, None, 1, blocks.queries), logsumexp_index),
    )


def _kernel(
    *refs: Any,
    step: type[Step],
    of_heads: tuple[str, ...],
    of_steps: Mapping[str, int],
    blocks: Blocks,
    num_keys: int,
    key_chunk: int,
    key_blocks: int,
    **scratch: Any,
) -> None:
    """One block of queries against one block of keys.

    Args:
        refs: of `of_heads`, each [batch, heads]; of `of_steps`, each flat; of queries
            [queries, head_dim]; of keys [chunks, keys, head_dim] and values likewise; of the
            result, like the queries; of the logsumexp [1, queries] in float32, only where it is
            asked for.
        step: what is done.
        of_heads: names.
        of_steps: how many numbers a step of the grid has, by name.
        blocks: sizes.
        num_keys: real keys of all blocks.
        key_chunk: keys of a chunk.
        key_blocks: blocks of keys in a chunk, or in as many chunks as are fetched at a time.
        scratch: of the kernel, by its names.
    """
    before = len(of_heads) + len(of_steps)
    numbers, lists, arrays = refs[: len(of_heads)], refs[len(of_heads) : before], refs[before:]
    query_ref, key_ref, value_ref, out_ref, *logsumexp_ref = arrays
    head_dim = query_ref.shape[-1]
    head, i, j = (pl.program_id(0), pl.program_id(1)), pl.program_id(2), pl.program_id(3)
    place = i * pl.num_programs(3) + j
    before_chunk = j // key_blocks * blocks.key_chunks * key_chunk
    before_block = j % key_blocks * blocks.keys
    valid = jnp.minimum(blocks.key_chunks * key_chunk, num_keys - before_chunk) - before_block
    now = step(
        query=query_ref,
        key=key_ref.reshape(blocks.all_keys, head_dim),
        value=value_ref.reshape(blocks.all_keys, head_dim),
        valid=jnp.clip(valid, 0, blocks.all_keys),
        blocks=blocks,
        **{name: ref[head] for name, ref in zip(of_heads, numbers, strict=True)},
        **{
            name: functools.partial(_number, ref, place * size)
            for (name, size), ref in zip(of_steps.items(), lists, strict=True)
        },
        **scratch,
    )
    pl.when(now.begins(j))(now.start)
    pl.when(now.takes_part())(now.attend)

    @pl.when(j == pl.num_programs(3) - 1)
    def _finish() -> None:
        out, logsumexp = now.result()
        out_ref[...] = out.astype(out_ref.dtype)
        for ref in logsumexp_ref:
            ref[...] = logsumexp


def _number(ref: Any, first: Index, index: Index) -> Int32[Array, ""]:
    """One of a step's numbers."""
    return ref[first + index]
