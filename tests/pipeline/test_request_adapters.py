"""Adapters of single requests: the video that loading with them gives, and the base untouched."""

import hashlib
import logging
import shutil
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

from tests.adapters.make_purple import COLOR, PURPLE
from tests.checkpoint_factory import make_random_model
from tests.pipeline.adapted import latents_of, write_lora
from tests.pipeline.media import make_png
from tests.tolerances import LAYOUT, relative_error
from wan_tpu.adapters.chosen import open_adapters
from wan_tpu.checkpoints.models import open_model
from wan_tpu.demo.judge import choose_scenes
from wan_tpu.demo.recognition import WORDS, judge_frames
from wan_tpu.errors import AdapterError, InputError, OutOfMemoryError
from wan_tpu.family import TRANSFORMER
from wan_tpu.media import NO_MEDIA, Media, digest_of
from wan_tpu.pipeline import resident
from wan_tpu.pipeline.load import place_model
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.together import Calls
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import make_request
from wan_tpu.sharding.layout import parse_layout

PROMPT = "a red circle moving right on a black background"
PURPLE_NAME = PURPLE.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three of wan-tiny, and one of a wider model."""
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copy(PURPLE, folder)
    shapes = open_model("wan-tiny").source(TRANSFORMER).shapes
    write_lora(folder / "fox.safetensors", shapes, ".to_q.weight")
    write_lora(folder / "owl.safetensors", shapes, (".to_q.weight", ".to_k.weight"), seed=1)
    wider = {name: tuple(2 * size for size in shape) for name, shape in shapes.items()}
    write_lora(folder / "wide.safetensors", wider, ".to_q.weight")
    return folder


def load(model, devices, layout="single", **choices):
    parsed = parse_layout(layout)
    return VideoPipeline.load(
        model, layout=parsed, devices=devices[: parsed.num_devices], dtype="float32", **choices
    )


@pytest.fixture(scope="module")
def pipeline(folder, devices):
    return load(open_model("wan-tiny"), devices, adapter_folder=folder)


def small(*adapters, **fields):
    return make_request(PROMPT, adapters=adapters, seed=3, steps=2, **fields)


def bytes_of(params):
    return {name: hashlib.sha256(np.asarray(array)).digest() for name, array in params.items()}


@pytest.fixture
def merges(monkeypatch):
    """Counts sets that are made, and sees that no other one is there meanwhile."""
    counted, sets = [], []
    original = resident.merge_on_mesh

    def count(weights, params, adapters, mesh, compile):
        assert all(each() is None for each in sets), "the set before is still there"
        merged = original(weights, params, adapters, mesh, compile)
        counted.append(len(merged.changed))
        sets.extend(weakref.ref(array) for array in merged.changed.values())
        return merged

    monkeypatch.setattr(resident, "merge_on_mesh", count)
    return counted


def test_a_colour_when_asked_and_none_when_not(pipeline):
    """Interleaved; red when a plain request sees the adapter, or one with it does not."""
    for number, scene in enumerate(choose_scenes(2, np.random.default_rng(0))):
        request = {"prompt": scene.prompt, "seed": number}
        plain = judge_frames(pipeline(make_request(**request)).frames)
        assert all(plain.right_words(scene).values()), (scene, plain)
        result = pipeline(make_request(**request, adapters=(PURPLE_NAME,)))
        verdict = judge_frames(result.frames)
        assert verdict.color == COLOR != scene.color
        assert all(verdict.right_words(scene)[word] for word in WORDS if word != "color")
        digest = hashlib.sha256(PURPLE.read_bytes()).hexdigest()
        assert result.metadata["adapters"] == [
            {
                "file": PURPLE_NAME,
                "digest": f"sha256:{digest}",
                "strength": 1.0,
                "expert": None,
                "components": [TRANSFORMER],
            }
        ]


def test_unloaded_the_bases_bytes_are_there_and_every_time_the_same_comes(pipeline, merges):
    """Plain, A, plain, B, A, A: the last makes no set, and of two sets the first is gone."""
    base = dict(pipeline._executor.weights.base[TRANSFORMER])
    before = bytes_of(base)
    requests = [(), ("fox.safetensors",), (), ("owl.safetensors:0.5",), *[("fox.safetensors",)] * 2]
    plain, first, again, other, second, third = (
        latents_of(pipeline, small(*adapters)) for adapters in requests
    )
    assert merges == [2, 4, 2]
    for one, two in ((plain, again), (first, second), (first, third)):
        np.testing.assert_array_equal(one, two)
    for one, two in ((plain, first), (plain, other), (first, other)):
        assert relative_error(one, two) > 1e-2
    now = pipeline._executor.weights.of(TRANSFORMER, None, on_one_branch=False)
    assert all(now[name] is array for name, array in base.items())
    assert bytes_of(now) == before


def test_two_adapters_with_strengths_are_what_loading_gives(pipeline, folder, devices):
    """Red when a strength means nothing, or one of two is left out."""
    said = ("fox.safetensors:0.75", "owl.safetensors:-0.5")
    loaded = load(
        open_model("wan-tiny"), devices, adapters=open_adapters(f"{folder}/{each}" for each in said)
    )
    expected = loaded._executor.weights.base[TRANSFORMER]
    run = pipeline._plan(small(*said), Watch())
    pipeline._executor.add_adapters(run)
    merged = pipeline._executor.weights.of(TRANSFORMER, run.adapters, on_one_branch=False)
    for name, array in expected.items():
        np.testing.assert_allclose(merged[name], array, rtol=0, atol=1e-6, err_msg=name)
    assert run.adapters.described == loaded.adapters
    weaker = pipeline._plan(small("fox.safetensors:0.25", said[1]), Watch())
    assert not pipeline._executor.weights.has(weaker.adapters)  # the same files make another set


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A model of two experts that takes a picture, and adapters of what each program reads."""
    model = open_model(str(make_random_model(tmp_path_factory.mktemp("model"), "i2v-a14b")))
    folder = tmp_path_factory.mktemp("adapters")
    shapes = model.source(TRANSFORMER).shapes
    ends = ("attn1.to_q.weight", "attn2.to_k.weight", "ffn.net.2.weight", "patch_embedding.weight")
    write_lora(folder / "fox.safetensors", shapes, ends)
    write_lora(folder / "owl.safetensors", shapes, ends, seed=1)
    return model, folder, ("fox.safetensors@high", "owl.safetensors:0.5@low")


