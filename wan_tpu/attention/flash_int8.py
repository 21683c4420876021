"""Flash attention over keys of 8 bits, for inference: our own kernel behind three functions.

Scores are those of queries and keys in whole numbers (SageAttention, Zhang et al. 2024,
arXiv:2410.02367), so the result is near that of exact attention, not equal to it:
`benchmarks/results/2026-11-27-flash-int8.md` says how near. The kernel is
`wan_tpu.attention.flash_int8_kernel`; there is no gradient.
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float32

from wan_tpu.attention.arrays import (
    Int8KeyChunks,
    KeyChunks,
    Keys,
    LogSumExp,
    Queries,
    QueryChunks,
)
from wan_tpu.attention.flash_blocks import LANES, Blocks, int8_block_limits
from wan_tpu.attention.flash_forward import Kernel, flash_forward
from wan_tpu.attention.flash_int8_kernel import Int8Step, InterpretedInt8Step, int8_scratch_shapes
from wan_tpu.attention.int8_keys import QuantizedKeys
from wan_tpu.errors import InputError

KERNEL_NAME = "flash_int8_attention"
"""Programs call it so, with the head's features: `flash_int8_attention_head128`."""

INT8 = Kernel(
    name=KERNEL_NAME,
    step=Int8Step,
    scratch_shapes=int8_scratch_shapes,
    limits=int8_block_limits,
)
INTERPRETED = dataclasses.replace(INT8, step=InterpretedInt8Step)

CHIPS_WITHOUT_INT8 = ("TPU7x",)
"""By `jax.Device.device_kind`: their matrix units do not multiply int8."""


def check_int8(*, head_dim: int, device_kind: str, interpret: bool) -> None:
    """Holds a chip and heads to what the kernel takes.

    Args:
        head_dim: features of a head.
        device_kind: of what will run it, as `jax.Device` says.
        interpret: whether Pallas' interpreter runs it, which takes smaller heads, too.

    Raises:
        InputError: one of them does not suit.
    """
    if not interpret and device_kind in CHIPS_WITHOUT_INT8:
        raise InputError(
            f"attention flash-int8 needs matrix units that multiply int8, and a {device_kind} has "
            "none; flash runs there"
        )
    if head_dim > LANES or (not interpret and head_dim != LANES):
        raise InputError(
            f"attention flash-int8 takes heads of {LANES} features, not of {head_dim}; auto takes "
            "any"
        )


def flash_int8_attention(
    query: Queries,
    keys: QuantizedKeys,
    value: Keys,
    *,
    num_keys: int,
    interpret: bool,
    device_kind: str = "",
) -> Queries:
    """`flash_int8_chunks` of tokens in one piece.

    Args:
        query: [batch, queries, heads, head_dim].
        keys: values [batch, keys, heads, head_dim].
        value: like the keys' values.
        num_keys: as of `flash_int8_chunks`, like what follows.
        interpret: whether Pallas' interpreter runs it.
        device_kind: of the chip.

    Returns:
        Like `query`.
    """
    chunk, values, value = (
        x.reshape(1, *x.shape[:2], -1) for x in (query, keys.values, value)
    )  # each [1, batch, tokens, heads * head_dim]
    out = flash_int8_chunks(
        chunk,
        QuantizedKeys(values, keys.scale),
        value,
        head_dim=query.shape[-1],
        num_keys=num_keys,
        interpret=interpret,
        device_kind=device_kind,
    )
    return out.reshape(query.shape)


def flash_int8_chunks(
    query: QueryChunks,
    keys: QuantizedKeys,
    value: KeyChunks,
    *,
    head_dim: int,
    num_keys: int,
    interpret: bool,
    device_kind: str = "",
    blocks: Blocks | None = None,
) -> QueryChunks:
    """softmax(query keys^T / sqrt(head_dim)) value over the first `num_keys` keys, near it.

    Tokens come in chunks, as an exchange between devices leaves them: token t of chunk c is
    number `c * chunk + t`.

    Args:
        query: [chunks, batch, query chunk, heads * head_dim]. NaN or infinity in a query makes NaN
            of its own result.
        keys: values [chunks, batch, key chunk, heads * head_dim], at most 127 in magnitude.
        value: like the keys' values.
        head_dim: features of a head: 128, or fewer where it is interpreted.
        num_keys: keys at this position and later are never attended, whatever they and their
            values hold.
        interpret: run the kernel in Pallas' interpreter, on any platform.
        device_kind: of what will run it, as `jax.Device` says; a v6e when not given.
        blocks: sizes of the tiles; chosen for the chip and lengths when not given.

    Returns:
        Like `query`.

    Raises:
        InputError: the chip or the heads do not suit, or somebody asks for a gradient.
    """
    out, _ = _forward(
        query, keys, value, head_dim, num_keys, interpret, device_kind, blocks, logsumexp=False
    )
    return out


def flash_int8_with_logsumexp(
    query: QueryChunks,
    keys: QuantizedKeys,
    value: KeyChunks,
    *,
    head_dim: int,
    num_keys: int,
    interpret: bool,
    device_kind: str = "",
    blocks: Blocks | None = None,
) -> tuple[QueryChunks, LogSumExp]:
    """`flash_int8_chunks`, and the logsumexp of each query's scores.

    Returns:
        like `query`, and [batch, heads, queries of all chunks] in float32. The scores are those
        with `keys.values * keys.scale`: of the exact scores they lack the query's product with the
        vector that was taken off all keys, over sqrt(head_dim). Results of several sets of keys can
        be merged by it where the same vector was taken off all of them.
    """
    out, logsumexp = _forward(
        query, keys, value, head_dim, num_keys, interpret, device_kind, blocks, logsumexp=True
    )
    assert logsumexp is not None
    return out, logsumexp


def _forward(
    query: QueryChunks,
    keys: QuantizedKeys,
    value: KeyChunks,
    head_dim: int,
    num_keys: int,
    interpret: bool,
    device_kind: str,
    blocks: Blocks | None,
    *,
    logsumexp: bool,
) -> tuple[QueryChunks, LogSumExp | None]:
    check_int8(head_dim=head_dim, device_kind=device_kind, interpret=interpret)

    @jax.custom_jvp
    def without_gradient(
        query: QueryChunks,
        key: Int8KeyChunks,
        scale: Float32[Array, "batch heads"],
        value: KeyChunks,
    ) -> tuple[QueryChunks, LogSumExp | None]:
        return flash_forward(
            query,
            key,
            value,
            head_dim=head_dim,
            num_keys=num_keys,
            blocks=blocks,
            interpret=interpret,
            device_kind=device_kind,
            logsumexp=logsumexp,
            kernel=INTERPRETED if interpret else INT8,
            of_heads={"key_scale": scale},
        )

    without_gradient.defjvp(_refuse_gradient)
    return without_gradient(query, keys.values, keys.scale, value)


def _refuse_gradient(primals: Any, tangents: Any) -> Any:
    raise InputError(
        "attention flash-int8 has no gradient, for its keys are whole numbers; train with flash"
    )
