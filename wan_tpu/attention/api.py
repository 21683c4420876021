"""The one call that models make for attention, and the choice of what carries it out.

All are differentiable, and name what a backward needs for rematerialisation policies
(`wan_tpu.attention.names`).

Works on what one device holds (or on unsharded arrays): `sequence_parallel` splits it over a mesh.
A new implementation is a function here and a name in `IMPLEMENTATIONS`.
"""

import dataclasses
from typing import TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array

from wan_tpu.attention.arrays import Device, KeyChunks, Keys, LogSumExp, Queries, QueryChunks
from wan_tpu.attention.chunked import (
    CPU_SCORES_LIMIT,
    SCORES_LIMIT,
    chunked_attention,
    chunked_backward,
    chunked_with_logsumexp,
)
from wan_tpu.attention.dot_product import GPU_PLATFORMS, cudnn_takes, dot_product_attention
from wan_tpu.attention.flash import flash_attention, flash_with_logsumexp
from wan_tpu.attention.flash_backward import flash_backward
from wan_tpu.attention.flash_blocks import CHIPS, LANES
from wan_tpu.attention.names import IMPLEMENTATIONS
from wan_tpu.attention.reference import reference_attention, reference_with_logsumexp
from wan_tpu.attention.splash import splash_attention, splash_with_logsumexp
from wan_tpu.attention.splash_backward import splash_backward
from wan_tpu.attention.splash_tiles import WIDE_CHIPS, ChipTiles, tiles_for
from wan_tpu.errors import UnknownNameError


class _SplashSettings(TypedDict):
    num_keys: int
    tiles: ChipTiles
    interpret: bool


class _FlashSettings(TypedDict):
    head_dim: int
    num_keys: int
    interpret: bool
    device_kind: str


def resolve_implementation(
    name: str,
    platform: str,
    *,
    device_kind: str = "",
    dtype: jax.typing.DTypeLike | None = None,
    head_dim: int | None = None,
    gradient: bool = False,
) -> str:
    """The concrete implementation that `name` means on a platform; never `auto`.

    `auto` is the one whose memory stays flat in the length: on a TPU flash where it suits (a chip
    that it has blocks for, heads of whole registers; where a gradient is taken, matrix units 256
    wide, for 128 wide splash's takes 18% less), else splash; cuDNN's flash kernel
    behind `jax.nn.dot_product_attention` on a GPU, else the chunked one. cuDNN takes 16-bit types
    and head sizes that are multiples of 8 only; for others `dot_product` would hold the whole score
    matrix, so `auto` is chunked there too.

    Args:
        name: one of `IMPLEMENTATIONS`.
        platform: of the devices that will run it, as `jax.Device.platform` says.
        device_kind: likewise; a v6e when not given.
        dtype: of the query; bfloat16 when not given.
        head_dim: of the query; 128, Wan's, when not given.
        gradient: whether it is chosen for training.

    Raises:
        UnknownNameError: there is no such implementation.
    """
    if name not in IMPLEMENTATIONS:
        raise UnknownNameError("attention", name, IMPLEMENTATIONS)
    if name != "auto":
        return name
    if platform == "tpu":
        chips = WIDE_CHIPS if gradient else CHIPS
        suits = device_kind in ("", *chips) and (head_dim or 128) % LANES == 0
        return "flash" if suits else "splash"
    if platform in GPU_PLATFORMS and cudnn_takes(dtype or jnp.bfloat16, head_dim or 128):
        return "dot_product"
    return "chunked"


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

    The scores, the softmax and its sums are float32 whatever the inputs are.

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
    choice = _choose(query, key, value, implementation, num_keys, interpret, device)
    match choice.name:
        case "flash":
            return _flash(query, key, value, choice)[0]
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
    choice = _choose(query, key, value, implementation, num_keys, interpret, device)
    match choice.name:
        case "flash":
            return _flash(query, key, value, choice)
        case "splash":
            return splash_with_logsumexp(query, key, value, **choice.of_splash())
        case "reference":
            return reference_with_logsumexp(query, *choice.real(key, value))
    return chunked_with_logsumexp(
        query, *choice.real(key, value), scores_limit=choice.scores_limit()
    )


