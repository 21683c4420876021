"""Server-sent events of one job: the whole object whenever it changes, until it is finished."""

import asyncio
import collections
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from fastapi.sse import ServerSentEvent

from server.errors import ApiError, retry_after
from server.jobs.seam import Jobs
from server.keys import Keys

LEAST_SECONDS_BETWEEN = 0.1
"""A short step must not make a burst of events."""

KEY_CHECK_SECONDS = 2.0
"""How long a stream may outlive its key."""

RECONNECT_MS = 2000
"""When a browser is to come again after a stream that broke."""

RETRY_SECONDS = 5.0


class Streams:
    """The event streams that are open."""

    def __init__(self, jobs: Jobs, keys: Keys | None, *, most: int, most_per_key: int):
        self._jobs = jobs
        self._keys = keys
        self._most = most
        self._most_per_key = most if keys is None else most_per_key
        self._closing = False
        self._open: collections.Counter[str] = collections.Counter()

    def close(self) -> None:
        """Ends all streams, so that the server can end."""
        self._closing = True
        self._jobs.wake()

    @contextmanager
    def place(self, owner: str) -> Iterator[None]:
        """A place for one more stream, while the block is entered.

        Raises:
            ApiError: there is none.
        """
        for count, most, whose in (
            (self._open.total(), self._most, "event streams"),
            (self._open[owner], self._most_per_key, "event streams of this key"),
        ):
            if count >= most:
                message = f"{count} {whose} are open, which is as many as may; poll instead"
                headers = retry_after(RETRY_SECONDS)
                raise ApiError(429, "too_many_streams", message, headers=headers)
        self._open[owner] += 1
        try:
            yield
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]

    async def events(self, job_id: str, key: str | None) -> AsyncIterator[ServerSentEvent]:
        """`event: video` with the object; `event: deleted` when it is gone.

        Args:
            job_id: of the job.
            key: the stream ends when this is revoked.
        """
        last, retry = b"", RECONNECT_MS
        while not self._closing and self._is_valid(key):
            changed = self._jobs.next_change()
            job = await self._jobs.find(job_id)
            if job is None:
                gone = json.dumps({"id": job_id})
                yield ServerSentEvent(event="deleted", raw_data=gone, id="deleted")
                return
            body = self._jobs.bodies([job])[0]
            if body != last:
                yield ServerSentEvent(
                    event="video", raw_data=body.decode(), id=str(job.state), retry=retry
                )
                last, retry = body, None
            if job.is_finished:
                return
            await asyncio.sleep(LEAST_SECONDS_BETWEEN)
            try:
                async with asyncio.timeout(KEY_CHECK_SECONDS):
                    await changed.wait()
            except TimeoutError:
                continue

    def _is_valid(self, key: str | None) -> bool:
        return self._keys is None or (key is not None and self._keys.find(key) is not None)
