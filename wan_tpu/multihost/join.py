"""Makes this process one of those of a slice."""

import logging
from collections.abc import Callable

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


def join(
    group: ProcessGroup,
    identify: Callable[[], Identity],
    *,
    on_lost: Callable[[str], None],
    on_stop: Callable[[], None],
    on_process: Callable[[Lockstep], None] = lambda _: None,
    on_waiting: Callable[[str], None] = lambda _: None,
    join_seconds: float = JOIN_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> tuple[Lockstep, Joined | None]:
    """Waits until all processes of a group have found each other and are alike.

    Args:
        group: this process, and the others.
        identify: what this process is; may take as long as downloading a model does.
        on_lost: told on a thread, later, that another process is lost; must end this one.
        on_stop: called on a thread when process 0 ends all; never in process 0.
        on_process: given this process, before any other is found.
        on_waiting: told what is waited for.
        join_seconds: how long to wait for the others.
        patience_seconds: how long, later, another process may be silent or behind.

    Returns:
        This process in lock-step, and what JAX needs to know (None for a process on its own).

    Raises:
        InputError: process 0 cannot listen at its address.
        ProcessLostError: some did not come.
        MismatchError: they differ, in their secret or in what they are.
        WanTpuError: what `identify` raises.
    """
    if group.num_processes == 1:
        return Alone(), None
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
    try:
        process.gather(join_seconds)
        if not group.leads:
            number = f"process {group.process_id} of {group.num_processes}"
            on_waiting(f"{number} follows {group.coordinator}")
        on_waiting("looking at the model's files")
        address = process.agree(identify())
    except WanTpuError as error:
        process.give_up(str(error), is_mismatch=isinstance(error, MismatchError))
        raise
    return process, Joined(group=group, jax_coordinator=address)
