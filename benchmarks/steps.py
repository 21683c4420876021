"""seconds of a denoising step on the devices here, and of what shortens it, with random weights

No checkpoint is needed: the programs of a known model are run on random numbers, by turns in one
process. Of each shortcut it prints a step's seconds beside the plain guided step's, and how much
less all steps of a video take with it (a step cache has steps of two kinds, with and without the
blocks); then what it costs to put an adapter into the weights.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from wan_tpu.cli.options import positive_int
from wan_tpu.sharding.layout import parse_layout

FEW_SIGMAS = (1.0, 0.9375, 0.8333, 0.625)
MIB = 2**20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One program of a step.

    Attributes:
        step: runs it once more, without waiting for it.
        wait: waits for all that was run.
        weight: by which its seconds make those of all steps of a video that take it.
    """

    step: Callable[[], None]
    wait: Callable[[], None]
    weight: float


Kinds = dict[str, list[Measured]]
"""By name: the programs by which the steps of a video are made."""

Seconds = dict[str, list[list[float]]]
"""By name, turn and program: of a step."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks steps`."""
    parser.add_argument("--model", default="wan2.1-t2v-1.3b", help="(default: %(default)s)")
    parser.add_argument("--layout", default="single", help="(default: %(default)s)")
    parser.add_argument("--size", help="WxH; default the model's")
    parser.add_argument("--frames", type=positive_int, help="default the model's")
    parser.add_argument(
        "--step-cache", default="magcache", help="of which the plan is (default: %(default)s)"
    )
    parser.add_argument(
        "--count", type=positive_int, default=4, help="videos made together (default: %(default)s)"
    )
    parser.add_argument(
        "--rank", type=positive_int, default=64, help="of the adapter (default: %(default)s)"
    )
    parser.add_argument("--turns", type=positive_int, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--steps", type=positive_int, default=3, help="of a turn (default: %(default)s)"
    )
    parser.add_argument(
        "--host-devices", type=positive_int, metavar="N", help="virtual CPU devices"
    )


def run(parsed: argparse.Namespace) -> int:
    """Measures; a line for each kind of step."""
    import jax

    from wan_tpu import runtime
    from wan_tpu.checkpoints.models import describe_model
    from wan_tpu.pipeline.load import place_model

    layout = parse_layout(parsed.layout)
    runtime.start(host_devices=parsed.host_devices)
    description, devices = describe_model(parsed.model), jax.devices()
    layout.require_devices(len(devices))
    place = functools.partial(place_model, description, layout=layout, devices=devices)
    kinds = _kinds(parsed, place()) | _quantized(parsed, place(quantize="int8"))
    seconds = _measure(kinds, parsed.turns, parsed.steps)
    for line in _lines(kinds, seconds):
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{_adapter(parsed, place())}\n")
    return 0


