"""The one call that models make for attention.

All but `flash-int8` are differentiable, and name what a backward needs for rematerialisation
policies (`wan_tpu.attention.names`). All but that one are exact: it has scores of 8 bits.

Works on what one device holds (or on unsharded arrays): `sequence_parallel` splits it over a mesh.
A new implementation is a function here and a name in `IMPLEMENTATIONS`.
"""

from typing import TypedDict

import jax.numpy as jnp
from jaxtyping import Array

from wan_tpu.attention.arrays import Device, KeyChunks, Keys, LogSumExp, Queries, QueryChunks
from wan_tpu.attention.chunked import (
    chunked_attention,
    chunked_backward,
    chunked_with_logsumexp,
)
from wan_tpu.attention.dot_product import dot_product_attention
from wan_tpu.attention.flash import flash_attention, flash_with_logsumexp
from wan_tpu.attention.flash_backward import flash_backward
from wan_tpu.attention.flash_int8 import (
    flash_int8_attention,
    flash_int8_chunks,
    flash_int8_with_logsumexp,
)
from wan_tpu.attention.int8_keys import (
    QuantizedKeys,
    mean_of_keys,
    quantize_grouped,
    quantize_keys,
)
from wan_tpu.attention.names import FLASH, FLASH_INT8
from wan_tpu.attention.reference import reference_attention, reference_with_logsumexp
from wan_tpu.attention.resolve import Choice, choose, default_device
from wan_tpu.attention.splash import splash_attention, splash_with_logsumexp
from wan_tpu.attention.splash_backward import splash_backward
from wan_tpu.attention.splash_tiles import tiles_for


class _FlashSettings(TypedDict):
    head_dim: int
    num_keys: int
    interpret: bool
    device_kind: str


def attend(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    implementation: str,
    num_keys: int | None = None,
    interpret: bool | None = None,
    device: Device | None = None,
) -> Queries:
    """softmax(query key^T / sqrt(head_dim)) value over the first `num_keys` keys.

    The scores, the softmax and its sums are float32 whatever the inputs are; `flash-int8` makes the
    scores of whole numbers.

    Args:
        query: [batch, queries, heads, head_dim].
        key: [batch, keys, heads, head_dim].
        value: [batch, keys, heads, head_dim].
        implementation: one of `IMPLEMENTATIONS`.
        num_keys: keys at this position and later are padding: whatever they hold, NaN included,
            is never attended. All are real when not given.
        interpret: run Pallas kernels in the interpreter; when not given, off a TPU only.
        device: one like those that will run it, which need not be this process's own (programs are
            also compiled for a slice that is not there); the default device when not given.

    Returns:
        [batch, queries, heads, head_dim] in the query's dtype.

    Raises:
        UnknownNameError: there is no such implementation.
    """
    choice = choose(query, key, value, implementation, num_keys, interpret, device)
    match choice.name:
        case "flash":
            return _flash(query, key, value, choice)[0]
        case "flash-int8":
            return flash_int8_attention(
                query, quantize_keys(key, choice.num_keys), value, **choice.of_flash()
            )
        case "splash":
            return splash_attention(query, key, value, **choice.of_splash())
        case "reference":
            return reference_attention(query, *choice.real(key, value))
        case "chunked":
            return chunked_attention(
                query, *choice.real(key, value), scores_limit=choice.scores_limit()
            )
    return dot_product_attention(query, *choice.real(key, value), choice.device.platform)


def attend_with_logsumexp(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    implementation: str,
    num_keys: int | None = None,
    interpret: bool | None = None,
    device: Device | None = None,
) -> tuple[Queries, LogSumExp]:
    """`attend`, and what it takes to merge the result with attention over further keys.

    `dot_product` is then the chunked one: JAX gives its logsumexp rounded to the query's dtype, and
    eight bits of it are a weight wrong by per cents.

    Returns:
        [batch, queries, heads, head_dim] in the query's dtype; the logsumexp of each query's
        scores, [batch, heads, queries] float32.
    """
    choice = choose(query, key, value, implementation, num_keys, interpret, device)
    match choice.name:
        case "flash":
            return _flash(query, key, value, choice)
        case "flash-int8":
            return _flash_int8(query, key, value, choice)
        case "splash":
            return splash_with_logsumexp(query, key, value, **choice.of_splash())
        case "reference":
            return reference_with_logsumexp(query, *choice.real(key, value))
    return chunked_with_logsumexp(
        query, *choice.real(key, value), scores_limit=choice.scores_limit()
    )