def attend_chunks(
    query: QueryChunks,
    key: KeyChunks,
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
        key: likewise; its chunks may differ in number and length.
        value: like `key`.
        head_dim: features of a head.
        implementation: as in `attend`; `flash` takes the arrays as they are.
        num_keys: as in `attend`.
        device: as in `attend`.

    Returns:
        Like `query`.
    """
    if implementation == "flash":
        settings = _flash_chunks(key, head_dim, num_keys, device)
        return flash_attention(query, key, value, **settings)
    joined = (_join_chunks(x, head_dim) for x in (query, key, value))
    out = attend(*joined, implementation=implementation, num_keys=num_keys, device=device)
    return _in_chunks(out, query.shape)


def attend_chunks_with_logsumexp(
    query: QueryChunks,
    key: KeyChunks,
    value: KeyChunks,
    *,
    head_dim: int,
    implementation: str,
    num_keys: int | None = None,
    device: Device | None = None,
) -> tuple[QueryChunks, LogSumExp]:
    """`attend_chunks`, and the logsumexp of each query's scores.

    Returns:
        Like `query`; [batch, heads, chunks * chunk] float32.
    """
    if implementation == "flash":
        settings = _flash_chunks(key, head_dim, num_keys, device)
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
    choice = _choose(joined_query, joined_key, joined_value, implementation, num_keys, None, device)
    if choice.name == "flash":
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """What carries out a call of `attend`, and how.

    Attributes:
        name: an implementation, never `auto`.
        num_keys: real keys.
        interpret: whether Pallas kernels run in the interpreter.
        device: one like those that will run it.
    """

    name: str
    num_keys: int
    interpret: bool
    device: Device

    def real(self, key: Keys, value: Keys) -> tuple[Array, Array]:
        """The real keys and values.

        Padding is cut off where nothing is masked: a NaN in it cannot come back as 0 x NaN.
        """
        return key[:, : self.num_keys], value[:, : self.num_keys]

    def scores_limit(self) -> int:
        """Of the chunked implementation."""
        return CPU_SCORES_LIMIT if self.device.platform == "cpu" else SCORES_LIMIT

    def of_splash(self) -> _SplashSettings:
        """Arguments of the splash functions."""
        return {
            "num_keys": self.num_keys,
            "tiles": tiles_for(self.device.device_kind),
            "interpret": self.interpret,
        }


def _choose(
    query: Queries,
    key: Keys,
    value: Keys,
    implementation: str,
    num_keys: int | None,
    interpret: bool | None,
    device: Device | None,
) -> _Choice:
    """What the arguments of `attend` mean, after callers are held to their part of it."""
    batch, keys, heads, head_dim = key.shape
    assert value.shape == key.shape, (key.shape, value.shape)
    assert query.shape == (batch, query.shape[1], heads, head_dim), (query.shape, key.shape)
    assert num_keys is None or 1 <= num_keys <= keys, (num_keys, key.shape)
    device = device or _default_device()
    name = resolve_implementation(
        implementation,
        device.platform,
        device_kind=device.device_kind,
        dtype=query.dtype,
        head_dim=head_dim,
    )
    return _Choice(
        name=name,
        num_keys=num_keys or keys,
        interpret=bool(device.platform != "tpu" if interpret is None else interpret),
        device=device,
    )


def _flash(query: Queries, key: Keys, value: Keys, choice: _Choice) -> tuple[Queries, LogSumExp]:
    """The flash kernel on one chunk."""
    out, logsumexp = flash_with_logsumexp(
        *(x.reshape(1, *x.shape[:2], -1) for x in (query, key, value)),
        head_dim=query.shape[3],
        num_keys=choice.num_keys,
        interpret=choice.interpret,
        device_kind=choice.device.device_kind,
    )
    return out.reshape(query.shape), logsumexp


def _flash_chunks(
    key: KeyChunks, head_dim: int, num_keys: int | None, device: Device | None
) -> _FlashSettings:
    """Arguments of the flash functions."""
    device = device or _default_device()
    return {
        "head_dim": head_dim,
        "num_keys": num_keys or key.shape[0] * key.shape[2],
        "interpret": device.platform != "tpu",
        "device_kind": device.device_kind,
    }


def _default_device() -> Device:
    return jax.devices()[0]


def _in_chunks(x: Queries, shape: tuple[int, ...]) -> Array:
    """[batch, chunks * chunk, heads, head_dim] -> [chunks, batch, chunk, heads * head_dim]."""
    chunks, batch, chunk, channels = shape
    return x.reshape(batch, chunks, chunk, channels).transpose(1, 0, 2, 3)


def _join_chunks(x: QueryChunks, head_dim: int) -> Queries:
    """[chunks, batch, chunk, heads * head_dim] -> [batch, chunks * chunk, heads, head_dim]."""
    chunks, batch, chunk, channels = x.shape
    x = x.transpose(1, 0, 2, 3)  # [batch, chunks, chunk, heads * head_dim]
    return x.reshape(batch, chunks * chunk, channels // head_dim, head_dim)
