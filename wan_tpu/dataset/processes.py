"""The same work on many things in several processes, of which none outlives this one.

A decoder is C that reads what strangers wrote: a process may end in the middle of a file. It takes
nothing else with it. Each process has a pipe of its own, so that one that ends leaves no other one
waiting for the rest of what it was saying.
"""

import collections
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Crashed:
    """In the place of a result: the process ended while it worked on this."""


def default_workers() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0))


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[int, Result | Crashed]]:
    """Results as they come.

    Args:
        work: a function of a module, with what can be pickled; loads no JAX.
        items: each is worked on once.
        workers: processes; with 0 the work is done in this one, where a crash ends all.

    Yields:
        The number of an item and its result. When the iterator is closed, or an exception goes
        through it, the processes are ended.
    """
    if workers == 0:
        yield from enumerate(map(work, items))
        return
    waiting = collections.deque(range(len(items)))
    busy: dict[Connection, tuple[SpawnProcess, int]] = {}
    try:
        while waiting and len(busy) < workers:
            index = waiting.popleft()
            _start(work, items[index], index, busy)
        while busy:
            for connection in multiprocessing.connection.wait(list(busy)):
                assert isinstance(connection, Connection)
                process, index = busy[connection]
                result = _receive(connection)
                following = waiting.popleft() if waiting else None
                if (
                    following is not None
                    and not isinstance(result, Crashed)
                    and _send(connection, items[following])
                ):
                    busy[connection] = process, following
                else:
                    del busy[connection]
                    connection.close()  # tells it to end, where it has not
                    process.join()
                    if following is not None:
                        _start(work, items[following], following, busy)
                yield index, result
    finally:
        for process, _ in busy.values():
            process.kill()
        for connection, (process, _) in busy.items():
            process.join()
            connection.close()


def _start(
    work: Callable[[Item], Result],
    item: Item,
    index: int,
    busy: dict[Connection, tuple[SpawnProcess, int]],
) -> None:
    """Starts a process with its first item; no signal comes between it and its entry."""
    # Not forked: where JAX or a progress bar runs, there are threads.
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # whose start would let the signals in again
    # The process never hears Ctrl-C, which a terminal sends to all: this one does, and ends it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, work), daemon=True)
        process.start()
        busy[here] = process, index
        there.close()  # so that its end is the end of the pipe
        _send(here, item)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(connection: Connection, item: Any) -> bool:
    """Whether a process could be told; one that has ended cannot."""
    try:
        connection.send(item)
    except ConnectionError:
        return False
    return True


def _receive(connection: Connection) -> Any:
    """A result; raises what the work raised."""
    try:
        is_result, value = connection.recv()
    except (EOFError, ConnectionError):
        return Crashed()
    if not is_result:
        raise value
    return value


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """What a process does until the pipe is closed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING - {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer = True, work(item)
        except Exception as error:  # noqa: BLE001 - carried to the one that asked, raised there
            answer = False, error
        connection.send(answer)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, which could not say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
