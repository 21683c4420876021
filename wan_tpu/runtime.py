"""Starts JAX for an entry point: platform, virtual devices, compilation cache.

Call `start` once, before anything asks JAX for its devices. The library itself never does.
"""

import logging
import os
import pathlib

import jax

from wan_tpu import compile_cache
from wan_tpu.errors import MismatchError, ProcessLostError
from wan_tpu.multihost.group import TPU_FILES, Joined

logger = logging.getLogger(__name__)

ACCELERATOR_FILES = (*TPU_FILES, "/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd")
"""Device files of TPUs, NVIDIA GPUs (the second: under Windows' Linux) and AMD GPUs."""

ONE_DAY = 86_400


def start(
    *,
    host_devices: int | None = None,
    cache_folder: pathlib.Path | None = None,
    joined: Joined | None = None,
) -> None:
    """Prepares JAX; the devices themselves start when they are first asked for.

    Args:
        host_devices: this many virtual CPU devices, and no accelerator.
        cache_folder: where compiled programs are kept between runs; None keeps none. One that
            cannot be had costs a warning, and compiling.
        joined: the processes that share one mesh; None for this one alone.

    Raises:
        ProcessLostError: JAX cannot connect the processes.
        MismatchError: it numbers them otherwise.
    """
    if host_devices is not None:
        give_threads(host_devices)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", host_devices)
    elif not os.environ.get("JAX_PLATFORMS") and not accelerator_present():
        # With libtpu installed and no TPU, looking for one prints pages of errors.
        jax.config.update("jax_platforms", "cpu")
    if cache_folder is not None:
        compile_cache.use_folder(cache_folder)
    if joined is not None:
        _connect(joined)


def give_threads(host_devices: int) -> None:
    """Threads enough for virtual devices that wait for each other; to be called before they start.

    XLA has as many threads as devices where cores are few. A device that waits in an exchange holds
    one, and it may wait in several at once that do not depend on each other: then none is left to
    come to the others' (jax 0.10.2: the gradients of a small model on dp2-sp2-tp2 hang every time
    with 8 threads, and end with more).
    """
    if host_devices > 1:
        os.environ.setdefault("PJRT_NPROC", str(THREADS_A_DEVICE * host_devices))


THREADS_A_DEVICE = 4
"""Exchanges that a virtual device may wait in at once, and one thread that computes."""


def _connect(joined: Joined) -> None:
    group = joined.group
    # Its handler of SIGTERM, in C++, would take the signal from ours.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            joined.jax_coordinator,
            group.num_processes,
            group.process_id,
            heartbeat_timeout_seconds=ONE_DAY,  # `wan_tpu.multihost` notices sooner, and says who
            cluster_detection_method="deactivate",
            coordinator_bind_address=joined.jax_coordinator,  # by default it is every address
        )
    except RuntimeError as error:
        raise ProcessLostError(f"JAX cannot connect the processes: {error}") from None
    found = (jax.process_index(), jax.process_count())
    if found != (group.process_id, group.num_processes):
        raise MismatchError(
            f"JAX takes this for process {found[0]} of {found[1]}, "
            f"we for {group.process_id} of {group.num_processes}"
        )


def default_cache_folder() -> pathlib.Path | None:
    """Where the command line keeps compiled programs: in the user's cache folder.

    Returns:
        None for a user without a home, as in many containers.
    """
    base = default_cache_base()
    return None if base is None else base / "compiled"


def default_cache_base() -> pathlib.Path | None:
    """Our part of the user's cache folder; None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        found = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
    except RuntimeError:
        logger.warning(
            "no compiled program is kept: this user has no home folder; set XDG_CACHE_HOME to a "
            "folder that can be written"
        )
        return None
    return found / "wan-tpu"


def accelerator_present(root: pathlib.Path = pathlib.Path("/")) -> bool:
    """Whether this machine has a TPU or a GPU, by the device files under its root folder."""
    return any(any(root.glob(pattern.lstrip("/"))) for pattern in ACCELERATOR_FILES)