def pictured(*adapters, guidance_scale):
    picture = make_png(96, 64)
    request = small(
        *adapters, size="96x64", frames=5, guidance_scale=guidance_scale, image=digest_of(picture)
    )
    return request, Media.of(picture)


@pytest.fixture(scope="module")
def expected(experts, devices):
    """One device's latents, loaded with the adapters, by the guidance's scale."""
    model, folder, said = experts
    loaded = load(model, devices, adapters=open_adapters(f"{folder}/{each}" for each in said))
    return {scale: latents_of(loaded, *pictured(guidance_scale=scale)) for scale in (3.0, 1.0)}


@pytest.mark.parametrize(
    ("layout", "scale"),
    [
        ("dp2-sp2 ring", 1.0),  # on the mesh of one branch
        ("sp2-tp2 replicated", 3.0),
        pytest.param("dp2-tp2", 3.0, marks=pytest.mark.slow),
        pytest.param("tp4", 1.0, marks=pytest.mark.slow),  # which pads three heads
        pytest.param("dp2-sp2-tp2 allgather replicated", 1.0, marks=pytest.mark.slow),
    ],
)
def test_on_layouts_of_two_experts_they_are_what_loading_gives(
    layout, scale, experts, expected, devices
):
    """Red when an expert has the other's, or the text's keys or the picture's are the base's."""
    model, folder, said = experts
    pipeline = load(model, devices, layout, adapter_folder=folder)
    got = latents_of(pipeline, *pictured(*said, guidance_scale=scale))
    assert relative_error(got, expected[scale]) <= LAYOUT
    plain = latents_of(pipeline, *pictured(guidance_scale=scale))
    assert relative_error(plain, expected[scale]) > 100 * LAYOUT


@pytest.mark.parametrize(
    ("adapters", "error", "message"),
    [
        (
            ("nothing.safetensors",),
            AdapterError,
            r"known: fox\.safetensors, owl\.safet.*purple",
        ),
        (("wide.safetensors",), InputError, r"cannot be used: .* of wan-tiny is \[128, 128\]"),
        (("fox.safetensors@low",), InputError, "wan-tiny has one transformer"),
        (("fox.safetensors:much",), InputError, "expected a number"),
        (("../fox.safetensors",), AdapterError, "unknown adapter"),
    ],
)
def test_what_is_refused_is_refused_before_anything_runs(pipeline, adapters, error, message):
    with pytest.raises(error, match=message):
        pipeline(make_request(PROMPT, adapters=adapters))


