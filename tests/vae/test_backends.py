"""Decoders behind one interface: ours, and maxdiffusion's where that package can be imported."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.tolerances import psnr
from tests.vae.cases import assert_same_bytes, make_case, to_bytes
from wan_tpu.checkpoints.component import open_component
from wan_tpu.errors import (
    BadNumbersError,
    CheckpointError,
    GeometryError,
    InputError,
    MissingPackageError,
    UnknownNameError,
)
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.vae.backends import BACKENDS, load_vae
from wan_tpu.vae.maxdiffusion import INSTALL
from wan_tpu.vae.weights import DECODER, ENCODER

TOLERANCE = 1e-4
"""Of the range, float32."""

CASE = "three levels"

HAVE_MAXDIFFUSION = importlib.util.find_spec("maxdiffusion") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("vae")
    make_case(CASE).model.save_pretrained(path)
    return path


def load(name, folder, layout="dp2", parts=(DECODER,), dtype=jnp.float32):
    split = parse_layout(layout)
    mesh = make_mesh(split, jax.devices()[: split.num_devices])
    return load_vae(
        name,
        make_case(CASE).config,
        open_component("vae", folder),
        mesh=mesh,
        dtype=dtype,
        parts=parts,
    )


NEEDS_MAXDIFFUSION = pytest.param(
    "maxdiffusion", marks=pytest.mark.skipif(not HAVE_MAXDIFFUSION, reason=INSTALL)
)


@pytest.mark.parametrize("name", ["flax", NEEDS_MAXDIFFUSION])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:maxdiffusion")
def test_decodes_what_diffusers_decodes(name, folder, devices):
    """Two programs for any number of frames; chunks of one frame, then of four."""
    case, vae = make_case(CASE), load(name, folder)
    assert vae.name == name
    stages = vae.stages(4, 6, 3)
    assert len(stages) == 2
    assert vae.stages(4, 6, 1) == stages[:1], "one frame needs one program, and it is the same"
    programs = [stage.compile() for stage in stages]
    for latent_frames in (1, 3):
        latents = jax.device_put(case.latents[:, :latent_frames])
        chunks = list(vae.frames(latents, programs[:latent_frames]))
        assert [len(chunk) for chunk in chunks] == [1] + [4] * (latent_frames - 1)
        expected = to_bytes(case.decoded[: case.frames(latent_frames)])
        assert_same_bytes(np.concatenate(chunks), expected)


@pytest.mark.skipif(not HAVE_MAXDIFFUSION, reason=INSTALL)
def test_maxdiffusion_refuses_a_width_it_cannot_split(folder, devices):
    with pytest.raises(GeometryError, match="multiple of 8, got 20; the VAE flax takes any"):
        load("maxdiffusion", folder).stages(4, 5, 1)


def test_frames_are_handed_out_while_later_ones_decode(folder, devices):
    """Red when a chunk is handed out before the next one is under way, or copied to the host."""
    events = []

    class Pending:
        def __init__(self, number):
            self.number = number

        def __len__(self):
            return 4

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("whoever wants the frames copies them")

    def dispatch(*arguments):
        number = sum(event.startswith("dispatch") for event in events)
        events.append(f"dispatch {number}")
        return Pending(number), True, None

    case = make_case(CASE)
    chunks = load("flax", folder).frames(case.latents[:, :3], [dispatch, dispatch])
    for chunk in chunks:
        events.append(f"got {chunk.number}")
    assert events == ["dispatch 0", "dispatch 1", "got 0", "dispatch 2", "got 1", "got 2"]


@pytest.mark.parametrize(("frames", "num_programs"), [(1, 1), (13, 2)])
def test_encodes_what_diffusers_encodes(frames, num_programs, folder, devices):
    """Chunk by chunk on eight devices, each holding a part of the picture; as `encode` at once.

    Red when a chunk does not see the frames before it, or a device not its neighbour's column.
    """
    case, vae = make_case(CASE), load("flax", folder, "dp2-sp2-tp2", (DECODER, ENCODER))
    factor = case.config.spatial_compression
    shape = (1, frames, 4 * factor, 6 * factor, 3)
    video = np.random.default_rng(2).uniform(-1, 1, shape).astype(np.float32)
    stages = vae.encode_stages(*shape[2:4], frames)
    assert [stage.name for stage in stages] == ["encode-first", "encode-next"][:num_programs]
    moments = vae.moments(video, [stage.compile() for stage in stages])
    with torch.no_grad():
        encoded = case.model.encode(torch.tensor(np.moveaxis(video, -1, 1)), return_dict=False)
    for ours, theirs in zip(moments, (encoded[0].mean, encoded[0].logvar), strict=True):
        expected = np.moveaxis(theirs.numpy(), 1, -1)
        assert ours.shape == expected.shape
        assert np.abs(ours - expected).max() <= TOLERANCE * np.ptp(expected)


def test_bad_numbers_of_a_video_are_found(folder, devices):
    """In the last chunk, in one device's corner."""
    vae = load("flax", folder, "dp2-tp2", (ENCODER,))
    video = np.zeros((1, 9, 16, 32, 3), np.float32)
    video[0, -1, -1, -1, 0] = np.nan
    programs = [stage.compile() for stage in vae.encode_stages(16, 32, 9)]
    with pytest.raises(BadNumbersError, match="encode, chunk 3 of 3"):
        vae.moments(video, programs)


