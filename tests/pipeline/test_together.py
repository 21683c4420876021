"""Several videos in one denoising run: each is what it is alone, and ends by itself."""

import functools
from typing import Any

import numpy as np
import pytest

from tests.checkpoint_factory import PROMPT, make_random_checkpoint, make_random_model
from tests.consistency.conftest import SMALL_VAE
from tests.tolerances import LAYOUT, psnr, relative_error
from wan_tpu.errors import BadNumbersError, Cancelled, InputError
from wan_tpu.pipeline import together as making
from wan_tpu.pipeline.progress import Calls, Watch
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import parse_layout

PSNR = 50.0
"""dB; a difference of one level in every pixel is 48."""

PROMPTS = ("a red circle moving right", "a green square", "a blue circle moving up", "a white star")
NEGATIVES = ("", "blurred", "moving left", "")
SIZE: dict[str, Any] = {"width": 28, "height": 20, "num_frames": 9}
"""105 tokens: nothing that splits them divides them."""


def make_requests(count, **kwargs):
    own = zip(PROMPTS, NEGATIVES, (5, 8, 11, 14), strict=True)
    return [
        VideoRequest(prompt=prompt, negative_prompt=negative, seed=seed, **(SIZE | kwargs))
        for prompt, negative, seed in list(own)[:count]
    ]


@pytest.fixture(scope="module")
def pipeline_of(tmp_path_factory, devices):
    """A model of so many heads, or of a kind, on a layout; loaded once."""

    @functools.cache
    def folder(model):
        if isinstance(model, str):
            return str(make_random_model(tmp_path_factory.mktemp(model), model))
        sizes = {"num_attention_heads": model, "attention_head_dim": 12, "num_layers": 2}
        return str(make_random_checkpoint(tmp_path_factory.mktemp("model"), sizes, SMALL_VAE))

    @functools.cache
    def load(model, text):
        layout = parse_layout(text)
        return VideoPipeline.from_pretrained(
            folder(model), layout=layout, devices=devices[: layout.num_devices], dtype="float32"
        )

    return load


def latents_alone(pipeline, request):
    executor, run = pipeline._executor, pipeline._plan(request, Watch())
    contexts = executor.encode_text(run, None)
    conditions = dict.fromkeys(run.components)
    return executor.denoise(run, contexts, conditions, executor.start(run, None)).latents


def latents_together(pipeline, requests):
    """Of each, and the layout that they were made on."""
    together = pipeline._together(requests, Calls())
    latents = together._denoise(together._texts())
    return latents[: len(requests)], str(together.model.layout)


