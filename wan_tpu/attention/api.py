"""The one call that models make for attention, and the choice of what carries it out.

Works on what one device holds (or on unsharded arrays): `sequence_parallel` splits it over a mesh.
A new implementation is a function here and a name in `IMPLEMENTATIONS`.
"""

import functools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from wan_tpu.attention.chunked import chunked_attention, chunked_with_logsumexp
from wan_tpu.attention.flash import LANES, flash_attention, flash_with_logsumexp
from wan_tpu.attention.names import IMPLEMENTATIONS
from wan_tpu.attention.reference import reference_attention, reference_with_logsumexp
from wan_tpu.attention.splash import WIDE_CHIPS, splash_attention, splash_with_logsumexp, tiles_for
from wan_tpu.errors import UnknownNameError

GPU_PLATFORMS = ("gpu", "cuda", "rocm")

_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
_CUDNN_MAX_HEAD_DIM = 128  # of every card; Hopper alone takes 256


def resolve_implementation(
    name: str,
    platform: str,
    *,
    device_kind: str = "",
    dtype: jax.typing.DTypeLike | None = None,
    head_dim: int | None = None,
) -> str:
    """The concrete implementation that `name` means on a platform; never `auto`.

    `auto` is the one whose memory stays flat in the length: on a TPU flash where it suits (matrix
    units 256 wide, heads of whole registers), else splash; cuDNN's flash kernel
    behind `jax.nn.dot_product_attention` on a GPU, else the chunked one. cuDNN takes 16-bit types
    and head sizes that are multiples of 8 only; for others `dot_product` would hold the whole score
    matrix, so `auto` is chunked there too.

    Args:
        name: one of `IMPLEMENTATIONS`.
        platform: of the devices that will run it, as `jax.Device.platform` says.
        device_kind: likewise; a v6e when not given.
        dtype: of the query; bfloat16 when not given.
        head_dim: of the query; 128, Wan's, when not given.

    Raises:
        UnknownNameError: there is no such implementation.
    """
    if name not in IMPLEMENTATIONS:
        raise UnknownNameError("attention", name, IMPLEMENTATIONS)
    if name != "auto":
        return name
    if platform == "tpu":
        suits = device_kind in ("", *WIDE_CHIPS) and (head_dim or 128) % LANES == 0
        return "flash" if suits else "splash"
    if platform in GPU_PLATFORMS and _cudnn_takes(dtype or jnp.bfloat16, head_dim or 128):
        return "dot_product"
    return "chunked"


@overload
def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    implementation: str,
    num_keys: int | None = ...,
    interpret: bool | None = ...,
    device: Any = ...,
    with_logsumexp: Literal[False] = ...,
) -> jax.Array: ...


@overload
def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    implementation: str,
    num_keys: int | None = ...,
    interpret: bool | None = ...,
    device: Any = ...,
    with_logsumexp: Literal[True],
) -> tuple[jax.Array, jax.Array]: ...


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    implementation: str,
    num_keys: int | None = None,
    interpret: bool | None = None,
    device: Any = None,
    with_logsumexp: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """softmax(query key^T / sqrt(head_dim)) value over the first `num_keys` keys.

    The scores, the softmax and its sums are float32 whatever the inputs are.

    Args:
        query: [batch, queries, heads, head_dim].
        key: [batch, keys, heads, head_dim].
        value: [batch, keys, heads, head_dim].
        implementation: one of `IMPLEMENTATIONS`.
        num_keys: keys at this position and later are padding: whatever they hold, NaN included,
            is never attended. All are real when not given.
        interpret: run Pallas kernels in the interpreter; when not given, off a TPU only.
        device: a `jax.Device` like those that will run it, which need not be this process's own
            (programs are also compiled for a slice that is not there); the default device when not
            given.
        with_logsumexp: for merging with attention over further keys. `dot_product` is then the
            chunked one: JAX gives its logsumexp rounded to the query's dtype, and eight bits of it
            are a weight wrong by per cents.

    Returns:
        [batch, queries, heads, head_dim] in the query's dtype; with the logsumexp of each query's
        scores, [batch, heads, queries] float32, if it is asked for.

    Raises:
        UnknownNameError: there is no such implementation.
    """
    _check(query, key, value, num_keys)
    device = device or jax.devices()[0]
    name = resolve_implementation(
        implementation,
        device.platform,
        device_kind=device.device_kind,
        dtype=query.dtype,
        head_dim=query.shape[3],
    )
    num_keys = num_keys or key.shape[1]
    interpret = bool(device.platform != "tpu" if interpret is None else interpret)
    if name == "flash":
        out, logsumexp = flash_with_logsumexp(
            *(x.reshape(1, *x.shape[:2], -1) for x in (query, key, value)),
            head_dim=query.shape[3],
            num_keys=num_keys,
            interpret=interpret,
        )
        out = out.reshape(query.shape)
        return (out, logsumexp) if with_logsumexp else out
    if name == "splash":
        splash = splash_with_logsumexp if with_logsumexp else splash_attention
        return splash(
            query,
            key,
            value,
            num_keys=num_keys,
            tiles=tiles_for(device.device_kind),
            interpret=interpret,
        )
    # Padding is cut off before the others see it: nothing is left to be masked, and a NaN in it
    # cannot come back as 0 x NaN.
    key, value = key[:, :num_keys], value[:, :num_keys]
    if with_logsumexp:
        exact = reference_with_logsumexp if name == "reference" else chunked_with_logsumexp
        return exact(query, key, value)
    if name == "reference":
        return reference_attention(query, key, value)
    if name == "chunked":
        return chunked_attention(query, key, value)
    return _dot_product_attention(query, key, value, device.platform)