def _lines(kinds: Kinds, seconds: Seconds) -> Iterator[str]:
    """A line for each kind, the first one being what the others are beside."""
    of_all = {
        name: [
            sum(program.weight * each for program, each in zip(programs, turn, strict=True))
            for turn in seconds[name]
        ]
        for name, programs in kinds.items()
    }
    plain = of_all[next(iter(kinds))]
    for name, found in of_all.items():
        each = " and ".join(
            f"{statistics.median(of):.4f}" for of in zip(*seconds[name], strict=True)
        )
        ratios = [one / other for one, other in zip(plain, found, strict=True)]
        yield (
            f"{name:<44}{each} s a step; all steps {statistics.median(found):.3f} s, "
            f"x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def _measure(kinds: Kinds, turns: int, steps: int) -> Seconds:
    """Seconds of a step in each turn; the first one, not counted, warms up."""
    seconds: Seconds = {name: [] for name in kinds}
    for _ in range(turns + 1):
        for name, programs in kinds.items():
            seconds[name].append([_seconds(program, steps) for program in programs])
    return {name: found[1:] for name, found in seconds.items()}


def _seconds(program: Measured, steps: int) -> float:
    started = time.perf_counter()
    for _ in range(steps):
        program.step()
    program.wait()
    return (time.perf_counter() - started) / steps


def _plan(parsed: argparse.Namespace, model: Any, **more: Any) -> Any:
    """A run that nobody makes."""
    from wan_tpu.pipeline.load import on_one_branch
    from wan_tpu.pipeline.progress import Watch
    from wan_tpu.pipeline.run import plan_run
    from wan_tpu.request import make_request

    request = make_request("steps", size=parsed.size, frames=parsed.frames, **more)
    return plan_run(request, model, on_one_branch(model), Watch())


def _kinds(parsed: argparse.Namespace, model: Any) -> Kinds:
    """Steps of the model as it is."""
    from wan_tpu.pipeline.load import for_batch
    from wan_tpu.pipeline.step_plan import programs_of
    from wan_tpu.pipeline.together_stages import TogetherStages

    plain = _plan(parsed, model)
    steps = len(plain.steps)
    kinds = {"guided": [_measured(plain.step_stage(plain.batch), steps)]}
    cached = _plan(parsed, model, step_cache=parsed.step_cache)
    programs = {
        program: sum(step.program == program for step in cached.steps)
        for program in programs_of(cached.steps)
    }
    counts = " and ".join(map(str, programs.values()))
    kinds[f"{parsed.step_cache}, {counts} of {steps}"] = [
        _measured(cached.step_stage(*program), count) for program, count in programs.items()
    ]
    few = _plan(parsed, model, sigmas=FEW_SIGMAS, guidance_scale=1.0)
    name = f"{len(FEW_SIGMAS)} steps without guidance"
    kinds[name] = [_measured(few.step_stage(1), len(FEW_SIGMAS))]
    together = for_batch(model, parsed.count * plain.batch)
    stages = TogetherStages(together, plain.geometry, plain.schedule, parsed.count)
    name = f"{parsed.count} videos together, {together.layout}"
    kinds[name] = [_measured(stages.step(plain.batch), steps / parsed.count)]
    return kinds


def _quantized(parsed: argparse.Namespace, model: Any) -> Kinds:
    run = _plan(parsed, model)
    return {"int8": [_measured(run.step_stage(run.batch), len(run.steps))]}


def _measured(stage: Any, weight: float) -> Measured:
    """A stage of a step with random arguments; what it carries on goes into its next call."""
    import jax

    from wan_tpu.pipeline.programs import compile_stage

    program = compile_stage(stage)
    params, context, carried, *rest = _random(stage.arguments)

    def step() -> None:
        nonlocal carried
        carried, _ = program(params, context, carried, *rest)

    return Measured(step=step, wait=lambda: jax.block_until_ready(carried), weight=weight)


def _random(arguments: Any) -> Any:
    """Arrays in the place of abstract ones: numbers about 0, as weights are."""
    import jax
    import jax.numpy as jnp

    def make(abstract: Any) -> Any:
        def numbers() -> Any:
            drawn = jax.random.normal(jax.random.key(0), abstract.shape, jnp.float32)
            if jnp.issubdtype(abstract.dtype, jnp.floating):
                return (0.02 * drawn).astype(abstract.dtype)
            return (32 * drawn if abstract.ndim else jnp.zeros(())).astype(abstract.dtype)

        return jax.jit(numbers, out_shardings=abstract.sharding)()

    return jax.tree.map(make, arguments)


def _adapter(parsed: argparse.Namespace, model: Any) -> str:
    """Merges a random LoRA of all the blocks' matrices into random weights, twice."""
    import jax

    from wan_tpu.adapters.merge import Strengthened
    from wan_tpu.adapters.on_mesh import merge_on_mesh
    from wan_tpu.checkpoints.weights import abstract_weights
    from wan_tpu.pipeline.components import tree_bytes
    from wan_tpu.pipeline.programs import Programs
    from wan_tpu.pipeline.progress import Watch
    from wan_tpu.transformer.weights import matrices_of_blocks

    weights = matrices_of_blocks(model.denoiser.weights())
    params = _random(abstract_weights(weights, model.mesh))
    adapter = _random_lora(weights, parsed.rank)
    programs, watch = Programs(), Watch()

    def merge() -> Any:
        return merge_on_mesh(
            weights,
            params,
            [Strengthened(adapter=adapter, strength=1.0)],
            model.mesh,
            lambda stage: programs.get(stage, watch),
        )

    merge()  # compiles
    started = time.perf_counter()
    merged = jax.block_until_ready(merge())
    seconds = time.perf_counter() - started
    return (
        f"adapter of rank {parsed.rank}: {seconds:.3f} s with its numbers in memory, "
        f"{merged.bytes_moved / MIB:.0f} MiB to the devices, "
        f"{tree_bytes(dict(merged.changed)) / MIB:.0f} MiB beside the base on each"
    )


def _random_lora(weights: Sequence[Any], rank: int) -> Any:
    import ml_dtypes
    import numpy as np

    from wan_tpu.adapters.form import Adapter, Factors

    numbers = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return numbers.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)

    return Adapter(
        factors={
            tensor: Factors(
                down=matrix(rank, weight.tensor_shape[1]), up=matrix(weight.tensor_shape[0], rank)
            )
            for weight in weights
            for tensor in weight.tensors
        }
    )