GUIDED, UNGUIDED = {"guidance_scale": 4.0}, {"guidance_scale": 1.0}
CASES = [
    (8, "single", 3, GUIDED, "single"),  # one more fills the batch up
    (8, "sp8", 2, GUIDED, "dp4-sp2"),  # the pair of each sample over two parts of dp
    (8, "dp2-sp4 ring replicated", 4, GUIDED, "dp8 replicated"),
    (8, "dp2-sp2-tp2", 3, UNGUIDED, "dp4-tp2"),  # otherwise it would be sp4
    (5, "sp4", 2, GUIDED, "sp4"),  # with other shares of sp no 8 heads
    pytest.param(*(5, "dp2-sp3 allgather", 4, GUIDED, "dp2-sp3 allgather"), marks=pytest.mark.slow),
    pytest.param(
        *(7, "dp3-sp2 replicated", 2, GUIDED, "dp3-sp2 replicated"),  # two of six are copies
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("heads", "layout", "count", "guidance", "expected"), CASES)
def test_each_is_what_it_is_alone(heads, layout, count, guidance, expected, pipeline_of):
    requests = make_requests(count, num_inference_steps=3, **guidance)
    latents, used = latents_together(pipeline_of(heads, layout), requests)
    assert used == expected
    alone = pipeline_of(heads, "single")
    for i, request in enumerate(requests):
        assert relative_error(latents[i : i + 1], latents_alone(alone, request)) <= LAYOUT
    assert relative_error(latents[0], latents[1]) > 0.1, "the same video would prove nothing"


def test_two_experts_of_which_one_has_no_guidance(pipeline_of):
    size: dict[str, Any] = {"width": 48, "height": 32, "num_frames": 5}
    scales = {"guidance_scale": 4.0, "guidance_scale_2": 1.0}
    requests = make_requests(2, num_inference_steps=4, **size, **scales)
    pipeline = pipeline_of("t2v-a14b", "dp2")
    steps = pipeline._plan(requests[0], Watch()).steps
    assert {(step.component, step.batch) for step in steps} == {
        ("transformer", 2),
        ("transformer_2", 1),
    }
    latents, _ = latents_together(pipeline, requests)
    for i, request in enumerate(requests):
        assert relative_error(latents[i : i + 1], latents_alone(pipeline, request)) <= LAYOUT


def test_fresh_noise_is_of_each_ones_seed(pipeline_of):
    given = {"sigmas": (1.0, 0.7, 0.3), "scheduler": "renoise", "guidance_scale": 1.0}
    requests, pipeline = make_requests(2, **given), pipeline_of(8, "single")
    latents, _ = latents_together(pipeline, requests)
    for i, request in enumerate(requests):
        assert relative_error(latents[i : i + 1], latents_alone(pipeline, request)) <= LAYOUT


def test_no_weight_moves(pipeline_of):
    pipeline = pipeline_of(8, "sp8")
    executor, run = pipeline._executor, pipeline._together(make_requests(2), Calls()).first
    model = run.model
    assert model.layout != pipeline.model.layout
    for weight in model.denoiser.weights():
        before = executor.weights.base["transformer"][weight.name]
        after = executor.params_seen_on(run, "transformer", [weight])[weight.name]
        for first, second in zip(before.addressable_shards, after.addressable_shards, strict=True):
            assert first.data.unsafe_buffer_pointer() == second.data.unsafe_buffer_pointer()


class Told:
    """What whoever asked for several was told, in order."""

    def __init__(self, cancel=lambda told: ()):
        self.events = []
        self.frames = {}
        self.outcomes = {}
        self.cancel = cancel

    def calls(self):
        return Calls(
            on_progress=lambda who, p: self.events.append((tuple(who), p.stage, p.done)),
            on_end=self.end,
            on_frames=lambda who, frames: self.frames.setdefault(who, []).append(frames),
            cancelled=lambda: self.cancel(self),
        )

    def end(self, who, outcome):
        assert who not in self.outcomes
        self.outcomes[who] = outcome
        self.events.append(((who,), "end", type(outcome).__name__))

    def has_come_to(self, stage, done):
        return any(event[1:] == (stage, done) for event in self.events)


@pytest.fixture(scope="module")
def wan_tiny(devices):
    return VideoPipeline.from_pretrained(
        "wan-tiny", layout=parse_layout("single"), devices=devices[:1]
    )


@pytest.fixture(scope="module")
def tiny_requests():
    return [
        VideoRequest(prompt=PROMPT, seed=seed, num_frames=5, num_inference_steps=3)
        for seed in (1, 2, 3)
    ]


@pytest.fixture(scope="module")
def alone(wan_tiny, tiny_requests):
    return [wan_tiny(request) for request in tiny_requests]


def test_each_has_its_progress_frames_and_metadata(wan_tiny, tiny_requests, alone):
    told = Told()
    wan_tiny.make_together(tiny_requests, told.calls())
    everybody = (0, 1, 2)
    steps = [event for event in told.events if event[1] == "denoise"]
    assert steps == [(everybody, "denoise", done) for done in (0, 1, 2, 3)]
    later = [event for event in told.events if event[1] in ("decode", "end")]
    assert later == [
        event
        for who in everybody
        for event in [
            *(((who,), "decode", done) for done in (0, 1, 5)),
            ((who,), "end", "dict"),
        ]
    ]
    for who, result in enumerate(alone):
        assert psnr(np.concatenate(told.frames[who]), result.frames) >= PSNR
        metadata = told.outcomes[who]
        assert metadata["seed"] == tiny_requests[who].seed
        assert metadata["made_together"] == 3
        assert metadata["request"] == result.metadata["request"]
        assert {"text", "denoise", "decode"} <= metadata["seconds"].keys()


def test_who_is_cancelled_ends_at_once_and_the_others_go_on(wan_tiny, tiny_requests, alone):
    told = Told(lambda told: {1} if told.has_come_to("denoise", 1) else ())
    wan_tiny.make_together(tiny_requests, told.calls())
    assert isinstance(told.outcomes[1], Cancelled)
    ended = told.events.index(((1,), "end", "Cancelled"))
    assert ((0, 2), "denoise", 2) in told.events[ended:], "it is told before the next step ends"
    assert not any(1 in who for who, *_ in told.events[ended + 1 :])
    assert told.frames.keys() == {0, 2}
    for who in (0, 2):
        assert psnr(np.concatenate(told.frames[who]), alone[who].frames) >= PSNR


def test_where_all_are_cancelled_nothing_more_runs(wan_tiny, tiny_requests):
    told = Told(lambda told: {0, 1, 2} if told.has_come_to("denoise", 1) else ())
    wan_tiny.make_together(tiny_requests, told.calls())
    assert {type(outcome) for outcome in told.outcomes.values()} == {Cancelled}
    assert not told.has_come_to("denoise", 2)
    assert not told.frames


def test_who_is_cancelled_while_its_frames_come(wan_tiny, tiny_requests):
    told = Told(lambda told: {0, 2} if told.has_come_to("decode", 1) else ())
    wan_tiny.make_together(tiny_requests, told.calls())
    assert [type(told.outcomes[who]).__name__ for who in (0, 1, 2)] == [
        "Cancelled",
        "dict",
        "Cancelled",
    ]
    assert 2 not in told.frames


def test_bad_numbers_end_their_own_video_alone(wan_tiny, tiny_requests, alone, monkeypatch):
    honest = making.make_noise

    def noise(seed, *rest):
        return honest(seed, *rest) * (np.nan if seed == 2 else 1)

    monkeypatch.setattr(making, "make_noise", noise)
    told = Told()
    wan_tiny.make_together(tiny_requests, told.calls())
    assert isinstance(told.outcomes[1], BadNumbersError)
    assert "denoise, step 1 of 3" in str(told.outcomes[1])
    for who in (0, 2):
        assert psnr(np.concatenate(told.frames[who]), alone[who].frames) >= PSNR


def test_a_bad_prompt_ends_its_own_video_alone(wan_tiny, tiny_requests, monkeypatch):
    honest, asked = wan_tiny._executor.embed, []

    def embed(*arguments):
        embeddings, is_finite = honest(*arguments)
        asked.append(is_finite)
        return embeddings, is_finite & (len(asked) != 3)

    monkeypatch.setattr(wan_tiny._executor, "embed", embed)
    told = Told()
    wan_tiny.make_together(tiny_requests, told.calls())
    assert [type(told.outcomes[who]).__name__ for who in (0, 1, 2)] == [
        "dict",
        "dict",
        "BadNumbersError",
    ]


def test_programs_are_those_of_the_next_larger_batch(wan_tiny, tiny_requests):
    """Three and four are filled up alike, and share programs."""
    programs = wan_tiny._executor.programs
    wan_tiny.make_together(tiny_requests, Told().calls())
    before = len(programs)
    wan_tiny.make_together([*tiny_requests, tiny_requests[0]], Told().calls())
    assert len(programs) == before


def test_a_step_is_measured_alone_and_together(wan_tiny, tiny_requests):
    wan_tiny.warm_up_together(tiny_requests[0], 4)
    for count in (1, 4):
        assert wan_tiny.step_seconds(tiny_requests[0], count) > 0
    with pytest.raises(Cancelled):
        wan_tiny.step_seconds(tiny_requests[0], 4, should_cancel=lambda: True)


def test_what_cannot_be_made_together_is_refused(wan_tiny, tiny_requests):
    first, second, _ = tiny_requests
    other = VideoRequest(prompt=PROMPT, num_frames=9, num_inference_steps=2)
    with pytest.raises(InputError, match="differ in num_frames, num_inference_steps; they may"):
        wan_tiny.make_together([first, other], Calls())
    with pytest.raises(InputError, match="9 videos together are too many; 8 are the most"):
        wan_tiny.make_together([second] * 9, Calls())
