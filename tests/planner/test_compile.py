"""What is kept, what does not fit, what is not installed."""

import importlib.metadata
import json
import pathlib

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
    reader_digest,
    slice_devices,
    source_digest,
    unpack_text,
)
from wan_tpu.planner.hardware import find_slice
from wan_tpu.planner.kernel_cycles import (
    KernelCountError,
    KernelShape,
    count_cycles,
    grid_of,
    read_schedule,
    splash_parts,
)
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
    assert unpack_text(pack_text(text)) == text
    assert StageFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert read_program(text).total("flops") == 2 * 2048**3


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
        def compile(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    mesh = tpu_mesh("v6e-1", Layout())
    stage = Broken(name="test", function=abs, arguments=(), mesh=mesh)
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
    assert cache.get({"a": 1, "b": [2]}, make) == {"n": 3}
    assert "damaged" in caplog.text
    assert len(list((tmp_path / "plans").iterdir())) == 2, "no partial files are left"


def test_no_folder_keeps_nothing():
    made = []
    cache = FactsCache(None)
    for _ in range(2):
        cache.get({}, lambda: {"n": made.append(1)})
    assert len(made) == 2


def test_an_interrupted_compilation_leaves_nothing(tmp_path):
    def make():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FactsCache(tmp_path).get({}, make)
    assert not list(tmp_path.iterdir())


def test_digests_see_the_sources_of_their_rooms():
    assert source_digest("vae") != source_digest("text")
    assert source_digest("vae") == source_digest.__wrapped__("vae")
    assert len(reader_digest()) == 64


def test_libtpu_missing_says_how(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(planner_compile.importlib.metadata, "version", version)
    with pytest.raises(MissingPackageError, match="pip install 'libtpu"):
        slice_devices(find_slice("v6e-8"))


def test_regions_of_a_schedule_nest(tmp_path):
    lines = ["0x0 { Start region 1", "0x9 { Start region 2 ; Start region 3", "0x12 End region 3"]
    lines += [
        "0x13 { Start region 4",
        "0x76 { End region 4",
        "0x80 { End region 2",
        "0x81 End region 1",
    ]
    (tmp_path / "1-k-1-final_bundles.txt").write_text("\n".join(f" {line}" for line in lines))
    step = read_schedule(tmp_path)
    assert step.bundles == 0x82
    (row,) = step.inside
    assert [region.bundles for region in row.inside] == [0x12 - 0x9 + 1, 0x76 - 0x13 + 1]
    assert splash_parts(step, (2, 3, 4)) == {
        "tile": (0x76 - 0x13 + 1, 24),
        "row": (0x82 - (0x76 - 0x13 + 1), 6),
    }


def test_no_schedule_is_an_error(tmp_path):
    with pytest.raises(KernelCountError, match="no schedule"):
        read_schedule(tmp_path)


def test_the_grid_of_a_kernel_that_is_not_there():
    with pytest.raises(KernelCountError, match="expected one Pallas kernel"):
        grid_of(jax.make_jaxpr(lambda x: x + 1)(1.0))


@pytest.mark.parametrize(
    ("implementation", "tokens", "chunks", "least", "most"),
    [
        ("splash", 512, 1, 1.46e-3, 10e-3),
        # Two blocks of queries; keys in a whole tile, a small one and a partial one per chunk.
        ("flash", 2 * 1400, 2, 1.46e-3, 4.5e-3),
    ],
)
def test_counting_a_kernel_in_its_own_process(implementation, tokens, chunks, least, most):
    """Cycles per pair are above the matrix unit's floor, and not far."""
    shape = KernelShape(
        chip="v6e", implementation=implementation, queries=tokens, keys=tokens, num_keys=tokens,
        head_dim=128, query_chunks=chunks, key_chunks=chunks,
    )  # fmt: skip
    count = count_cycles(shape)
    assert least * tokens**2 < count.per_head < most * tokens**2
    if implementation == "flash":
        times = {name: part[1] for name, part in count.parts.items()}
        assert times["tile of 1024 keys"] == times["tile of 256 keys"] == 4
        assert times["partial tile"] == times["block of keys"] == 4
        assert times["block of queries"] == 2


def test_counting_a_kernel_with_one_block_of_keys():
    """Cross-attention: red when its schedule, whose branches the compiler resolves, is read."""
    shape = KernelShape(
        chip="v6e", implementation="flash", queries=256, keys=512, num_keys=512, head_dim=128
    )
    times = {name: part[1] for name, part in count_cycles(shape).parts.items()}
    assert times["tile of 256 keys"] == 2
    assert times["block of keys"] == 1
    assert times["partial tile"] == 0


@pytest.mark.parametrize("place", ["/proc/nope/plans", "/etc/hostname"])
def test_a_folder_that_cannot_be_written_costs_the_keeping_alone(place, caplog):
    cache = FactsCache(pathlib.Path(place))
    for _ in range(2):
        assert cache.get({"what": "x"}, lambda: {"facts": 1}) == {"facts": 1}
    (message,) = {m for m in caplog.messages if "going on without" in m}
    assert message.startswith(f"cannot keep plans in {place} (")
    assert sum("going on without" in m for m in caplog.messages) == 1
