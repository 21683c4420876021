"""The one call that models make for attention, and the choice of what carries it out.

Works on what one device holds (or on unsharded arrays): `sequence_parallel` splits it over a mesh.
A new implementation is a function here and a name in `IMPLEMENTATIONS`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from wan_tpu.attention.chunked import chunked_attention
from wan_tpu.attention.flash import LANES, flash_attention
from wan_tpu.attention.reference import reference_attention
from wan_tpu.attention.splash import WIDE_CHIPS, splash_attention, tiles_for
from wan_tpu.errors import UnknownNameError

IMPLEMENTATIONS = ("auto", "reference", "dot_product", "chunked", "splash", "flash")

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


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    implementation: str,
    num_keys: int | None = None,
    interpret: bool | None = None,
    device: Any = None,
) -> jax.Array:
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

    Returns:
        [batch, queries, heads, head_dim] in the query's dtype.

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
        flat = (x.reshape(1, *x.shape[:2], -1) for x in (query, key, value))
        head_dim = query.shape[3]
        out = flash_attention(*flat, head_dim=head_dim, num_keys=num_keys, interpret=interpret)
        return out.reshape(query.shape)
    if name == "splash":
        return splash_attention(
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
) -> jax.Array:
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

    Returns:
        Like `query`.
    """
    device = device or jax.devices()[0]
    num_keys = num_keys or key.shape[0] * key.shape[2]
    if implementation == "flash":
        interpret = device.platform != "tpu"
        return flash_attention(
            query, key, value, head_dim=head_dim, num_keys=num_keys, interpret=interpret
        )
    chunks, batch, chunk, channels = query.shape
    out = attend(
        *(_join_chunks(x, head_dim) for x in (query, key, value)),
        implementation=implementation,
        num_keys=num_keys,
        device=device,
    )
    return out.reshape(batch, chunks, chunk, channels).transpose(1, 0, 2, 3)


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