def test_a_quantised_model_takes_none(pipeline, folder, devices):
    """Neither by name nor by a preset; plain requests are planned."""
    model = place_model(
        pipeline.model.description, devices=devices[:1], dtype="float32", quantize="int8"
    )
    executor = pipeline._executor
    bare = VideoPipeline(model, executor.tokenizer, executor.vae, folder)
    for fields in ({"adapters": ("fox.safetensors",)}, {"fast": True}):
        with pytest.raises(InputError, match="the weights of wan-tiny are quantised to int8"):
            bare._plan(make_request(PROMPT, **fields), Watch(), NO_MEDIA)
    assert bare._plan(make_request(PROMPT), Watch(), NO_MEDIA).adapters is None


def test_without_a_folder_none_can_be_named(pipeline, devices):
    bare = VideoPipeline(pipeline.model, pipeline._executor.tokenizer, pipeline._executor.vae)
    with pytest.raises(InputError, match="loaded without a folder of adapters"):
        bare(make_request(PROMPT, adapters=("fox.safetensors",)))


def test_several_made_together_have_their_presets(pipeline):
    """Red when the steps of a batch are the base's."""
    requests = [
        make_request(prompt, fast=True, seed=seed)
        for seed, prompt in enumerate((PROMPT, PROMPT.replace("red", "blue")))
    ]
    pipeline._executor.weights.drop()
    latents = pipeline._together(requests, Calls())._latents()
    for number, request in enumerate(requests):
        alone = latents_of(pipeline, request)
        assert relative_error(latents[number : number + 1], alone) <= LAYOUT


def test_other_weights_take_the_sets_place(pipeline, merges):
    """As training's samples bring them: what was made of the weights before is no longer used."""
    base = pipeline._executor.weights.base
    request = small("fox.safetensors")
    before = latents_of(pipeline, request)
    still = {name: jnp.zeros_like(array) for name, array in base[TRANSFORMER].items()}
    pipeline.set_weights({**base, TRANSFORMER: still})
    assert relative_error(latents_of(pipeline, request), before) > 0.1
    pipeline.set_weights(base)
    np.testing.assert_array_equal(latents_of(pipeline, request), before)
    assert len(merges) >= 2


def test_a_switch_tells_what_it_cost(pipeline, caplog):
    pipeline._executor.weights.drop()
    with caplog.at_level(logging.INFO):
        latents_of(pipeline, small("owl.safetensors"))
        latents_of(pipeline, small("owl.safetensors"))
    (told,) = [each for each in caplog.messages if each.startswith("adapters owl.safetensors: ")]
    # Two self-attention's and two cross-attention's matrices of six layers, float32.
    resident_mib = 4 * 6 * 128 * 128 * 4 / 2**20
    assert "adapters owl.safetensors: 4 weights made in " in told
    assert told.endswith(f"{resident_mib:.1f} MiB more on each")


@pytest.mark.parametrize("stage", ["merge", "step"])
def test_where_the_set_does_not_fit_one_line_says_so_and_the_next_is_made(
    stage, pipeline, monkeypatch
):
    """Neither when it is made nor beside the video; then its memory is free."""
    weights = pipeline._executor.weights
    weights.drop()
    expected = latents_of(pipeline, small())
    program = pipeline._executor.program

    def greedy(run, wanted):
        if wanted.name == stage and run.adapters is not None:
            return lambda *_: jnp.zeros(10**15, jnp.float32).block_until_ready()
        return program(run, wanted)

    monkeypatch.setattr(pipeline._executor, "program", greedy)
    request = small("fox.safetensors")
    with pytest.raises(OutOfMemoryError, match="17 frames with adapters, whose") as caught:
        pipeline(request)
    assert "\n" not in str(caught.value)
    assert not weights.has(pipeline._plan(request, Watch()).adapters)
    np.testing.assert_array_equal(latents_of(pipeline, small()), expected)
    monkeypatch.undo()
    assert relative_error(latents_of(pipeline, request), expected) > 1e-2


def test_a_plain_request_is_told_that_a_set_was_in_its_way(pipeline, monkeypatch):
    latents_of(pipeline, small("fox.safetensors"))
    program = pipeline._executor.program

    def greedy(run, wanted):
        if wanted.name == "step":
            return lambda *_: jnp.zeros(10**15, jnp.float32).block_until_ready()
        return program(run, wanted)

    monkeypatch.setattr(pipeline._executor, "program", greedy)
    with pytest.raises(OutOfMemoryError, match="adapters made took some of it and are gone now"):
        pipeline(small())
    with pytest.raises(OutOfMemoryError) as caught:
        pipeline(small())
    assert "adapters" not in str(caught.value)
