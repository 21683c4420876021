"""Both experts of a model on eight devices, with little more host memory than they weigh."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import pytest
import torch
from safetensors.torch import save_file

from wan_tpu.checkpoints.models import ModelDescription, describe_model
from wan_tpu.checkpoints.weights import expected_tensors
from wan_tpu.sharding.layout import Layout
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.weights import denoiser_weights

VALUES = {"transformer": 0.5, "transformer_2": 0.25}
"""What every number of an expert is: a file read for the other shows."""

LOAD = """
    import json, sys, time
    import jax
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    import jax.numpy as jnp
    from tests.checkpoints.memory import memory
    from tests.checkpoints.test_two_experts import VALUES, like_a14b
    from wan_tpu.checkpoints.loading import Part
    from wan_tpu.checkpoints.weights import load_parts
    from wan_tpu.pipeline.model import make_video_model
    from wan_tpu.sharding.layout import parse_layout
    from wan_tpu.sharding.mesh import make_mesh

    folder, layout, sizes = sys.argv[1:]
    layout = parse_layout(layout)
    mesh = make_mesh(layout)
    description = like_a14b(folder, **json.loads(sizes))
    model = make_video_model(description, mesh, layout, dtype=jnp.bfloat16)
    parts = {
        name: Part(weights=model.denoiser.weights(), source=description.source(name), mesh=mesh)
        for name in description.kind.experts
    }
    before, started = memory("VmRSS"), time.perf_counter()
    params = load_parts(parts)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - started
    taken = memory("VmHWM") - before
    found = {n: float(jnp.median(p["proj_out.bias"])) for n, p in params.items()}
    weights = len(params) * sum(w.num_bytes for w in model.denoiser.weights())
    print(json.dumps({"taken": taken, "weights": weights, "seconds": seconds, "found": found}))
"""


def like_a14b(folder: str, **sizes: int) -> ModelDescription:
    """Wan 2.2 T2V A14B with these sizes of its transformers, and files in a folder."""
    description = describe_model("wan2.2-t2v-a14b")
    transformer = {**description.configs["transformer"], **sizes}
    configs = {**description.configs, **dict.fromkeys(description.kind.experts, transformer)}
    return dataclasses.replace(description, folder=pathlib.Path(folder), configs=configs)


def write_experts(folder: pathlib.Path, **sizes: int) -> None:
    """In bfloat16, each of one number throughout."""
    description = like_a14b(str(folder), **sizes)
    config = TransformerConfig.from_json(description.configs["transformer"])
    shapes = expected_tensors(denoiser_weights(config, Layout(), jnp.bfloat16))
    for expert, value in VALUES.items():
        (folder / expert).mkdir()
        tensors = {
            name: torch.full(shape, value, dtype=torch.bfloat16) for name, shape in shapes.items()
        }
        save_file(tensors, folder / expert / "diffusion_pytorch_model.safetensors")


def load(folder: pathlib.Path, layout: str, **sizes: int) -> dict:
    """What a process of its own measures, in bytes and seconds."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOAD), str(folder), layout, json.dumps(sizes)],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


WIDTH_OF_1_3B = {"num_attention_heads": 12, "ffn_dim": 8960}


@pytest.mark.parametrize(
    "sizes",
    [
        {**WIDTH_OF_1_3B, "num_layers": 4},
        pytest.param({"num_layers": 4}, marks=pytest.mark.slow),  # of A14B's own width: 6 GB
    ],
)
def test_loading_both_experts_never_holds_a_second_copy(sizes, tmp_path):
    """Red when one expert is kept in the host's memory while the other is read."""
    write_experts(tmp_path, **sizes)
    measured = load(tmp_path, "dp2-sp4", **sizes)
    for expert in VALUES:
        (tmp_path / expert / "diffusion_pytorch_model.safetensors").unlink()
    assert measured["found"] == VALUES
    assert measured["weights"] > 0.8e9
    assert measured["taken"] <= 1.15 * measured["weights"] + 2**26, measured