def attend_chunks(
    query: QueryChunks,
    key: KeyChunks | QuantizedKeys,
    value: KeyChunks,
    *,
    head_dim: int,
    implementation: str,
    num_keys: int | None = None,
    device: Device | None = None,
) -> QueryChunks:
    """`attend` over arrays as the devices exchange them: tokens in chunks, heads in the channels.

    Token t of chunk c is number `c * chunk + t`.

    Args:
        query: [chunks, batch, chunk, heads * head_dim].
        key: likewise; its chunks may differ in number and length. Quantised ones for `flash-int8`
            alone, which quantises others here.
        value: like `key`.
        head_dim: features of a head.
        implementation: as in `attend`; `flash` takes the arrays as they are.
        num_keys: as in `attend`.
        device: as in `attend`.

    Returns:
        Like `query`.
    """
    settings = _flash_chunks(value, head_dim, num_keys, device)
    if isinstance(key, QuantizedKeys):
        assert implementation == FLASH_INT8, implementation
        return flash_int8_chunks(query, key, value, **settings)
    if implementation == FLASH:
        return flash_attention(query, key, value, **settings)
    joined = (_join_chunks(x, head_dim) for x in (query, key, value))
    out = attend(*joined, implementation=implementation, num_keys=num_keys, device=device)
    return _in_chunks(out, query.shape)


def attend_chunks_with_logsumexp(
    query: QueryChunks,
    key: KeyChunks | QuantizedKeys,
    value: KeyChunks,
    *,
    head_dim: int,
    implementation: str,
    num_keys: int | None = None,
    device: Device | None = None,
) -> tuple[QueryChunks, LogSumExp]:
    """`attend_chunks`, and the logsumexp of each query's scores.

    Returns:
        Like `query`; [batch, heads, chunks * chunk] float32. Of quantised keys it is less what
        their mean would add: results merge where the mean is the same.
    """
    settings = _flash_chunks(value, head_dim, num_keys, device)
    if isinstance(key, QuantizedKeys):
        assert implementation == FLASH_INT8, implementation
        return flash_int8_with_logsumexp(query, key, value, **settings)
    if implementation == FLASH:
        return flash_with_logsumexp(query, key, value, **settings)
    joined = (_join_chunks(x, head_dim) for x in (query, key, value))
    out, logsumexp = attend_with_logsumexp(
        *joined, implementation=implementation, num_keys=num_keys, device=device
    )
    return _in_chunks(out, query.shape), logsumexp


