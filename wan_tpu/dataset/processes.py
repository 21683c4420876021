"""The same work on many things in several processes, of which none outlives this one.

A decoder is C that reads what strangers wrote: a process may end in the middle of a file. It takes
nothing else with it.
"""

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    waiting = list(range(len(items)))
    while waiting:
        done: set[int] = set()
        with _pool(min(workers, len(waiting))) as pool:
            futures = _submit(pool, work, items, waiting)
            try:
                for future in concurrent.futures.as_completed(futures):
                    result = future.result()
                    done.add(futures[future])
                    yield futures[future], result
            except BrokenProcessPool:
                pass
        waiting = [index for index in waiting if index not in done]
        # Those that were being worked on are among the first; each has a process of its own now.
        suspects, waiting = waiting[: 2 * workers + 1], waiting[2 * workers + 1 :]
        for index in suspects:
            yield index, _alone(work, items[index])


def _alone(work: Callable[[Item], Result], item: Item) -> Result | Crashed:
    with _pool(1) as pool:
        (future,) = _submit(pool, work, [item], [0])
        try:
            return future.result()
        except BrokenProcessPool:
            return Crashed()


def _submit(
    pool: ProcessPoolExecutor,
    work: Callable[[Item], Result],
    items: Sequence[Item],
    indices: Sequence[int],
) -> dict[concurrent.futures.Future[Result], int]:
    """Starts the processes, which never hear Ctrl-C: this one does, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return {pool.submit(work, items[index]): index for index in indices}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    others = set(multiprocessing.active_children())
    # Not forked: where JAX or a progress bar runs, there are threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, which could not say so."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
