"""Step caches in the pipeline: against diffusers' own transformers that are made to reuse."""

import contextlib
import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from tests.checkpoint_factory import PROMPT, make_random_model
from tests.pipeline.originals import load_original, run_original
from tests.tolerances import LAYOUT, relative_error
from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.errors import InputError
from wan_tpu.media import digest_of
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.run import metadata_of, schedule_steps
from wan_tpu.pipeline.step_cache import sizes_of, with_curve
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.step_cache import Curve

WIDTH, HEIGHT, FRAMES = 80, 48, 9
"""Five by three tokens in three latent frames: 45, which divide by nothing and so are padded."""

PICTURE, CLIP = digest_of(b"a picture"), digest_of(b"a clip")

SLOW = pytest.mark.slow


def with_flat_curve(model, num_steps):
    """The model with a curve of ratios that change little: the limit of steps in a row decides."""
    ratios = (1.0, *[0.999] * (num_steps - 1))
    curve = Curve(
        name="flat", flow_shift=5.0, threshold=0.5, most_in_a_row=2, retention=0.0,
        conditional=ratios, unconditional=ratios, source="a test",
    )  # fmt: skip
    return dataclasses.replace(model, curve=curve)


# What is planned


def planned(name, **fields):
    model = describe_model(name)
    request, _ = check_request(model, VideoRequest(prompt=PROMPT, **fields))
    return "".join(step.blocks.value for step in schedule_steps(model, request)[1])


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("wan2.1-t2v-14b", {}, "XXXXXXXXXX..X..X..X..X..X..X..X..X..X..X..X.X.X.XX"),
        (
            "wan2.1-t2v-14b",
            {"step_cache": "magcache:.24:6"},
            "XXXXXXXXXX......X......X......X.....X....X..X..X.X",
        ),
        (
            "wan2.1-i2v-14b-720p",
            {"image": PICTURE, "width": 1280, "height": 720},
            "XXXXXXXX..X..X..X..X..X..X..X..X..X.X.XX",
        ),
        ("wan2.2-ti2v-5b", {}, "XXXXXXXXXX..X..X..X..X..X..X..X..X..X.X.X.X.X.X.X."),
        (
            "wan2.2-ti2v-5b",
            {"image": PICTURE},
            "XXXXXXXXXX..X..X..X..X..X..X..X..X..X.X.X.X.X.XXX.",
        ),
        ("wan2.2-t2v-a14b", {}, "XXXXX..X..X..X..X..X..X..XXXX.X.X.XXXXXX"),
        ("wan2.2-i2v-a14b", {"image": PICTURE}, "XXX..X..X..X..XXXXXXX..X..X.X.X.X.XXXXXX"),
        ("wan-tiny", {}, "XX..X..X.XXX"),
        ("wan-tiny-ti2v", {"image": PICTURE}, "XX..X..X.XXX"),
        (
            "wan2.2-t2v-a14b",
            {"step_cache": "easycache"},
            f"{'X' * 8}{'?' * 18}XX{'?' * 11}X",
        ),
        # Of a clip the last 14 steps, all of the second transformer: the curve's last 14, and
        # two of them computed first.
        ("wan2.2-t2v-a14b", {"video": CLIP, "strength": 0.35}, "XX..X.X.XXXXXX"),
    ],
)  # fmt: skip
def test_a_models_own_curve_plans_its_default_request(name, fields, expected):
    """Red when one step of a second transformer may reuse what the first one left."""
    assert planned(name, **{"step_cache": "magcache", **fields}) == expected


def test_a_large_picture_and_a_small_one_have_curves_of_their_own():
    """The same checkpoint as far as its files say; the size of the video decides."""
    name = "wan2.1-i2v-14b-480p"
    both = [
        planned(name, step_cache="magcache:.03:9", image=PICTURE, width=width, height=height)
        for width, height in ((832, 480), (1280, 720))
    ]
    assert both[0] != both[1]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("wan2.1-flf2v-14b-720p", {"image": PICTURE, "last_image": PICTURE},
         "there is no curve of it; make one with `wan-tpu calibrate MODEL -o ratios.json`"),
        ("wan-tiny", {"fast": True}, "step_cache is magcache and the preset wan-tiny-4 has none"),
    ],
)  # fmt: skip
def test_what_has_no_plan_is_refused(name, fields, message):
    with pytest.raises(InputError, match=message):
        planned(name, step_cache="magcache", **fields)


