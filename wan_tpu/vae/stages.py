"""The two programs that walk a video chunk by chunk, as stages, and the walk itself.

The first chunk starts a cache, every later one takes it, passes it on and may have its memory. Two
programs serve any number of chunks, and one serves a single chunk.
"""

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float32, PyTree

from wan_tpu.sharding.mesh import named, place
from wan_tpu.stage import Stage, abstract

AbstractParams = Mapping[str, jax.ShapeDtypeStruct]

TPU_COMPILER_OPTIONS = {"xla_tpu_scoped_vmem_limit_kib": "8192"}
"""XLA makes a convolution's window as large as this memory allows and writes it out instruction by
instruction: by default the 720p chunk takes minutes to compile (docs/decisions/0002)."""

Programs = Sequence[Callable[..., Any]]
"""Compiled stages."""


def chunk_stages(
    name: str,
    first: Callable[..., Any],
    following: Callable[..., Any],
    *,
    mesh: Mesh,
    params: AbstractParams,
    chunk_shapes: tuple[tuple[int, ...], tuple[int, ...]],
    chunk_sharding: NamedSharding,
    cache: PyTree[jax.ShapeDtypeStruct],
    cache_shardings: PyTree[NamedSharding],
    num_results: int,
    closes_over: Hashable,
) -> tuple[Stage, Stage]:
    """The stages `<name>-first` of `(params, chunk)` and `<name>-next` of `(params, chunk, cache)`.

    Args:
        name: what they do.
        first: the function of the first stage.
        following: the function of the second; both return `num_results` arrays and the cache.
        mesh: the devices.
        params: stands for the parameters.
        chunk_shapes: of the first and of every later chunk, float32.
        chunk_sharding: of both.
        cache: stands for the cache; its memory is taken over.
        cache_shardings: a prefix tree of shardings for it.
        num_results: results before the cache. They are whole on every device, because every
            process of a slice may read them.
        closes_over: as `Stage.closes_over`.
    """
    make = functools.partial(
        Stage,
        mesh=mesh,
        size=(name, *chunk_shapes[0][2:4]),
        closes_over=closes_over,
        out_shardings=(*[named(mesh)] * num_results, cache_shardings),
        tpu_compiler_options=TPU_COMPILER_OPTIONS,
    )
    chunks = [abstract(shape, jnp.float32, chunk_sharding) for shape in chunk_shapes]
    return (
        make(name=f"{name}-first", function=first, arguments=(params, chunks[0])),
        make(
            name=f"{name}-next",
            function=following,
            arguments=(params, chunks[1], cache),
            donate=(2,),
        ),
    )


def results_of_chunks(
    programs: Programs,
    params: Mapping[str, jax.Array],
    chunks: Iterable[Float32[np.ndarray, "1 _ _ _ _"]],
    sharding: NamedSharding,
) -> Iterator[tuple[Array, ...]]:
    """Runs the programs over a video's chunks.

    Args:
        programs: the compiled stages of `chunk_stages`; the first alone is enough for one chunk.
        params: by name.
        chunks: at least one, float32, whole on every process.
        sharding: of a chunk.

    Yields:
        the results of each chunk without the cache, when the next chunk is already under way.
    """
    first, *following = programs
    iterator = iter(chunks)
    *results, cache = first(params, place(next(iterator), sharding))
    for chunk in iterator:
        *coming, cache = following[0](params, place(chunk, sharding), cache)
        yield tuple(results)
        results = coming
    yield tuple(results)
