"""Decoders behind one interface: ours, and maxdiffusion's where that package can be imported."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.cases import assert_same_bytes, make_case, to_bytes
from wan_tpu.checkpoints.component import open_component
from wan_tpu.errors import CheckpointError, GeometryError, MissingPackageError, UnknownNameError
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.vae.backends import BACKENDS, load_vae
from wan_tpu.vae.maxdiffusion import INSTALL

CASE = "three levels"

HAVE_MAXDIFFUSION = importlib.util.find_spec("maxdiffusion") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("vae")
    make_case(CASE).model.save_pretrained(path)
    return path


def load(name, folder, layout="dp2"):
    split = parse_layout(layout)
    mesh = make_mesh(split, jax.devices()[: split.num_devices])
    return load_vae(
        name, make_case(CASE).config, open_component("vae", folder), mesh=mesh, dtype=jnp.float32
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
    stages = vae.stages(4, 6)
    assert len(stages) == 2
    programs = [stage.compile() for stage in stages]
    for latent_frames in (1, 3):
        latents = jax.device_put(case.latents[:, :latent_frames])
        chunks = list(vae.frames(latents, programs))
        assert [len(chunk) for chunk in chunks] == [1] + [4] * (latent_frames - 1)
        expected = to_bytes(case.decoded[: case.frames(latent_frames)])
        assert_same_bytes(np.concatenate(chunks), expected)


@pytest.mark.skipif(not HAVE_MAXDIFFUSION, reason=INSTALL)
def test_maxdiffusion_refuses_a_width_it_cannot_split(folder, devices):
    with pytest.raises(GeometryError, match="multiple of 8, got 20; the VAE flax takes any"):
        load("maxdiffusion", folder).stages(4, 5)


def test_frames_are_fetched_while_later_ones_decode(folder, devices):
    """Red when a chunk is fetched before the next one is under way."""
    events = []

    class Pending:
        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            events.append(f"fetch {self.number}")
            return np.zeros((4, 8, 8, 3), np.uint8)

    def dispatch(*arguments):
        number = sum(event.startswith("dispatch") for event in events)
        events.append(f"dispatch {number}")
        return Pending(number), True, None

    case = make_case(CASE)
    chunks = load("flax", folder).frames(case.latents[:, :3], [dispatch, dispatch])
    next(chunks)
    assert events == ["dispatch 0", "dispatch 1", "fetch 0"]
    list(chunks)
    assert events[3:] == ["dispatch 2", "fetch 1", "fetch 2"]


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