def attend_chunks_backward(
    query: QueryChunks,
    key: KeyChunks,
    value: KeyChunks,
    out: QueryChunks,
    logsumexp: LogSumExp,
    d_out: QueryChunks,
    *,
    head_dim: int,
    implementation: str,
    num_keys: int | None = None,
    device: Device | None = None,
    d_logsumexp: LogSumExp | None = None,
) -> tuple[QueryChunks, KeyChunks, KeyChunks]:
    """The gradient of attention over these keys, which may be some of all that were attended.

    `reference` and `dot_product` are then the chunked one.

    Args:
        query: [chunks, batch, chunk, heads * head_dim].
        key: as in `attend_chunks`.
        value: like `key`.
        out: attention over all keys, like `query`.
        logsumexp: of the scores of all keys, [batch, heads, chunks * chunk].
        d_out: gradient of `out`.
        head_dim: features of a head.
        implementation: as in `attend`.
        num_keys: of these keys, as in `attend`.
        device: as in `attend`.
        d_logsumexp: gradient of `logsumexp`; zero when None.

    Returns:
        Gradients like `query`, `key` and `value`: what these keys give. Of padding keys zero.
    """
    joined_query, joined_key, joined_value = (
        _join_chunks(x, head_dim) for x in (query, key, value)
    )
    choice = choose(joined_query, joined_key, joined_value, implementation, num_keys, None, device)
    assert choice.name != FLASH_INT8, "its forward refuses to be differentiated"
    if choice.name == FLASH:
        return flash_backward(
            query, key, value, out, logsumexp, d_out,
            head_dim=head_dim, num_keys=choice.num_keys, interpret=choice.interpret,
            d_logsumexp=d_logsumexp,
        )  # fmt: skip
    of_result = (_join_chunks(out, head_dim), logsumexp, _join_chunks(d_out, head_dim))
    if choice.name == "splash":
        d_query, d_key, d_value = splash_backward(
            joined_query, joined_key, joined_value, *of_result,
            num_keys=choice.num_keys, tiles=tiles_for(choice.device.device_kind).backward,
            interpret=choice.interpret, d_logsumexp=d_logsumexp,
        )  # fmt: skip
    else:
        d_query, *d_keys = chunked_backward(
            joined_query, *choice.real(joined_key, joined_value), *of_result,
            d_logsumexp=d_logsumexp, scores_limit=choice.scores_limit(),
        )  # fmt: skip
        padding = joined_key.shape[1] - choice.num_keys
        d_key, d_value = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in d_keys)
    return (
        _in_chunks(d_query, query.shape),
        _in_chunks(d_key, key.shape),
        _in_chunks(d_value, value.shape),
    )


def _flash(query: Queries, key: Keys, value: Keys, choice: Choice) -> tuple[Queries, LogSumExp]:
    """The flash kernel on one chunk."""
    out, logsumexp = flash_with_logsumexp(
        *(x.reshape(1, *x.shape[:2], -1) for x in (query, key, value)),
        head_dim=query.shape[3],
        **choice.of_flash(),
    )
    return out.reshape(query.shape), logsumexp


def _flash_int8(
    query: Queries, key: Keys, value: Keys, choice: Choice
) -> tuple[Queries, LogSumExp]:
    """The kernel of 8 bits on one chunk."""
    chunk, whole, value = (x.reshape(1, *x.shape[:2], -1) for x in (query, key, value))
    keys = quantize_grouped(whole, head_dim=query.shape[3], num_keys=choice.num_keys)
    out, logsumexp = flash_int8_with_logsumexp(
        chunk,
        QuantizedKeys(keys.values, keys.scale[0]),
        value,
        head_dim=query.shape[3],
        **choice.of_flash(),
    )
    logsumexp += _scores_of_mean(query, key, choice.num_keys)  # which the kernel does not see
    return out.reshape(query.shape), logsumexp


def _scores_of_mean(query: Queries, key: Keys, num_keys: int) -> LogSumExp:
    """What the mean of the keys adds to every score of a query."""
    scaled = query.astype(jnp.float32) * query.shape[-1] ** -0.5
    return (scaled * mean_of_keys(key, num_keys)).sum(-1).swapaxes(1, 2)


def _flash_chunks(
    key: KeyChunks, head_dim: int, num_keys: int | None, device: Device | None
) -> _FlashSettings:
    """Arguments of the flash functions."""
    device = device or default_device()
    return {
        "head_dim": head_dim,
        "num_keys": num_keys or key.shape[0] * key.shape[2],
        "interpret": device.platform != "tpu",
        "device_kind": device.device_kind,
    }


def _in_chunks(x: Queries, shape: tuple[int, ...]) -> Array:
    """[batch, chunks * chunk, heads, head_dim] -> [chunks, batch, chunk, heads * head_dim]."""
    chunks, batch, chunk, channels = shape
    return x.reshape(batch, chunks, chunk, channels).transpose(1, 0, 2, 3)


def _join_chunks(x: QueryChunks, head_dim: int) -> Queries:
    """[chunks, batch, chunk, heads * head_dim] -> [batch, chunks * chunk, heads, head_dim]."""
    chunks, batch, chunk, channels = x.shape
    x = x.transpose(1, 0, 2, 3)  # [batch, chunks, chunk, heads * head_dim]
    return x.reshape(batch, chunks * chunk, channels // head_dim, head_dim)
