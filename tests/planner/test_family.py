"""Plans of every kind of model: which stages, how often, and what stays on the devices."""

import dataclasses

import jax.numpy as jnp
import pytest

from wan_tpu.checkpoints.models import describe_model
from wan_tpu.errors import InputError, MediaError
from wan_tpu.media import placeholders
from wan_tpu.pipeline.model import make_video_model
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.run import plan_run
from wan_tpu.planner.compile import FactsCache, StageFacts
from wan_tpu.planner.costs import Attention
from wan_tpu.planner.hardware import GIB, find_slice
from wan_tpu.planner.plan import Planner, make_job
from wan_tpu.planner.rows import served_bytes
from wan_tpu.planner.table import format_table, to_json
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import make_mesh

ALWAYS = {"text": 1, "start": 1, "latents": 1, "decode-first": 1}
WHOLE_VIDEO = {"encode-first": 1, "encode-next": 20}


def job_of(name, *inputs, **fields):
    request = VideoRequest(prompt="p", **fields)
    request = dataclasses.replace(request, **placeholders(inputs))
    return make_job(describe_model(name), request, find_slice("v6e-8"))


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (("wan2.1-t2v-14b",), {"context": 1, "step": 50, "decode-next": 20}),
        (
            ("wan2.1-t2v-14b", "video"),
            {"context": 1, "step": 40, "decode-next": 20, **WHOLE_VIDEO},  # strength 0.8
        ),
        (("wan2.2-t2v-a14b",), {"context": 2, "step": 40, "decode-next": 20}),
        (
            ("wan2.2-i2v-a14b",),  # which does not do without a picture
            {"context": 2, "condition": 2, "step": 40, "decode-next": 20, **WHOLE_VIDEO},
        ),
        (
            ("wan2.1-i2v-14b-720p",),
            {"image": 1, "context": 1, "condition": 1, "step": 40, "decode-next": 20} | WHOLE_VIDEO,
        ),
        (("wan2.2-ti2v-5b",), {"context": 1, "step": 50, "decode-next": 30}),
        (
            ("wan2.2-ti2v-5b", "image"),
            {"encode-first": 1, "context": 1, "condition": 1, "step": 50, "decode-next": 30},
        ),
    ],
    ids=lambda value: " with ".join(value) if isinstance(value, tuple) else "",
)
def test_what_a_video_runs(job, expected):
    """Red when an expert's context or condition is not counted, or a picture's encoding is not."""
    assert job_of(*job).runs() == ALWAYS | expected


def test_steps_without_guidance_beside_those_with_it():
    """The A14B's experts, one of them guided: two programs, of the default's 26 and 14 steps."""
    runs = job_of("wan2.2-t2v-a14b", guidance_scale=4.0, guidance_scale_2=1.0).runs()
    assert (runs["step"], runs["step-unguided"]) == (26, 14)
    assert (runs["context"], runs["context-unguided"]) == (1, 1)


def test_steps_that_reuse_are_a_program_of_their_own():
    """Half of the 14B's steps; of the A14B's, with one expert guided, of each batch its own."""
    runs = job_of("wan2.1-t2v-14b", step_cache="magcache").runs()
    assert (runs["step"], runs["step-reuse"]) == (25, 25)
    scales = {"guidance_scale": 4.0, "guidance_scale_2": 1.0}
    job = job_of("wan2.2-t2v-a14b", step_cache="magcache:0.04", **scales)
    names = ("step", "step-unguided", "step-reuse", "step-reuse-unguided")
    assert [job.runs()[name] for name in names] == [12, 11, 14, 3]
    decided = job_of("wan2.1-t2v-14b", step_cache="easycache").runs()
    assert (decided["step"], "step-reuse" in decided) == (50, False)


SMALL = {"width": 64, "height": 64, "num_frames": 5}


@pytest.mark.parametrize(
    "job",
    [
        job_of("wan2.1-flf2v-14b-720p", **SMALL),
        job_of("wan2.2-i2v-a14b", "last_image", guidance_scale_2=1.0, **SMALL),
        job_of("wan2.2-ti2v-5b", "image", guidance_scale=1.0, **SMALL),
        job_of("wan2.2-t2v-a14b", guidance_scale_2=1.0, step_cache="magcache", **SMALL),
        job_of("wan2.1-t2v-1.3b", step_cache="easycache", **SMALL),
    ],
    ids=lambda job: job.description.name,
)
def test_its_stages_are_those_of_the_pipeline(job, devices):
    """Red when the pipeline runs a stage that the plan does not know, or the other way round."""
    layout = Layout(dp=2, sp=4)
    model = make_video_model(
        job.description, make_mesh(layout, devices), layout, dtype=jnp.dtype("bfloat16")
    )
    run = plan_run(job.request, model, model, Watch())
    stages = job.stages_of(run)
    assert list(stages) == list(job.runs()) == list(job.stages)
    assert len(stages) == len(run.stages())
    assert [name.removesuffix("-unguided") for name in stages] == [s.name for s in run.stages()]
    batches = {name: stages[name].arguments[1].key.shape[1] for name in stages if "step" in name}
    assert set(batches.values()) == {model.denoiser.padded_batch(b) for b in job.batches}


