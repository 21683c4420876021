"""What all processes of a run do alike, where each could decide otherwise."""

from pathlib import Path

import jax
import numpy as np

from wan_tpu.errors import MismatchError
from wan_tpu.sharding.agreed import told_by_all
from wan_tpu.training.run_folder import is_run

TEXT_BYTES = 128
"""Of what processes tell each other here; a digest has 71."""


def agreed(is_true: bool) -> bool:
    """What process 0 says, in every process: clocks differ."""
    if jax.process_count() == 1:
        return is_true
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(is_true)))


def check_same_folder(path: Path) -> None:
    """Refuses a run's folder that some processes do not see: each writes its part of a checkpoint.

    Args:
        path: of a run that process 0 has opened.

    Raises:
        MismatchError: in all processes alike, and so below: one that went on would wait for the
            others for ever.
    """
    seen = told_by_all("seen" if is_run(path) else "", TEXT_BYTES)
    blind = [str(number) for number, told in enumerate(seen) if not told]
    if blind:
        raise MismatchError(
            f"process {', '.join(blind)} does not see {path}, where process 0 writes the run; take "
            "a folder on a file system that all hosts share, with -o"
        )


def check_same_data(digest: str) -> None:
    """Refuses data that is not process 0's: each process feeds its own devices with what it reads.

    Args:
        digest: of `wan_tpu.dataset.sample.Dataset`, in every process.

    Raises:
        MismatchError: names the first process that differs, and both digests.
    """
    first, *others = told_by_all(digest, TEXT_BYTES)
    for number, other in enumerate(others, 1):
        if other != first:
            raise MismatchError(
                f"process {number} has other data than process 0: its digest is {other}, process "
                f"0's {first}; every host must see the same prepared folder"
            )
