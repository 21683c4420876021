"""Flash attention for TPU with its gradient: our own kernels behind two functions.

The kernels are in `wan_tpu.attention.flash_forward` and `wan_tpu.attention.flash_backward`. The
backward needs the result and the logsumexp of each query; both carry a name, so that a
`jax.checkpoint` policy `save_only_these_names(ATTENTION_OUT, ATTENTION_LOGSUMEXP)`
(`wan_tpu.attention.names`) keeps them, and the forward kernel runs once.
"""

import dataclasses
import functools

import jax
from jax.ad_checkpoint import checkpoint_name

from wan_tpu.attention.arrays import KeyChunks, LogSumExp, QueryChunks
from wan_tpu.attention.flash_backward import flash_backward
from wan_tpu.attention.flash_blocks import Blocks
from wan_tpu.attention.flash_forward import flash_forward
from wan_tpu.attention.names import ATTENTION_LOGSUMEXP, ATTENTION_OUT


def flash_attention(
    query: QueryChunks,
    key: KeyChunks,
    value: KeyChunks,
    *,
    head_dim: int,
    num_keys: int,
    interpret: bool,
    device_kind: str = "",
    blocks: Blocks | None = None,
) -> QueryChunks:
    """softmax(query key^T / sqrt(head_dim)) value over the first `num_keys` keys; differentiable.

    Tokens come in chunks, as an exchange between devices leaves them: token t of chunk c is
    number `c * chunk + t`.

    Args:
        query: [chunks, batch, query chunk, heads * head_dim].
        key: [chunks, batch, key chunk, heads * head_dim].
        value: like `key`.
        head_dim: features of a head; on a TPU a multiple of 128.
        num_keys: keys at this position and later are never attended, whatever they hold; their
            gradient is zero.
        interpret: run the kernels in Pallas' interpreter, on any platform.
        device_kind: of what will run them, as `jax.Device` says; a v6e when not given.
        blocks: sizes of the forward's tiles; chosen for the chip and lengths when not given.

    Returns:
        Like `query`.
    """
    settings = _Settings(
        head_dim=head_dim,
        num_keys=num_keys,
        interpret=interpret,
        device_kind=device_kind,
        blocks=blocks,
    )
    return _attention(query, key, value, settings)


def flash_with_logsumexp(
    query: QueryChunks,
    key: KeyChunks,
    value: KeyChunks,
    *,
    head_dim: int,
    num_keys: int,
    interpret: bool,
    device_kind: str = "",
    blocks: Blocks | None = None,
) -> tuple[QueryChunks, LogSumExp]:
    """`flash_attention`, and the logsumexp of each query's scores; both are differentiable.

    Returns:
        like `query`, and [batch, heads, queries of all chunks] in float32.
    """
    settings = _Settings(
        head_dim=head_dim,
        num_keys=num_keys,
        interpret=interpret,
        device_kind=device_kind,
        blocks=blocks,
    )
    return _with_logsumexp(query, key, value, settings)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """What is no array of a call; hashable, as `jax.custom_vjp` asks."""

    head_dim: int
    num_keys: int
    interpret: bool
    device_kind: str
    blocks: Blocks | None


_Residuals = tuple[QueryChunks, KeyChunks, KeyChunks, QueryChunks, LogSumExp]
"""Query, key, value, result and logsumexp."""


def _forward(
    query: QueryChunks, key: KeyChunks, value: KeyChunks, settings: _Settings, *, logsumexp: bool
) -> tuple[QueryChunks, LogSumExp | None]:
    return flash_forward(
        query,
        key,
        value,
        head_dim=settings.head_dim,
        num_keys=settings.num_keys,
        interpret=settings.interpret,
        device_kind=settings.device_kind,
        blocks=settings.blocks,
        logsumexp=logsumexp,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(
    query: QueryChunks, key: KeyChunks, value: KeyChunks, settings: _Settings
) -> QueryChunks:
    return _forward(query, key, value, settings, logsumexp=False)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _with_logsumexp(
    query: QueryChunks, key: KeyChunks, value: KeyChunks, settings: _Settings
) -> tuple[QueryChunks, LogSumExp]:
    out, logsumexp = _forward(query, key, value, settings, logsumexp=True)
    assert logsumexp is not None
    return out, logsumexp


def _with_logsumexp_kept(
    query: QueryChunks, key: KeyChunks, value: KeyChunks, settings: _Settings
) -> tuple[tuple[QueryChunks, LogSumExp], _Residuals]:
    """The results, and what the backward needs."""
    out, logsumexp = _forward(query, key, value, settings, logsumexp=True)
    assert logsumexp is not None
    out = checkpoint_name(out, ATTENTION_OUT)
    logsumexp = checkpoint_name(logsumexp, ATTENTION_LOGSUMEXP)
    return (out, logsumexp), (query, key, value, out, logsumexp)


def _attention_kept(
    query: QueryChunks, key: KeyChunks, value: KeyChunks, settings: _Settings
) -> tuple[QueryChunks, _Residuals]:
    (out, _), kept = _with_logsumexp_kept(query, key, value, settings)
    return out, kept


def _gradients(
    settings: _Settings, kept: _Residuals, d_out: QueryChunks, d_logsumexp: LogSumExp | None
) -> tuple[QueryChunks, KeyChunks, KeyChunks]:
    return flash_backward(
        *kept,
        d_out,
        head_dim=settings.head_dim,
        num_keys=settings.num_keys,
        interpret=settings.interpret,
        d_logsumexp=d_logsumexp,
    )


def _attention_backward(
    settings: _Settings, kept: _Residuals, d_out: QueryChunks
) -> tuple[QueryChunks, KeyChunks, KeyChunks]:
    return _gradients(settings, kept, d_out, None)


def _with_logsumexp_backward(
    settings: _Settings, kept: _Residuals, d_results: tuple[QueryChunks, LogSumExp]
) -> tuple[QueryChunks, KeyChunks, KeyChunks]:
    return _gradients(settings, kept, *d_results)


_attention.defvjp(_attention_kept, _attention_backward)
_with_logsumexp.defvjp(_with_logsumexp_kept, _with_logsumexp_backward)