def test_a_model_without_a_curve_has_easycache():
    assert "?" in planned(
        "wan2.1-flf2v-14b-720p", step_cache="easycache", image=PICTURE, last_image=PICTURE
    )


def test_a_curve_of_ones_own_is_of_its_model_and_noise_levels(tmp_path):
    model = describe_model("wan-tiny")
    curve = with_flat_curve(model, 12).curve
    path = tmp_path / "ratios.json"

    def write(sizes):
        path.write_text(json.dumps(dataclasses.replace(curve, transformer=sizes).to_json()))

    write(sizes_of(model) | {"layers": 30})
    with pytest.raises(InputError, match=r"was measured on flat, a transformer of .*layers 30"):
        with_curve(model, path)
    write(sizes_of(model))
    own = with_curve(model, path)
    request = VideoRequest(prompt=PROMPT, step_cache="magcache")
    complete, _ = check_request(own, request)
    steps = schedule_steps(own, complete)[1]
    assert "".join(step.blocks.value for step in steps) == "X..X..X..X.."
    for field, value in (("flow_shift", 3.0), ("scheduler", "euler")):
        with pytest.raises(InputError, match=f"were measured with {field}"):
            check_request(own, dataclasses.replace(request, **{field: value}))


# What runs


class Models:
    """Random models, loaded on first use, with a curve for eight steps."""

    def __init__(self, make_folder):
        self._make_folder = make_folder
        self._folders: dict[str, str] = {}
        self._pipelines: dict[tuple[str, str], VideoPipeline] = {}

    def folder(self, kind):
        if kind not in self._folders:
            self._folders[kind] = str(make_random_model(self._make_folder(kind), kind))
        return self._folders[kind]

    def pipeline(self, kind, layout_name) -> VideoPipeline:
        key = kind, layout_name
        if key not in self._pipelines:
            layout = parse_layout(layout_name)
            self._pipelines[key] = VideoPipeline.load(
                with_flat_curve(open_model(self.folder(kind)), 8),
                layout=layout,
                devices=jax.devices()[: layout.num_devices],
                dtype="float32",
            )
        return self._pipelines[key]

    def request(self, kind, **fields: Any) -> VideoRequest:
        usual: dict[str, Any] = {"num_inference_steps": 8, "guidance_scale": 3.0}
        request = VideoRequest(
            prompt=PROMPT, negative_prompt="moving left", width=WIDTH, height=HEIGHT,
            num_frames=FRAMES, flow_shift=5.0, seed=11, **(usual | fields),
        )  # fmt: skip
        return request.resolved(open_model(self.folder(kind)).defaults)


@pytest.fixture(scope="module")
def models(tmp_path_factory, devices):
    return Models(tmp_path_factory.mktemp)


def denoise(pipeline, request, **watch):
    """What the steps end with, after every program is there; nothing is decoded."""
    executor = pipeline._executor
    run = pipeline._plan(request, Watch(**watch))
    contexts = executor.encode_text(run, None)
    return executor.denoise(
        run, contexts, executor.conditions(run, None), executor.start(run, None)
    )


def latents_of(pipeline, request):
    return pipeline.model.vae.denormalise(denoise(pipeline, request).latents)


