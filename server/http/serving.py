"""Serves the application until it is told to end, and ends in good order."""

import asyncio
import contextlib
import gc
import logging
import socket
from collections.abc import Generator
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from server.http.connections import MAX_HEAD_BYTES, make_protocol
from server.http.events import Streams
from server.http.listening import Listening
from server.metrics import Metrics
from server.settings import Settings
from server.signals import Told
from server.systemd import Notifier

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5
"""For answers that are under way when the server ends."""

STATUS_TICKS = 10
"""uvicorn's ticks, ten a second, between looks at what systemd is told."""


class Work(Protocol):
    """What is done beside the answers, and how it is ended; see `server.jobs.seam.Jobs`."""

    @property
    def fatal(self) -> str | None:
        """Why the server must end at once, with an error."""
        ...

    @property
    def has_lost_process(self) -> bool:
        """Whether the server must end so that all processes of its slice start anew."""
        ...

    async def drain(self) -> None:
        """Takes no more jobs, and lets go of what runs in good order."""
        ...

    def hurry(self) -> None:
        """Ends the time that `drain` gives."""
        ...

    def abandon(self) -> None:
        """Has it end without another write."""
        ...


class Served(Protocol):
    """What is served: a `server.service.Service`, or a slice."""

    @property
    def settings(self) -> Settings:
        """Of this server."""
        ...

    @property
    def metrics(self) -> Metrics:
        """Of this server."""
        ...

    @property
    def jobs(self) -> Work:
        """Those that it takes, or makes."""
        ...

    @property
    def missing(self) -> list[str]:
        """What stands between it and being ready, as sentences; empty when it is."""
        ...


class DrainingServer(uvicorn.Server):
    """Goes on answering after the first signal until the service is drained; a second one hurries.

    uvicorn by itself closes its doors at the first: clients could then not even be told to wait.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Served,
        streams: Streams | None,
        listening: Listening,
        told: Told,
        notifier: Notifier,
    ):
        super().__init__(config)
        self._service = service
        self._streams = streams
        self._listening = listening
        self._told = told
        self._notifier = notifier
        self._end: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """See `uvicorn.Server`: it would raise what it caught once more when it has ended."""
        self._told.serve()
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        async with self._notifier.watched():
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`; it says where only of sockets that it has made itself."""
        await super().startup(sockets)
        logger.info("running on %s (Ctrl-C ends it)", self._listening.where)
        self._notifier.ready()

    async def on_tick(self, counter: int) -> bool:
        """See `uvicorn.Server`; asked ten times a second whether to end."""
        service = self._service
        if counter % STATUS_TICKS == 0:
            self._notifier.status("; ".join(service.missing) or "ready")
        if service.jobs.fatal is not None and self._end is None:
            service.jobs.abandon()
        is_asked = self._told.times > 0 or service.jobs.fatal is not None
        if (is_asked or service.jobs.has_lost_process) and self._end is None:
            self._notifier.stopping()
            self._end = asyncio.create_task(self._end_orderly())
        if self._told.times > 1:
            service.jobs.hurry()
        if await super().on_tick(counter):
            return True
        if self._end is None or not self._end.done():
            return False
        self._end.result()  # a fault of ours is not to be ended with 0
        return True

    async def _end_orderly(self) -> None:
        try:
            if not self._service.jobs.has_lost_process:
                await self._service.jobs.drain()
        finally:
            if self._streams is not None:
                self._streams.close()


def serve(
    service: Served, app: FastAPI, listening: Listening, told: Told, notifier: Notifier
) -> bool:
    """Serves until it is told to end.

    Args:
        service: what is served.
        app: its application.
        listening: where.
        told: how often the process was told to end.
        notifier: who is told how it is.

    Returns:
        Whether it has served at all; the log says why it has not.
    """
    settings = service.settings
    config = uvicorn.Config(
        app,
        http=make_protocol(settings, service.metrics),
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        loop="uvloop",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        lifespan="on",
    )
    # What is loaded by now stays: going through all of it again held every answer up for 75 ms.
    gc.collect()
    gc.freeze()
    server = DrainingServer(config, service, app.state.streams, listening, told, notifier)
    try:
        server.run(sockets=listening.sockets)
    except SystemExit:  # uvicorn's way to say that the application did not start: 3
        return False
    return True
