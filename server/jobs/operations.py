"""What is done whole, also when whoever asked for it is gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Operations:
    """Operations that are under way: stopped halfway, what is kept and what is told would part."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def to_the_end(self, operation: Coroutine[Any, Any, T]) -> T:
        """Does something whole; whoever is cancelled while it waits for it, does not stop it."""
        task = asyncio.create_task(operation)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Waits for all of them."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked for it has got it, or is gone
