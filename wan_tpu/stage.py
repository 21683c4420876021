"""A stage: one program of the pipeline as a value.

The pipeline runs it, warm-up compiles it before the first request, the planner compiles it for a
slice that is not there, tests compare it between layouts: what is planned is what runs.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from wan_tpu.sharding.mesh import platform_of


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A pure function with everything that decides its program.

    Attributes:
        name: what logs, progress and the planner call it.
        function: pure and jittable; closes over configurations only, never over arrays.
        closes_over: everything the function's program depends on besides its arguments' shapes.
        arguments: pytrees of `jax.ShapeDtypeStruct` with shardings, one per positional argument.
        mesh: the devices it runs on; Pallas kernels ask it which chip they are for.
        donate: positions of the arguments whose memory the result may take.
        keeps_unused: whether arguments that the function does not read are passed all the same, so
            that their memory can be donated.
        out_shardings: a prefix tree of shardings for the result; None leaves it to the compiler.
        matmul_precision: `highest` where float32 products must be float32; None is the platform's
            default (a TPU multiplies float32 in bfloat16 passes).
        tpu_compiler_options: XLA options for TPUs, by name.
        size: of the video that the program is for; None where it serves every size.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    mesh: Mesh
    closes_over: Hashable = ()
    donate: tuple[int, ...] = ()
    keeps_unused: bool = False
    out_shardings: Any = None
    matmul_precision: str | None = None
    tpu_compiler_options: Mapping[str, str] | None = None
    size: Hashable = None

    @property
    def key(self) -> Hashable:
        """Equal for stages whose programs are the same, on meshes of the same devices in order."""
        leaves, structure = jax.tree.flatten(self.arguments)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        return (self.name, self.closes_over, tuple(self.mesh.shape.items()), structure, shapes)

    def lower(self) -> jax.stages.Lowered:
        """Traces and lowers for the platform of the mesh, which need not be this machine's."""
        platform = platform_of(self.mesh)
        kwargs = {} if self.out_shardings is None else {"out_shardings": self.out_shardings}
        with jax.set_mesh(self.mesh), jax.default_matmul_precision(self.matmul_precision):
            jitted = jax.jit(
                self.function,
                donate_argnums=self.donate,
                keep_unused=self.keeps_unused,
                **kwargs,
            )
            traced = jitted.trace(*self.arguments)
            return traced.lower(lowering_platforms=(platform,))

    def compile(self) -> jax.stages.Compiled:
        """Compiles the program; calling the result takes arrays like `arguments`."""
        return self.compile_lowered(self.lower())

    def compile_lowered(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        """Compiles what `lower` gave; takes no lock, so that others may trace meanwhile."""
        options = self.tpu_compiler_options if platform_of(self.mesh) == "tpu" else None
        with jax.set_mesh(self.mesh):
            return lowered.compile(compiler_options=dict(options) if options else None)


def abstract(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """A stage argument of this shape, dtype and sharding."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def abstract_like(tree: Any) -> Any:
    """The stage argument that describes a tree of placed arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