@contextlib.contextmanager
def reusing(original, steps, ratios=None):
    """diffusers' transformers, whose blocks are overruled at steps that reuse; see `steps`.

    Args:
        original: the pipeline. It evaluates the prompt, then the negative one.
        steps: as the pipeline plans them.
        ratios: a list that gets the ratio of each evaluation after a first one.
    """
    batch = max(step.batch for step in steps)  # of all of its steps, where one has guidance
    evaluations = iter([(step, branch) for step in steps for branch in range(batch)])
    now: list[Any] = []
    left: dict[int, torch.Tensor] = {}

    def before(module, arguments):
        now[:] = (*next(evaluations), arguments[0])

    def after(module, arguments, output):
        step, branch, begun = now
        if step.blocks.value == ".":
            return begun + left[branch]
        residual = output - begun
        if ratios is not None and branch in left:
            ratios.append(float((residual.norm(dim=-1) / left[branch].norm(dim=-1)).mean()))
        left[branch] = residual
        return None

    hooks = []
    for transformer in filter(None, (original.transformer, original.transformer_2)):
        hooks += [transformer.blocks[0].register_forward_pre_hook(before)]
        hooks += [transformer.blocks[-1].register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    assert next(evaluations, None) is None


EXPERTS = {"guidance_scale": 4.0, "guidance_scale_2": 1.0, "num_inference_steps": 8}


@pytest.mark.parametrize(
    ("layout", "fields"),
    [
        ("sp4-tp2", EXPERTS),
        pytest.param("single", EXPERTS, marks=SLOW),
        pytest.param("dp2-sp2-tp2", EXPERTS | {"guidance_scale_2": 3.0}, marks=SLOW),
        pytest.param("sp8", EXPERTS | {"guidance_scale": 1.0}, marks=SLOW),
        pytest.param("dp2-sp4", EXPERTS, marks=SLOW),
    ],
)
def test_magcache_equals_diffusers_whose_blocks_are_overruled(models, layout, fields):
    """Two transformers, each with its guidance, padded heads and tokens; A, then B, then A again.

    Red when the residual is added twice, is the other branch's, or is the first transformer's at
    the second one's first step; and when anything of a request is left for the next.
    """
    pipeline = models.pipeline("t2v-a14b", layout)
    request = models.request("t2v-a14b", step_cache="magcache", **fields)
    pipeline.prepare(request)
    steps = pipeline._plan(request, Watch()).steps
    assert "".join(step.blocks.value for step in steps) == "X..XX..X"
    assert [step.component for step in steps] == ["transformer"] * 4 + ["transformer_2"] * 4
    first = latents_of(pipeline, request)
    folder = models.folder("t2v-a14b")
    with reusing(load_original(folder, WanPipeline), steps):
        expected = run_original(folder, dataclasses.replace(request, step_cache=None), {})
    assert relative_error(first, expected.latents) <= LAYOUT
    other = dataclasses.replace(request, prompt="a blue square", seed=5)
    assert relative_error(latents_of(pipeline, other), first) > 0.05
    np.testing.assert_array_equal(latents_of(pipeline, request), first)


@contextlib.contextmanager
def deciding(original, threshold, first, last, computed):
    """diffusers' transformer that decides as EasyCache does, evaluation by evaluation."""
    forward, state = original.transformer.forward, {}

    def change(a, b=0.0):
        return float((a - b).abs().mean())

    def decide(hidden_states, **others):
        count = state["count"] = state.get("count", -1) + 1
        step, branch, x = count // 2, count % 2, hidden_states
        if branch == 0:
            runs = step < first or step == last
            if not runs:
                moved = change(x, state["last"]) / change(state[0][1])
                state["sum"] += state["rate"] * moved
                runs = state["sum"] >= threshold
            state["runs"], state["last"] = runs, x
            state["sum"] = 0.0 if runs else state["sum"]
            computed.append(runs)
        if not state["runs"]:
            seen, velocity = state[branch]
            return (x + (velocity - seen),)
        (velocity,) = forward(hidden_states=x, **others)
        if branch == 0 and 0 in state:
            seen, before = state[0]
            state["rate"] = change(velocity, before) / change(x, seen)
        state[branch] = x, velocity
        return (velocity,)

    original.transformer.forward = decide
    try:
        yield
    finally:
        original.transformer.forward = forward


@pytest.mark.parametrize(
    "layout",
    ["dp2-sp2-tp2", *(pytest.param(name, marks=SLOW) for name in ("single", "sp8", "dp2-sp4"))],
)
def test_easycache_equals_diffusers_that_decides_likewise(models, layout):
    """Red when padding is part of a mean, the negative prompt decides, or a step is off by one."""
    pipeline = models.pipeline("t2v", layout)
    # At this threshold the negative prompt would compute other steps.
    request = models.request("t2v", step_cache="easycache:0.75", num_inference_steps=16)
    done = denoise(pipeline, request)
    folder, computed = models.folder("t2v"), []
    with deciding(load_original(folder, WanPipeline), 0.75, 3, 15, computed):
        expected = run_original(folder, dataclasses.replace(request, step_cache=None), {})
    assert done.computed == tuple(computed)
    assert 4 < sum(computed) < 14, "some of the steps that may decide are computed, not all"
    latents = pipeline.model.vae.denormalise(done.latents)
    assert relative_error(latents, expected.latents) <= LAYOUT
    other = dataclasses.replace(request, step_cache="easycache:0.001", seed=5)
    assert denoise(pipeline, other).computed == (True,) * 16
    np.testing.assert_array_equal(denoise(pipeline, request).latents, done.latents)


@pytest.mark.parametrize("cache", ["magcache", "easycache:0.75"])
def test_padding_never_enters(models, cache):
    """Padding tokens of 10,000 change nothing: no mean, no residual of a real token holds them."""
    pipeline = models.pipeline("t2v", "dp2-sp2-tp2")
    executor = pipeline._executor
    steps = 16 if cache.startswith("easycache") else 8
    run = pipeline._plan(
        models.request("t2v", step_cache=cache, num_inference_steps=steps), Watch()
    )
    contexts, conditions = executor.encode_text(run, None), executor.conditions(run, None)
    start = executor.start(run, None)
    assert start.shape[1] > run.geometry.num_tokens == 45
    poisoned = jax.device_put(start.at[:, 45:].set(1e4), start.sharding)
    clean, other = (executor.denoise(run, contexts, conditions, x) for x in (start, poisoned))
    assert other.computed == clean.computed
    np.testing.assert_array_equal(other.latents, clean.latents)


def test_ratios_are_those_of_diffusers_residuals(models):
    """Red when padding is part of the mean, or a branch's ratio is the other one's."""
    pipeline = models.pipeline("t2v", "dp2-sp2-tp2")
    request = models.request("t2v", num_inference_steps=4)
    ratios = pipeline.step_ratios(request)
    expected: list[float] = []
    folder, steps = models.folder("t2v"), pipeline._plan(request, Watch()).steps
    with reusing(load_original(folder, WanPipeline), steps, expected):
        run_original(folder, request, {})
    assert ratios.shape == (4, 2)
    assert relative_error(ratios[1:], np.reshape(expected, (3, 2))) <= LAYOUT


def test_the_memory_of_what_is_carried_is_handed_on(models):
    """Red when a step makes a second residual beside the one that it is given."""
    pipeline = models.pipeline("t2v-a14b", "sp4-tp2")
    run = pipeline._plan(models.request("t2v-a14b", step_cache="magcache", **EXPERTS), Watch())
    for reuses in (False, True):
        stage = run.step_stage(2, reuses)
        carried = jax.tree.leaves(stage.arguments[2])
        sizes = [np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in carried]
        compiled = pipeline._executor.program(run, stage)
        assert compiled.memory_analysis().alias_size_in_bytes >= sum(sizes), reuses


def test_what_ran_is_told_and_was_compiled_ahead(models, caplog):
    """Red when a program of the steps, or of their start, is not among those of warming up."""
    pipeline = models.pipeline("t2v", "dp2-sp2-tp2")
    for cache, expected in (("magcache", "X..X..X."), ("easycache:1", None)):
        request = models.request("t2v", step_cache=cache)
        run = pipeline._plan(request, Watch())
        for stage in run.stages():
            if not stage.name.startswith("decode"):
                pipeline._executor.program(run, stage)
        stages: list[str] = []
        caplog.clear()
        with caplog.at_level("INFO", logger="wan_tpu.pipeline.denoised"):
            done = denoise(pipeline, request, on_progress=lambda r, s=stages: s.append(r.stage))
        assert set(stages) == {"text", "denoise"}
        told = metadata_of(run, "", (), done.computed)["step_cache"]
        assert expected in (None, told["plan"])
        assert (told["plan"][0], told["plan"].count("X"), told["steps"]) == (
            "X",
            told["computed"],
            8,
        )
        assert (told["name"], told["threshold"]) == (cache[:-2], 1.0) or told["threshold"] == 0.5
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.endswith(f"{told['computed']} of 8 steps computed, {told['plan']}")
