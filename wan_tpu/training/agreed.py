"""What all processes of a run do alike, where each could decide otherwise."""

import jax
import numpy as np


def agreed(is_true: bool) -> bool:
    """What process 0 says, in every process: clocks differ."""
    if jax.process_count() == 1:
        return is_true
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(is_true)))
