"""Serves the application until it is told to end, and ends in good order."""

import asyncio
import gc
import logging
import types

import uvicorn

from server.http.app import make_app
from server.http.connections import MAX_HEAD_BYTES, make_protocol
from server.http.events import Streams
from server.service import Service

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5
"""For answers that are under way when the server ends."""


class DrainingServer(uvicorn.Server):
    """Goes on answering after SIGTERM or Ctrl-C until the service is drained; a second one ends it.

    uvicorn by itself closes its doors at the first: clients could then not even be told to wait.
    """

    def __init__(self, config: uvicorn.Config, service: Service, streams: Streams):
        super().__init__(config)
        self._service = service
        self._streams = streams
        self._signals = 0
        self._drain: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        """See `uvicorn.Server`."""
        self._signals += 1

    async def on_tick(self, counter: int) -> bool:
        """See `uvicorn.Server`; asked ten times a second whether to end."""
        if self._signals and self._drain is None:
            self._drain = asyncio.create_task(self._end_orderly())
        drained = self._drain is not None and self._drain.done()
        if self._service.worker.has_lost_process:
            self._streams.close()
            return True
        return await super().on_tick(counter) or drained or self._signals > 1

    async def _end_orderly(self) -> None:
        await self._service.drain()
        self._streams.close()


def serve(service: Service) -> None:
    """Serves until it is told to end."""
    settings = service.settings
    app = make_app(service)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
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
    DrainingServer(config, service, app.state.streams).run()