@pytest.fixture
def uncompiled(monkeypatch):
    """A planner's row for a v6e-8 with nothing compiled: what is resident is known without."""
    monkeypatch.setattr(
        "wan_tpu.planner.compile.compile_stage",
        lambda stage: (StageFacts(name=stage.name, failure="none"), ""),
    )

    def row(*job, **fields):
        job = job_of(*job, **fields)
        (found,) = Planner(
            dataclasses.replace(job, stages=("step",)), FactsCache(None), lambda _: None
        ).plan([Layout(dp=2, sp=4)])
        return job, found

    return row


def test_both_experts_and_what_pictures_add_are_resident(uncompiled):
    """Red when the second expert is not counted, or its context, or its condition."""
    job, row = uncompiled("wan2.2-i2v-a14b")
    parts = {name: size / GIB for name, size in row.resident.parts.items()}
    assert parts["transformer"] == parts["transformer_2"] == pytest.approx(26.62 / 8, rel=0.01)
    # Keys and values of 512 tokens, 40 layers of 5,120 in bfloat16, for each branch's devices.
    assert parts["context"] == pytest.approx(2 * 40 * 512 * 5120 * 2 * 2 / GIB)
    # 75,600 tokens, padded, of 5,120 in bfloat16, over sp.
    assert parts["condition"] == pytest.approx(2 * 75_776 * 5120 * 2 / 4 / GIB)
    assert "vae" in parts
    table, report = format_table(job, [row]), to_json(job, [row])
    assert f"transformer_2 {parts['transformer']:.2f}, vae" in table
    assert "40 steps (15 + 25), with image" in table
    assert report["layouts"][0]["resident_bytes"] == row.resident.parts
    assert report["steps_by_transformer"] == {"transformer": 15, "transformer_2": 25}


def test_what_a_step_cache_keeps_is_resident(uncompiled):
    """The residual of 75,600 tokens of 5,120 in bfloat16, both branches, over eight devices."""
    plain, kept = (
        uncompiled("wan2.1-t2v-14b", step_cache=cache)[1].resident.state
        for cache in (None, "magcache")
    )
    assert kept - plain == pytest.approx(2 * 75_600 * 5120 * 2 / 8, rel=0.01)


def test_an_image_s_keys_are_resident(uncompiled):
    _, row = uncompiled("wan2.1-i2v-14b-720p")
    keys = 512 + 257
    assert row.resident.context == 40 * keys * 5120 * 2 * 2
    assert row.resident.components["image_encoder"] > 0


def test_what_is_being_made_is_not_there_yet(uncompiled):
    _, row = uncompiled("wan2.2-i2v-a14b")
    resident, each = row.resident, row.resident.context // 2
    assert resident.during("encode-first", 5) == resident.during("image", 5) == resident.weights
    assert resident.during("context", each) == resident.weights + each
    assert resident.during("step", 5) == sum(resident.parts.values())


def test_the_autoencoder_s_cache_is_there_beside_the_weights(uncompiled):
    """An argument of its next chunk, and no weight: red when all arguments count as resident."""
    _, row = uncompiled("wan2.2-i2v-a14b", **SMALL)
    resident = row.resident
    assert resident.carried["decode-next"] > 0
    assert resident.carried["encode-next"] > 0
    before = resident.during("decode-first", 0)
    assert resident.during("decode-next", 0) - before == resident.carried["decode-next"]
    facts = StageFacts(
        name="decode-next",
        argument_bytes=resident.components["vae"] + resident.carried["decode-next"],
        peak_bytes=resident.components["vae"] + resident.carried["decode-next"] + 7,
    )
    served = served_bytes(facts, resident.during("decode-next", 0))
    assert served == before + resident.carried["decode-next"] + 7


def test_an_image_s_keys_are_all_real():
    """Of a video of fewer tokens than a picture: its 257 keys are no padded self-attention."""
    job = job_of("wan2.1-i2v-14b-720p", **SMALL)
    assert job.geometry.num_tokens < job.image_tokens == 257
    planner = Planner(job, FactsCache(None), lambda _: None)
    attention = Attention(heads=40, queries=40, keys=257, head_dim=128)
    assert planner._counter._shape(attention).num_keys == 257


def test_what_a_video_does_not_run_cannot_be_planned_alone():
    request = VideoRequest(prompt="p")
    with pytest.raises(InputError, match=r"runs none of image, condition, only text, context"):
        make_job(
            describe_model("wan2.1-t2v-14b"),
            request,
            find_slice("v6e-8"),
            stages=("image", "condition"),
        )
    with pytest.raises(MediaError, match="takes"):
        job_of("wan2.1-t2v-14b", "image")


def test_the_autoencoder_is_compiled_once_for_all_models_that_have_it(tmp_path, monkeypatch):
    made = []

    def compile_stage(stage):
        made.append(stage.name)
        return StageFacts(name=stage.name, failure="not now"), ""

    monkeypatch.setattr("wan_tpu.planner.compile.compile_stage", compile_stage)
    for name in ("wan2.2-i2v-a14b", "wan2.1-i2v-14b-720p"):
        job = dataclasses.replace(job_of(name), stages=("text", "decode-next", "step"))
        Planner(job, FactsCache(tmp_path), lambda _: None).plan([Layout(dp=2, sp=4)])
    assert made == ["text", "decode-next", "step", "step"]
