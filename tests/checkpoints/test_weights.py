"""Weights on a mesh: stacking, row order, padding, splits, and memory while loading."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.torch import save_file

from wan_tpu.checkpoints.models import ModelDescription, describe_model
from wan_tpu.checkpoints.source import ArraySource
from wan_tpu.checkpoints.weights import ZERO, Weight, expected_tensors, place_weights
from wan_tpu.sharding.layout import AXES, Layout, parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.weights import denoiser_weights


def make_stack(layers=3, rows=6, columns=8):
    rng = np.random.default_rng(0)
    return {f"b.{n}.w": rng.normal(size=(rows, columns)).astype(np.float32) for n in range(layers)}


def stacked(arrays, **kwargs):
    return Weight(
        name="b.*.w",
        tensors=tuple(arrays),
        tensor_shape=next(iter(arrays.values())).shape,
        dtype=jnp.float32,
        stacked=True,
        **kwargs,
    )


def place(weight, source, layout):
    return place_weights([weight], source, make_mesh(parse_layout(layout)))[weight.name]


@pytest.mark.parametrize(
    "spec", [P(), P(None, "tp"), P(None, ("tp", "dp", "sp")), P(None, None, AXES)]
)
def test_stacked_rows_ordered_and_padded_under_any_split(spec, devices):
    """Rows reversed, two zero rows: 8 rows split 1, 2 and 8 ways."""
    arrays = make_stack()
    order = np.array([5, 4, 3, ZERO, 2, 1, 0, ZERO])
    weight = stacked(arrays, rows={0: order}, spec=spec)
    assert weight.shape == (3, 8, 8)
    mesh = make_mesh(parse_layout("dp2-sp2-tp2"))
    placed = place_weights([weight], ArraySource(arrays), mesh)["b.*.w"]
    whole = np.stack(list(arrays.values()))
    expected = np.where((order == ZERO)[None, :, None], 0, whole[:, order])
    np.testing.assert_array_equal(placed, expected)
    assert placed.sharding == NamedSharding(mesh, spec)
    shard = placed.addressable_shards[0].data.nbytes
    assert shard == weight.bytes_per_device(dict(mesh.shape))


def test_shard_of_padding_alone_is_zero(devices):
    arrays = make_stack(layers=1, rows=2)
    order = np.array([0, 1, *[ZERO] * 6])
    weight = stacked(arrays, rows={0: order}, spec=P(None, AXES))
    placed = place(weight, ArraySource(arrays), "tp8")
    np.testing.assert_array_equal(placed[0, :2], arrays["b.0.w"])
    assert not np.asarray(placed[0, 2:]).any()


def test_order_of_the_second_dimension(devices):
    arrays = make_stack(layers=2)
    order = np.array([*range(7, -1, -1), ZERO, ZERO])
    weight = stacked(arrays, rows={1: order}, spec=P(None, None, "tp"))
    placed = np.asarray(place(weight, ArraySource(arrays), "dp4-tp2"))
    np.testing.assert_array_equal(placed[1, :, :8], arrays["b.1.w"][:, ::-1])
    assert not placed[:, :, 8:].any()


def test_each_device_reads_only_its_slice(devices):
    """Red when a process reads whole tensors to fill its shards."""
    arrays = make_stack(rows=8)
    reads = []

    class Counting(ArraySource):
        def read(self, name, index=()):
            part = super().read(name, index)
            reads.append(part.size)
            return part

    place(stacked(arrays, spec=P(None, AXES)), Counting(arrays), "tp8")
    assert max(reads) == 8
    assert sum(reads) == 3 * 8 * 8


MEMORY = """
    import json, pathlib, sys
    import jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    import jax.numpy as jnp
    from tests.checkpoints.memory import memory
    from tests.checkpoints.test_weights import like_1_3b
    from wan_tpu.checkpoints.source import SafetensorsSource
    from wan_tpu.checkpoints.weights import load_weights
    from wan_tpu.pipeline.model import make_video_model
    from wan_tpu.sharding.layout import parse_layout
    from wan_tpu.sharding.mesh import make_mesh

    folder, layout, num_layers = sys.argv[1:]
    layout = parse_layout(layout)
    mesh = make_mesh(layout)
    model = make_video_model(like_1_3b(int(num_layers)), mesh, layout, dtype=jnp.bfloat16)
    weights = model.denoiser.weights()
    before = memory("VmRSS")
    load_weights("transformer", weights, SafetensorsSource(pathlib.Path(folder)), mesh)
    taken = memory("VmHWM") - before
    print(json.dumps({"taken": taken, "weights": sum(w.num_bytes for w in weights)}))
"""


def like_1_3b(num_layers: int) -> ModelDescription:
    """The 1.3B model with so many layers; it has 30."""
    description = describe_model("wan2.1-t2v-1.3b")
    transformer = {**description.configs["transformer"], "num_layers": num_layers}
    return dataclasses.replace(
        description, configs={**description.configs, "transformer": transformer}
    )


def write_random_transformer(folder: pathlib.Path, num_layers: int) -> None:
    """In bfloat16: 2.6 GB for 30 layers."""
    config = TransformerConfig.from_json(like_1_3b(num_layers).configs["transformer"])
    shapes = expected_tensors(denoiser_weights(config, Layout(), jnp.bfloat16))
    tensors = {name: torch.full(shape, 0.5, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")


# Thirty layers show no more than eight: the bound is in proportion.
@pytest.mark.parametrize("num_layers", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_loading_1_3b_never_holds_a_second_copy(num_layers, tmp_path):
    """It takes 1.15 x the weights and 256 MiB at most; a second copy would take as much
    again: red (1.8 GB for 0.8) when whatever is read is kept."""
    write_random_transformer(tmp_path, num_layers)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path), "dp2-sp4", str(num_layers)],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["weights"] > 0.08e9 * num_layers
    assert measured["taken"] <= 1.15 * measured["weights"] + 2**28, measured


def test_mesh_of_eight(devices):
    assert dict(make_mesh(parse_layout("dp2-sp2-tp2")).shape) == {"dp": 2, "sp": 2, "tp": 2}
    assert len(jax.devices()) == 8
