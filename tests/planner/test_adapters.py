"""What a switch of adapters costs on a slice: counted by hand, and by the compiler's own count."""

import argparse
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest

from wan_tpu.adapters.on_mesh import merge_stage
from wan_tpu.adapters.placing import abstract_term
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.cli import plan as command
from wan_tpu.errors import InputError
from wan_tpu.pipeline.components import transformer_config
from wan_tpu.planner.adapters import plan_switch
from wan_tpu.planner.compile import compile_stage
from wan_tpu.planner.hardware import find_slice
from wan_tpu.planner.plan import make_job
from wan_tpu.planner.program import read_program
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.transformer.weights import denoiser_weights, matrices_of_blocks

DIM, WIDTH, LAYERS = 5_120, 13_824, 40
ELEMENTS = LAYERS * (8 * DIM * DIM + 2 * DIM * WIDTH)
"""Of the matrices of the 14B's blocks."""

LAYOUT = parse_layout("dp2-sp4")


def job_of(model: str):
    return make_job(describe_model(model), VideoRequest(prompt="p"), find_slice("v6e-8"))


def switch_of(model: str, peak_bytes: int = 0):
    row: Any = SimpleNamespace(layout=LAYOUT, peak_bytes=peak_bytes, limit_bytes=2**35)
    return plan_switch(job_of(model), row, 64)


def test_every_matrix_is_read_and_written_once():
    """Rows are split over the eight devices, so that each is sent all of A and its part of B."""
    switch = switch_of("wan2.1-t2v-14b")
    assert switch.base_bytes == 2 * ELEMENTS // 8
    parts = LAYERS * 2 * 64 * (8 * (DIM + DIM // 8) + DIM + WIDTH // 8 + WIDTH + DIM // 8)
    assert switch.factor_bytes == parts + LAYERS * 10 * 4  # a number a layer says how much
    assert switch.host_bytes == 8 * switch.factor_bytes
    assert switch.hbm_bytes == 2 * switch.base_bytes + switch.factor_bytes
    assert switch.flops == 2 * 64 * ELEMENTS / 8
    assert switch.memory_seconds == switch.hbm_bytes / 1640e9
    assert "3.27 GiB more a device, peak 3.27 of 32.00 GiB, which fits" in str(switch)


def test_of_two_experts_both_change_and_what_does_not_fit_is_said():
    one, two = switch_of("wan2.1-t2v-14b"), switch_of("wan2.2-t2v-a14b", peak_bytes=2**35 - 2**30)
    assert two.base_bytes == 2 * one.base_bytes
    assert "which does not fit" in str(two)
    assert two.to_json()["fits"] is False


def test_the_option_is_a_rank_and_of_a_quantised_model_refused():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = ["--topology", "v6e-8", "--adapter-rank", "64"]
    assert parser.parse_args(words).adapter_rank == 64
    with pytest.raises(InputError, match="leave --adapter-rank or --quantize away"):
        command.run(parser.parse_args([*words, "--quantize", "int8"]))


def test_the_tpu_compiler_counts_the_same(tpu_mesh):
    """Of the largest matrix: nothing crosses a link, and sums in float32 take no memory to speak
    of; red when factors are split otherwise than the weight."""
    mesh, job = tpu_mesh("v6e-8", LAYOUT), job_of("wan2.1-t2v-14b")
    weights = denoiser_weights(transformer_config(job.description), LAYOUT, jnp.dtype(job.dtype))
    weight = next(w for w in matrices_of_blocks(weights) if w.name.endswith("ffn.net.2.weight"))
    term = abstract_term(weight, mesh, 64, "bfloat16")
    facts, text = compile_stage(merge_stage(weight, mesh, (weight.abstract(mesh), (term,), None)))
    assert facts.output_bytes == 2 * LAYERS * DIM * WIDTH // 8
    assert facts.temporary_bytes < 2**20
    costs = read_program(text)
    assert costs.total("link_bytes") == 0
    factors = LAYERS * 2 * 64 * (DIM // 8 + WIDTH)
    by_hand = 2 * facts.output_bytes + factors
    assert costs.total("hbm_bytes") == pytest.approx(by_hand, rel=0.05)
