"""What a plan of a training says, of wan-tiny on a v6e-4; compiled once for all tests here."""

import dataclasses
import math
import re

import pytest
from safetensors import safe_open

from wan_tpu.checkpoints.models import describe_model
from wan_tpu.errors import GeometryError, InputError, LayoutError
from wan_tpu.planner import training as planning
from wan_tpu.planner.compile import FactsCache
from wan_tpu.planner.hardware import find_slice
from wan_tpu.planner.training import TrainingPlanner, make_training_job
from wan_tpu.planner.training_table import format_training_table, training_to_json
from wan_tpu.sharding.layout import Layout
from wan_tpu.training.config import (
    MachineConfig,
    ModelConfig,
    OptimiserConfig,
    TrainConfig,
    TrainingConfig,
)
from wan_tpu.training.config_file import read_config
from wan_tpu.training.flops import step_flops
from wan_tpu.training.presets import preset_names, preset_text

LAYOUT = Layout(dp=2, sp=2)
WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = TrainingConfig(
    model=ModelConfig(name="wan-tiny"),
    train=TrainConfig(trains="full", batch=2, steps=7200),
    optimiser=OptimiserConfig(first_moment="bfloat16", ema_decay=0.9),
)


def job_of(config=CONFIG, where="v6e-4", **sizes):
    return make_training_job(config, describe_model(config.model.name), find_slice(where), **sizes)


def no_report(_):
    return None


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_planned_with_the_clips_that_it_is_for(name):
    """Red when a preset for 480p of a model of 720p does not say its size."""
    settings = ["embedding.word=mossling"] if name.startswith("embedding") else []
    geometry = job_of(read_config(preset=name, settings=settings, needs_data=False)).geometry
    prepared = re.search(r"--size (\d+)x(\d+) --frames (\d+)", preset_text(name))
    if prepared is not None:
        sizes = geometry.width, geometry.height, geometry.num_frames
        assert sizes == tuple(map(int, prepared.groups()))


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def row(cache_folder):
    (row,) = TrainingPlanner(job_of(), FactsCache(cache_folder), no_report).plan([LAYOUT])
    return row


def test_what_stays_is_what_the_optimiser_holds(row):
    """Red when moments are left out, or are not split as the parameters are."""
    parameters = row.resident["parameters"]
    assert row.resident["average"] == parameters
    assert row.resident["moments"] == pytest.approx(1.5 * parameters, rel=1e-3)
    assert set(row.resident) == {"parameters", "moments", "average", "batch"}
    assert row.facts.argument_bytes == pytest.approx(sum(row.resident.values()), rel=0.05)
    assert sum(row.resident.values()) < row.peak_bytes < row.limit_bytes
    assert not row.misfit


def test_bytes_on_the_disk_are_those_of_real_parameters(row):
    """By the model's file. Red when padding, or a device's share alone, is counted."""
    file = describe_model("wan-tiny").component_folder("transformer") / WEIGHTS
    with safe_open(file, "np") as tensors:
        names = tensors.keys()
        count = sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    assert row.result_bytes == pytest.approx(2 * count, rel=0.03), "small ones are float32"
    # Float32 parameters, average and second moment, a first one of two bytes; two counts.
    assert row.checkpoint_bytes == 14 * count + 2 * 4


def test_seconds_mfu_and_hours_belong_together(row):
    low, high = row.range
    assert 0 < low <= high
    assert row.hours == pytest.approx((2 * low, 2 * high))
    config = planning.place_for_training(CONFIG, describe_model("wan-tiny")).denoiser.config
    flops = step_flops(config, job_of().geometry, 2, trains_weights=True)
    assert row.mfu[1] == pytest.approx(flops / (4 * 918e12 * low))


def test_the_program_s_gradients_are_scattered_and_their_attention_counted(row):
    costs = row.facts.costs
    kernels = [o for o in costs.operations if o.attention is not None]
    assert {o.attention.products for o in kernels} == {2, 5}
    assert not costs.unknown_loops
    scattered = [c for o in costs.operations for c in o.collectives if c.kind == "reduce-scatter"]
    assert {c.group_size for c in scattered} == {4}
    assert all("gradient of splash" in reason for reason in row.uncounted.values())
    assert costs.total("flops") > row.model_flops / 4


def test_a_second_plan_compiles_nothing(row, cache_folder, monkeypatch):
    monkeypatch.setattr("wan_tpu.planner.compile.compile_stage", None)
    again = TrainingPlanner(job_of(), FactsCache(cache_folder), no_report).plan([LAYOUT])
    assert again == [row]


@pytest.mark.parametrize("change", ["remat", "first moment", "batch", "frames"])
def test_what_decides_the_program_is_in_its_key(row, cache_folder, monkeypatch, change):
    class CompiledError(Exception):
        pass

    def compile_stage(_):
        raise CompiledError

    monkeypatch.setattr("wan_tpu.planner.compile.compile_stage", compile_stage)
    config = {
        "remat": dataclasses.replace(CONFIG, machine=MachineConfig(remat="none")),
        "first moment": dataclasses.replace(CONFIG, optimiser=OptimiserConfig(ema_decay=0.9)),
        "batch": dataclasses.replace(CONFIG, train=TrainConfig(trains="full", batch=4)),
        "frames": CONFIG,
    }[change]
    job = job_of(config, frames=21 if change == "frames" else None)
    with pytest.raises(CompiledError):
        TrainingPlanner(job, FactsCache(cache_folder), no_report).plan([LAYOUT])


def test_the_table_and_the_json(row):
    job = job_of()
    lines = format_training_table(job, [row]).splitlines()
    assert lines[0].startswith("wan-tiny, trains full, batch 2 in 1 parts, remat full")
    assert lines[-1] == "use: dp2-sp2"
    assert any(line.startswith("on the disk: ") for line in lines)
    (entry,) = training_to_json(job, [row])["layouts"]
    assert entry["fits"]
    assert entry["step_seconds"] == list(row.range)
    large = dataclasses.replace(row, limit_bytes=2**20)
    lines = format_training_table(job, [large]).splitlines()
    assert lines[-1] == "use: none of these layouts fits"
    assert any(line.startswith("dp2-sp2 does not fit: ") for line in lines)
    assert training_to_json(job, [large])["best"] is None


def test_a_state_that_does_not_fit_is_not_compiled_for(monkeypatch):
    """All of 14B with its moments on one v5e-8."""
    monkeypatch.setattr("wan_tpu.planner.compile.compile_stage", None)
    train = TrainConfig(trains="full", batch=2)
    config = TrainingConfig(model=ModelConfig(name="wan2.1-t2v-14b"), train=train)
    planner = TrainingPlanner(job_of(config, "v5e-8"), FactsCache(None), no_report)
    assert planner.chosen_layout().dp == 2
    (row,) = planner.plan([Layout(dp=2, sp=4)])
    assert "what stays is 2" in row.misfit
    assert "of 15.75 GiB" in row.misfit
    assert row.result_bytes == pytest.approx(28.6e9, rel=0.01)
    assert row.checkpoint_bytes == pytest.approx(12 * 14.288e9, rel=0.01)
    assert "use: none" in format_training_table(job_of(config, "v5e-8"), [row])


def test_what_cannot_be_planned_is_said():
    with pytest.raises(GeometryError, match="nearest"):
        job_of(size="60x64")
    planner = TrainingPlanner(job_of(), FactsCache(None), no_report)
    with pytest.raises(LayoutError):
        planner.plan([Layout(dp=8)])
    with pytest.raises(InputError, match="does not divide"):
        planner.plan([Layout(dp=4)])
