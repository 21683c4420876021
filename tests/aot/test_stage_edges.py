"""From stage to stage on a TPU: what one program returns is what the next one was compiled for.

A compiled program refuses arguments that lie elsewhere than it was told, and most results lie where
the compiler put them. So each edge of the pipeline is a test: shapes, types and shardings of what
comes out against those of what goes in, from the real TPU compiler for a v6e-8.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from wan_tpu.checkpoints.models import describe_model
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.load import on_one_branch
from wan_tpu.pipeline.model import make_video_model
from wan_tpu.planner.compile import slice_devices
from wan_tpu.planner.hardware import find_slice
from wan_tpu.request import VideoRequest
from wan_tpu.schedulers.api import make_schedule
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.vae.streaming import abstract_params, make_decode_stages
from wan_tpu.vae.weights import DECODER

LAYOUT = "dp2-sp4"


class Pipeline:
    """The stages of one video of wan-tiny's on a v6e-8, compiled when they are first asked for.

    Without guidance text is encoded and frames decoded as with it, and all between runs on the
    merged mesh.
    """

    def __init__(self, *, guidance: bool):
        layout = parse_layout(LAYOUT)
        mesh = make_mesh(layout, slice_devices(find_slice("v6e-8")))
        description = describe_model("wan-tiny")
        model = make_video_model(description, mesh, layout, dtype=jnp.dtype("bfloat16"))
        self.batch = 2 if guidance else 1
        request = VideoRequest(prompt="a fox", guidance_scale=5.0 if guidance else 1.0)
        request, self.geometry = check_request(description, request)
        self.whole = model
        self.model = model if guidance else on_one_branch(model)
        self.schedule = make_schedule(
            "unipc",
            num_inference_steps=4,
            flow_shift=3.0,
            config=description.configs["scheduler"],
        )

    @functools.cached_property
    def decode_stages(self):
        model, geometry = self.whole, self.geometry
        params = abstract_params(model.vae, model.dtype, mesh=model.mesh, parts=(DECODER,))
        size = (geometry.latent_height, geometry.latent_width)
        return make_decode_stages(model.vae, model.mesh, *size, model.dtype, params)

    @functools.cache  # noqa: B019 - a fixture of this module holds the only ones
    def stage(self, name):
        model, geometry = self.model, self.geometry
        make = {
            "text": lambda: self.whole.text_stage(self.batch),
            "context": lambda: model.context_stage(self.batch, self.batch),
            "start": lambda: model.start_stage(geometry, self.schedule),
            "step": lambda: model.step_stage(geometry, self.schedule, self.batch),
            "latents": lambda: model.latents_stage(geometry),
            "decode-first": lambda: self.decode_stages[0],
            "decode-next": lambda: self.decode_stages[1],
        }
        stage = make[name]()
        assert stage.name == name
        return stage

    @functools.cache  # noqa: B019 - likewise
    def results(self, name):
        """What a stage's program returns: `ShapeDtypeStruct`s with the compiler's shardings."""
        stage = self.stage(name)
        lowered = stage.lower()
        return jax.tree.map(
            lambda info, sharding: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=sharding),
            lowered.out_info,
            stage.compile_lowered(lowered).output_shardings,
        )


@pytest.fixture(scope="module", params=[True, False], ids=["guidance", "one branch"])
def pipeline(request):
    made = Pipeline(guidance=request.param)
    assert str(made.model.layout) == (LAYOUT if request.param else "sp8")
    return made


def assert_fits(given, expected):
    """Every array is where, and what, the next program says it takes."""
    given, expected = jax.tree.leaves_with_path(given), jax.tree.leaves(expected)
    assert len(given) == len(expected) > 0
    for (path, one), other in zip(given, expected, strict=True):
        where = jax.tree_util.keystr(path)
        assert (one.shape, one.dtype) == (other.shape, other.dtype), where
        assert one.sharding.is_equivalent_to(other.sharding, len(one.shape)), (
            f"{where}: {one.sharding} for {other.sharding}"
        )


def test_text_to_context(pipeline):
    """Red when the encoder leaves its embeddings split."""
    embeddings, is_finite = pipeline.results("text")
    assert_fits(embeddings, pipeline.stage("context").arguments[1])
    assert is_finite.sharding.is_fully_replicated, "every process asks"


def test_context_to_step(pipeline):
    """Red when keys and values lie where the compiler likes."""
    assert_fits(pipeline.results("context"), pipeline.stage("step").arguments[1])


def test_start_to_step(pipeline):
    """Red when the scheduler's state lies where the compiler likes: it copies zeros everywhere."""
    assert_fits(pipeline.results("start"), pipeline.stage("step").arguments[2])


def test_step_to_step(pipeline):
    """Red when the state comes out split otherwise than it went in."""
    assert_fits(pipeline.results("step")[0], pipeline.stage("step").arguments[2])


def test_step_to_its_check(pipeline):
    """Every process asks whether the step's numbers are finite."""
    is_finite = pipeline.results("step")[1]
    assert (is_finite.shape, is_finite.dtype) == ((), jnp.bool_)
    assert is_finite.sharding.is_fully_replicated


def test_step_to_latents(pipeline):
    assert_fits(pipeline.results("step")[0].sample, pipeline.stage("latents").arguments[0])


def test_latents_to_decode(pipeline):
    """They pass through the host, cut into latent frames, so every process must hold them whole."""
    latents = pipeline.results("latents")
    assert latents.sharding.is_fully_replicated
    for name in ("decode-first", "decode-next"):
        chunk = pipeline.stage(name).arguments[1]
        assert chunk.dtype == latents.dtype
        assert chunk.shape == (1, 1, *latents.shape[2:])


def test_decode_to_decode():
    """The first program's cache, and the following one's own."""
    pipeline = Pipeline(guidance=True)
    expected = pipeline.stage("decode-next").arguments[2]
    for name in ("decode-first", "decode-next"):
        frames, is_finite, cache = pipeline.results(name)
        assert_fits(cache, expected)
        assert frames.sharding.is_fully_replicated
        assert is_finite.sharding.is_fully_replicated
