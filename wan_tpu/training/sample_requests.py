"""What a run's samples are asked for, as requests of the pipeline. No JAX."""

from pathlib import Path

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.errors import InputError
from wan_tpu.pipeline.check import check_request
from wan_tpu.request import VideoRequest, make_request
from wan_tpu.training.config import SampleConfig


def sample_requests(samples: SampleConfig, model: ModelDescription) -> list[VideoRequest]:
    """A complete request for each prompt; the same configuration always gives the same noise.

    Args:
        samples: prompts, sizes and the first seed.
        model: that makes them.

    Raises:
        InputError: the model cannot make them; of one that needs pictures none can be made.
    """
    if samples.prompts and frozenset() not in model.kind.inputs:
        raise InputError(
            f"[samples] {model.name} makes videos of pictures, and samples are of prompts alone; "
            "leave samples.prompts empty and samples.every_steps = 0"
        )
    try:
        return [
            check_request(
                model,
                make_request(
                    prompt,
                    size=samples.size,
                    frames=samples.num_frames,
                    steps=samples.steps,
                    seed=samples.seed + number,
                ),
            )[0]
            for number, prompt in enumerate(samples.prompts)
        ]
    except InputError as error:
        raise InputError(f"[samples] {error}") from None


def read_prompts(path: Path) -> tuple[str, ...]:
    """Prompts of a text file, one a line; empty lines are none.

    Raises:
        InputError: it is missing, no UTF-8, or has no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the prompts in {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(
            f"the prompts in {path} are no UTF-8 text; save the file as UTF-8"
        ) from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise InputError(f"{path} has no prompt; write one on each line")
    return prompts
