"""Server-sent events of one job: the whole object whenever it changes, until it is finished."""

import asyncio
import json
from collections.abc import AsyncIterator

from server.jobs.board import Board

HEARTBEAT_SECONDS = 10.0
LEAST_SECONDS_BETWEEN = 0.1
"""A short step must not make a burst of events."""


class Streams:
    """The event streams that are open."""

    def __init__(self, board: Board):
        self._board = board
        self._closing = False
        self.open = 0

    def close(self) -> None:
        """Ends all streams, so that the server can end."""
        self._closing = True
        self._board.wake()

    async def events(self, job_id: str) -> AsyncIterator[bytes]:
        """`event: video` with the object; `event: deleted` when it is gone."""
        self.open += 1
        try:
            last = b""
            while not self._closing:
                changed = self._board.next_change()
                job = self._board.find(job_id)
                if job is None:
                    yield _event("deleted", json.dumps({"id": job_id}).encode())
                    return
                body = self._board.body(job_id)
                if body != last:
                    yield _event("video", body)
                    last = body
                if job.is_finished:
                    return
                await asyncio.sleep(LEAST_SECONDS_BETWEEN)
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    yield b": ping\n\n"
        finally:
            self.open -= 1


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
