"""`jax.nn.dot_product_attention`, which is cuDNN's flash kernel on a GPU."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from wan_tpu.attention.arrays import Keys, Queries
from wan_tpu.attention.names import ATTENTION_OUT

GPU_PLATFORMS = ("gpu", "cuda", "rocm")

_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
_CUDNN_MAX_HEAD_DIM = 128  # of every card; Hopper alone takes 256


def dot_product_attention(query: Queries, key: Keys, value: Keys, platform: str) -> Queries:
    """`jax.nn.dot_product_attention`: cuDNN where it can, else XLA with the whole score matrix.

    Its backward is cuDNN's own, which needs what its forward keeps in a form of its own: a policy
    that saves the result alone runs the forward again.
    """
    cudnn = platform in GPU_PLATFORMS and cudnn_takes(query.dtype, query.shape[3])
    # JAX's own default is XLA even on a GPU, so cuDNN must be named.
    out = jax.nn.dot_product_attention(
        query, key, value, implementation="cudnn" if cudnn else "xla"
    )
    return checkpoint_name(out, ATTENTION_OUT)


def cudnn_takes(dtype: jax.typing.DTypeLike, head_dim: int) -> bool:
    """Whether cuDNN's flash kernel is for these; it is not, for others."""
    return (
        jnp.dtype(dtype) in _CUDNN_DTYPES and head_dim % 8 == 0 and head_dim <= _CUDNN_MAX_HEAD_DIM
    )
