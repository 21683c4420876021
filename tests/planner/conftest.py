"""Small programs compiled by the real TPU compiler, for slices that are not there."""

import functools

import jax
import pytest

from wan_tpu.planner.compile import slice_devices
from wan_tpu.planner.hardware import find_slice
from wan_tpu.planner.program import read_program
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import make_mesh, named
from wan_tpu.stage import Stage


@functools.cache
def _mesh(name: str, layout: Layout):
    return make_mesh(layout, slice_devices(find_slice(name)))


@pytest.fixture(scope="session")
def tpu_mesh():
    """The mesh of a layout over a slice: `tpu_mesh("v6e-4", Layout(sp=4))`."""
    return _mesh


@pytest.fixture(scope="session")
def compile_for_tpu():
    """Compiles a function of arrays `(shape, dtype, spec)`; gives the costs and the text."""

    def compile_for_tpu(function, *arrays, name="v6e-1", layout=Layout(), donate=(), out=None):  # noqa: B008
        mesh = _mesh(name, layout)
        stage = Stage(
            name="test",
            function=function,
            arguments=tuple(
                jax.ShapeDtypeStruct(shape, dtype, sharding=named(mesh, *spec))
                for shape, dtype, spec in arrays
            ),
            mesh=mesh,
            donate=donate,
            out_shardings=None if out is None else named(mesh, *out),
        )
        text = stage.compile().as_text()
        assert text is not None
        return read_program(text), text

    return compile_for_tpu
