"""Weights to devices by several readers, and back to the checkpoint's tensors."""

import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.checkpoint_factory import TRANSFORMER
from wan_tpu.checkpoints import loading
from wan_tpu.checkpoints.loading import Part, place_parts
from wan_tpu.checkpoints.source import ArraySource
from wan_tpu.checkpoints.weights import (
    Weight,
    checkpoint_tensors,
    expected_tensors,
    load_parts,
    load_weights,
    place_weights,
)
from wan_tpu.errors import CheckpointError
from wan_tpu.sharding.layout import AXES, parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.text.encoder import TextConfig, TextEncoder
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.weights import denoiser_weights


def random_tensors(weights, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = expected_tensors(weights)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def assert_same_tensors(found, expected):
    found = dict(found)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name].view(np.uint8), tensor.view(np.uint8))


@pytest.mark.parametrize("layout", ["dp8", "sp8", "tp8", "dp2-sp4", "dp2-sp2-tp2", "sp2-tp4"])
@pytest.mark.parametrize("kept", ["sharded", "replicated"])
def test_there_and_back_is_the_file_for_every_layout(layout, kept, devices):
    """Three heads in padded places, rotated rows, a feed-forward width that divides by nothing.

    Red when padding comes back as rows, or when rows come back in the order of the devices."""
    layout = parse_layout(layout, weights=kept)
    weights = denoiser_weights(TransformerConfig.from_json(TRANSFORMER), layout, jnp.float32)
    tensors = random_tensors(weights)
    params = load_weights("transformer", weights, ArraySource(tensors), make_mesh(layout))
    assert_same_tensors(checkpoint_tensors(weights, params), tensors)


def test_there_and_back_in_bfloat16(devices):
    mesh = make_mesh(parse_layout("tp8"))
    config = TextConfig(d_model=64, d_kv=8, d_ff=128, num_layers=3, num_heads=8, vocab_size=96)
    weights = TextEncoder(config=config, mesh=mesh, dtype=jnp.bfloat16).weights()
    tensors = random_tensors(weights, jnp.bfloat16)
    params = load_weights("text encoder", weights, ArraySource(tensors), mesh)
    assert_same_tensors(checkpoint_tensors(weights, params), tensors)


def test_the_way_back_fetches_a_tensor_at_a_time(devices):
    """Red when all tensors are made before the first is handed out."""
    weight, tensors = stack(layers=50, rows=64, columns=64)
    (array,) = place_weights(
        [weight], ArraySource(tensors), make_mesh(parse_layout("tp8"))
    ).values()
    name, tensor = next(iter(weight.to_tensors(array)))
    assert name == "b.0.w"
    assert tensor.base is None or tensor.base.nbytes == tensor.nbytes


def stack(layers=4, rows=8, columns=8, name="b"):
    tensors = {f"{name}.{n}.w": np.full((rows, columns), n, np.float32) for n in range(layers)}
    weight = Weight(
        name=f"{name}.*.w",
        tensors=tuple(tensors),
        tensor_shape=(rows, columns),
        dtype=jnp.float32,
        stacked=True,
        spec=P(None, AXES),
    )
    return weight, tensors


def test_several_readers_read_at_once(devices):
    """Red with one reader: a read waits until another is there."""
    weight, tensors = stack()
    readers, together = set(), threading.Event()

    class Waiting(ArraySource):
        def read(self, name, index=()):
            readers.add(threading.get_ident())
            if len(readers) >= 2:
                together.set()
            assert together.wait(timeout=20), "no second reader came"
            return super().read(name, index)

    place_weights([weight], Waiting(tensors), make_mesh(parse_layout("tp8")))


def test_the_first_fault_in_order_is_reported(devices):
    """Red when it is the fault that shows first."""
    weights, tensors = [], {}
    for name in "abcd":
        weight, found = stack(name=name)
        weights.append(weight)
        tensors |= found

    class Failing(ArraySource):
        def read(self, name, index=()):
            if name == "b.2.w":
                time.sleep(0.3)
                raise CheckpointError("the first")
            if name.startswith("c"):
                raise CheckpointError("a later one")
            return super().read(name, index)

    with pytest.raises(CheckpointError, match="the first"):
        place_weights(weights, Failing(tensors), make_mesh(parse_layout("tp8")))
    assert not [t for t in threading.enumerate() if t.name.startswith("reader")]


def test_what_is_in_flight_is_bounded_by_its_bytes(devices, monkeypatch):
    """Red when everything is read at once: who takes one weight has not paid for twenty."""
    weights, tensors, read = [], {}, []
    for number in range(20):
        weight, found = stack(name=f"w{number:02}")
        weights.append(weight)
        tensors |= found
    shard_bytes = weights[0].num_bytes // 8
    monkeypatch.setattr(loading, "BYTES_IN_FLIGHT", 10 * shard_bytes)

    class Counting(ArraySource):
        def read(self, name, index=()):
            part = super().read(name, index)
            read.append(part.nbytes)
            return part

    mesh = make_mesh(parse_layout("tp8"))
    placed = place_parts([Part(weights=weights, source=Counting(tensors), mesh=mesh)])
    next(placed)
    time.sleep(0.3)
    assert 8 * shard_bytes <= sum(read) <= 18 * shard_bytes
    assert len(list(placed)) == 19
    assert sum(read) == 20 * 8 * shard_bytes


def test_components_are_loaded_together_and_all_checked_first(devices):
    mesh = make_mesh(parse_layout("tp8"))
    parts, reads = {}, []

    class Counting(ArraySource):
        def read(self, name, index=()):
            reads.append(name)
            return super().read(name, index)

    for component in ("text encoder", "transformer"):
        weight, tensors = stack(name=component[:4])
        parts[component] = Part(weights=[weight], source=Counting(tensors), mesh=mesh)
    loaded = load_parts(parts)
    assert list(loaded) == ["text encoder", "transformer"]
    np.testing.assert_array_equal(loaded["transformer"]["tran.*.w"][3], np.full((8, 8), 3))
    reads.clear()
    parts["transformer"] = Part(
        weights=parts["transformer"].weights, source=ArraySource({}), mesh=mesh
    )
    with pytest.raises(CheckpointError, match="transformer in arrays in memory: missing"):
        load_parts(parts)
    assert not reads
