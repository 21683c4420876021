"""What is kept, what does not fit, what is not installed."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from wan_tpu.errors import MissingPackageError
from wan_tpu.planner import compile as planner_compile
from wan_tpu.planner.compile import (
    FactsCache,
    StageFacts,
    compile_stage,
    digest,
    pack_text,
    slice_devices,
    source_digest,
    unpack_text,
    versions,
)
from wan_tpu.planner.hardware import find_slice
from wan_tpu.planner.program import read_program
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import named
from wan_tpu.stage import Stage

GIB = 2**30


def make_stage(mesh, function, shape, dtype=jnp.float32):
    argument = jax.ShapeDtypeStruct(shape, dtype, sharding=named(mesh))
    return Stage(name="test", function=function, arguments=(argument,), mesh=mesh)


def test_facts_of_a_program(tpu_mesh):
    mesh = tpu_mesh("v6e-1", Layout())
    facts, text = compile_stage(make_stage(mesh, lambda x: x @ x, (2048, 2048)))
    assert facts.failure == ""
    assert facts.argument_bytes == facts.output_bytes == 2048 * 2048 * 4
    assert facts.peak_bytes >= 2 * 2048 * 2048 * 4
    assert facts.compile_seconds > 0
    assert facts.coordinates == ((0, 0, 0),)
    assert unpack_text(pack_text(text)) == text
    assert StageFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert read_program(text).total("flops") == 2 * 2048**3


def test_a_flag_that_libtpu_does_not_know_is_named():
    """libtpu ends the process. Red when its words are kept back: exit code 1 and nothing else."""
    code = "from wan_tpu.planner.compile import slice_devices; "
    code += "from wan_tpu.planner import find_slice; slice_devices(find_slice('v6e-1'))"
    environment = os.environ | {"LIBTPU_INIT_ARGS": "--xla_no_such_flag=true"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "xla_no_such_flag" in done.stderr


def test_a_program_too_large_for_hbm_is_a_fact(tpu_mesh):
    mesh = tpu_mesh("v6e-1", Layout())
    facts, text = compile_stage(make_stage(mesh, lambda x: x + 1, (40, 1024, 1024, 256)))
    assert text == ""
    assert "31.25G" in facts.failure, facts.failure


def test_a_kernel_too_large_for_vmem_is_a_fact(tpu_mesh):
    mesh = tpu_mesh("v6e-1", Layout())
    whole = jax.sharding.PartitionSpec()

    def kernel(x, out, _):
        out[...] = x[...]

    def f(x):
        call = pl.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
            scratch_shapes=[pltpu.VMEM((200 * 2**20 // 512, 128), jnp.float32)],
        )
        return jax.shard_map(call, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)(x)

    facts, _ = compile_stage(make_stage(mesh, f, (8, 128)))
    assert "vmem" in facts.failure.lower(), facts.failure


def test_other_errors_of_the_compiler_are_not_swallowed(tpu_mesh):
    class Broken(Stage):
        def compile_lowered(self, lowered):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    stage = make_stage(tpu_mesh("v6e-1", Layout()), abs, (8, 128))
    stage = Broken(**{f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)})
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        compile_stage(stage)


def test_the_cache_makes_once_and_survives_damage(tmp_path, caplog):
    made = []

    def make():
        made.append(1)
        return {"n": len(made)}

    cache = FactsCache(tmp_path / "plans")
    assert cache.get({"a": 1, "b": [2]}, make) == {"n": 1}
    assert cache.get({"b": [2], "a": 1}, make) == {"n": 1}, "the order of a key says nothing"
    assert cache.get({"a": 2, "b": [2]}, make) == {"n": 2}
    (file,) = (tmp_path / "plans").glob(f"{digest({'a': 1, 'b': [2]})}.json")
    file.write_text("{half")
    assert FactsCache(tmp_path / "plans").get({"a": 1, "b": [2]}, make) == {"n": 3}
    assert cache.get({"a": 1, "b": [2]}, make) == {"n": 1}, "it knows what it made"
    assert "damaged" in caplog.text
    assert len(list((tmp_path / "plans").iterdir())) == 2, "no partial files are left"


def test_no_folder_keeps_nothing_for_the_next_plan():
    made = []
    for cache in (FactsCache(None), FactsCache(None)):
        for _ in range(2):
            cache.get({}, lambda: {"n": made.append(1)})
    assert len(made) == 2


def test_an_interrupted_compilation_leaves_nothing(tmp_path):
    def make():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FactsCache(tmp_path).get({}, make)
    assert not list(tmp_path.iterdir())


def test_digests_see_the_sources_of_their_packages():
    assert source_digest("vae") != source_digest("text")
    assert source_digest("vae") == source_digest.__wrapped__("vae")


def test_flags_for_libtpu_are_part_of_a_key(monkeypatch):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    without = versions()
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_enable_async_collective_fusion=true")
    assert digest(versions()) != digest(without)


def test_libtpu_missing_says_how(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(planner_compile.importlib.metadata, "version", version)
    with pytest.raises(MissingPackageError, match="pip install 'libtpu"):
        slice_devices(find_slice("v6e-8"))


@pytest.mark.parametrize("place", ["/proc/nope/plans", "/etc/hostname"])
def test_a_folder_that_cannot_be_written_costs_the_keeping_alone(place, caplog):
    cache = FactsCache(pathlib.Path(place))
    for _ in range(2):
        assert cache.get({"what": "x"}, lambda: {"facts": 1}) == {"facts": 1}
    (message,) = {m for m in caplog.messages if "going on without" in m}
    assert message.startswith(f"cannot keep plans in {place} (")
    assert sum("going on without" in m for m in caplog.messages) == 1