def test_a_part_is_loaded_when_asked_for(folder, devices):
    """Text to video holds no encoder; what a caller did not load is its own mistake."""
    parts = {names: load("flax", folder, "single", names) for names in [(DECODER,), (ENCODER,)]}
    for names, vae in parts.items():
        (only,) = names
        make = {DECODER: vae.stages, ENCODER: vae.encode_stages}
        (stage,) = make[only](16, 24, 1)
        assert all(name.startswith(only) for name in stage.arguments[0])
        (other,) = make.keys() - {only}
        with pytest.raises(KeyError, match=other):
            make[other](16, 24, 1)


def test_maxdiffusion_does_not_encode(folder, devices):
    with pytest.raises(InputError, match="maxdiffusion only decodes; the VAE flax encodes"):
        load("maxdiffusion", folder, parts=(DECODER, ENCODER))


@pytest.mark.parametrize("kind", ["wan 2.2", "shortcuts alone", "patches alone"])
def test_maxdiffusion_does_not_decode_wan_2_2(kind, folder, devices):
    with pytest.raises(InputError, match=r"Wan 2.1's latents.*\(is_residual .*; use the VAE flax$"):
        load_vae(
            "maxdiffusion",
            make_case(kind).config,
            open_component("vae", folder),
            mesh=make_mesh(parse_layout("single"), jax.devices()[:1]),
            dtype=jnp.float32,
        )


def test_unknown_name(folder, devices):
    with pytest.raises(UnknownNameError, match="flax, maxdiffusion"):
        load("torch", folder)


@pytest.mark.skipif(HAVE_MAXDIFFUSION, reason="installed here")
def test_maxdiffusion_missing_says_how_to_get_it(folder, devices):
    with pytest.raises(MissingPackageError, match=r"pip install git\+https.*PYTHONPATH.*flax"):
        load("maxdiffusion", folder)


@pytest.mark.parametrize("name", [n for n in BACKENDS if n == "flax" or HAVE_MAXDIFFUSION])
def test_another_models_weights_are_refused(name, tmp_path, devices):
    make_case("narrow top").model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"VAE in .*missing"):
        load(name, tmp_path)


def test_float32_is_float32_whatever_the_latents_came_from(folder, devices):
    """Beside a bfloat16 transformer, whose scheduler's latents are float32.

    Weights, activations and cache follow the dtype; latents do not. Measured: float32 differs from
    diffusers in no byte, bfloat16 by PSNR 51 dB.
    """
    case = make_case(CASE)
    expected = to_bytes(case.decoded[: case.frames(2)])
    decoded = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        vae = load("flax", folder, "dp2-tp2", dtype=dtype)
        stages = vae.stages(4, 6, 2)
        params, latents, cache = stages[1].arguments
        assert {x.dtype for x in jax.tree.leaves((params, cache))} == {jnp.dtype(dtype)}
        assert latents.dtype == jnp.float32
        programs = [stage.compile() for stage in stages]
        decoded[dtype] = np.concatenate(list(vae.frames(case.latents[:, :2], programs)))
    assert_same_bytes(decoded[jnp.float32], expected)
    assert 40 < psnr(decoded[jnp.bfloat16], expected) < 70
