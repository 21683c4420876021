"""Makes this process one of those of a slice."""

import logging
from collections.abc import Callable
from typing import Any

from wan_tpu.errors import MismatchError, WanTpuError
from wan_tpu.multihost.follower import Follower
from wan_tpu.multihost.group import Joined, ProcessGroup
from wan_tpu.multihost.identity import Identity
from wan_tpu.multihost.leader import Leader
from wan_tpu.multihost.lockstep import Alone, Lockstep
from wan_tpu.multihost.secret import VARIABLE

logger = logging.getLogger(__name__)

JOIN_SECONDS, PATIENCE_SECONDS = 30.0, 20.0
"""For all to come at the start; and for one that is silent or behind, later."""


def meet(
    group: ProcessGroup,
    *,
    on_lost: Callable[[str], None],
    on_stop: Callable[[], None],
    on_process: Callable[[Lockstep], None] = lambda _: None,
    on_waiting: Callable[[str], None] = lambda _: None,
    join_seconds: float = JOIN_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Lockstep:
    """Waits until all processes of a group have found each other.

    Whoever calls it tells the others (`Lockstep.give_up`) when this process cannot go on.

    Args:
        group: this process, and the others.
        on_lost: told on a thread, later, that another process is lost; must end this one.
        on_stop: called on a thread when process 0 ends all; never in process 0.
        on_process: given this process, before any other is found.
        on_waiting: told what is waited for.
        join_seconds: how long to wait for the others.
        patience_seconds: how long, later, another process may be silent or behind.

    Returns:
        This process in lock-step.

    Raises:
        InputError: process 0 cannot listen at its address.
        ProcessLostError: some did not come.
        MismatchError: they differ in their secret.
    """
    if group.num_processes == 1:
        return Alone()
    if not group.secret:
        logger.info("no %s: every program of this machine can join or lead", VARIABLE)
    process: Leader | Follower
    if group.leads:
        process = Leader(
            group, on_lost=on_lost, on_waiting=on_waiting, patience_seconds=patience_seconds
        )
    else:
        process = Follower(
            group, on_lost=on_lost, on_stop=on_stop, patience_seconds=patience_seconds
        )
    on_process(process)
    process.gather(join_seconds)
    if not group.leads:
        number = f"process {group.process_id} of {group.num_processes}"
        on_waiting(f"{number} follows {group.coordinator}")
    on_waiting("looking at the model's files")
    return process


def agree(
    process: Lockstep, group: ProcessGroup, identify: Callable[[], Identity]
) -> Joined | None:
    """Compares this process with the others that it has met.

    Args:
        process: what `meet` gave. group: this process, and the others.
        identify: what this process is; not asked of a process on its own.

    Returns:
        What JAX needs to know; None for a process on its own.

    Raises:
        MismatchError: they differ.
    """
    if group.num_processes == 1:
        return None
    return Joined(group=group, jax_coordinator=process.agree(identify()))


def join(
    group: ProcessGroup,
    identify: Callable[[], Identity],
    *,
    on_process: Callable[[Lockstep], None] = lambda _: None,
    **how: Any,
) -> tuple[Lockstep, Joined | None]:
    """Meets the other processes and agrees with them; tells them when this one cannot.

    Args:
        group: this process, and the others.
        identify: what this process is; may take as long as downloading a model does.
        on_process: given this process, before any other is found.
        **how: as of `meet`.

    Returns:
        This process in lock-step, and what JAX needs to know (None for a process on its own).

    Raises:
        WanTpuError: as `meet`, `agree` and `identify` do.
    """
    process: Lockstep = Alone()

    def know(found: Lockstep) -> None:
        nonlocal process
        process = found
        on_process(found)

    try:
        meet(group, on_process=know, **how)
        return process, agree(process, group, identify)
    except WanTpuError as error:
        process.give_up(str(error), is_mismatch=isinstance(error, MismatchError))
        raise