def attend_chunks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    head_dim: int,
    implementation: str,
    num_keys: int | None = None,
    device: Any = None,
    with_logsumexp: bool = False,
) -> Any:
    """`attend` over arrays as the devices exchange them: tokens in chunks, heads in the channels.

    Token t of chunk c is number `c * chunk + t`.

    Args:
        query: [chunks, batch, chunk, heads * head_dim].
        key: likewise; its chunks may differ in number and length.
        value: like `key`.
        head_dim: features of a head.
        implementation: as in `attend`; `flash` takes the arrays as they are.
        num_keys: as in `attend`.
        device: as in `attend`.
        with_logsumexp: as in `attend`.

    Returns:
        Like `query`; with the logsumexp of each query's scores, [batch, heads, chunks * chunk]
        float32, if it is asked for.
    """
    device = device or jax.devices()[0]
    chunks, batch, chunk, channels = query.shape
    if implementation == "flash":
        flash = flash_with_logsumexp if with_logsumexp else flash_attention
        return flash(
            query,
            key,
            value,
            head_dim=head_dim,
            num_keys=num_keys or key.shape[0] * key.shape[2],
            interpret=device.platform != "tpu",
        )
    attend_joined = functools.partial(
        attend,
        *(_join_chunks(x, head_dim) for x in (query, key, value)),
        implementation=implementation,
        num_keys=num_keys,
        device=device,
    )

    def in_chunks(out: jax.Array) -> jax.Array:
        return out.reshape(batch, chunks, chunk, channels).transpose(1, 0, 2, 3)

    if with_logsumexp:
        out, logsumexp = attend_joined(with_logsumexp=True)
        return in_chunks(out), logsumexp
    return in_chunks(attend_joined())


def _join_chunks(x: jax.Array, head_dim: int) -> jax.Array:
    """[chunks, batch, chunk, heads * head_dim] -> [batch, chunks * chunk, heads, head_dim]."""
    chunks, batch, chunk, channels = x.shape
    x = x.transpose(1, 0, 2, 3)  # [batch, chunks, chunk, heads * head_dim]
    return x.reshape(batch, chunks * chunk, channels // head_dim, head_dim)


def _dot_product_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, platform: str
) -> jax.Array:
    """`jax.nn.dot_product_attention`: cuDNN where it can, else XLA with the whole score matrix."""
    cudnn = platform in GPU_PLATFORMS and _cudnn_takes(query.dtype, query.shape[3])
    # JAX's own default is XLA even on a GPU, so cuDNN must be named.
    return jax.nn.dot_product_attention(
        query, key, value, implementation="cudnn" if cudnn else "xla"
    )


def _check(query: jax.Array, key: jax.Array, value: jax.Array, num_keys: int | None) -> None:
    """Holds callers to their part of `attend`."""
    batch, keys, heads, head_dim = key.shape
    assert value.shape == key.shape, (key.shape, value.shape)
    assert query.shape == (batch, query.shape[1], heads, head_dim), (query.shape, key.shape)
    assert num_keys is None or 1 <= num_keys <= keys, (num_keys, key.shape)


def _cudnn_takes(dtype: jax.typing.DTypeLike, head_dim: int) -> bool:
    return (
        jnp.dtype(dtype) in _CUDNN_DTYPES and head_dim % 8 == 0 and head_dim <= _CUDNN_MAX_HEAD_DIM
    )
