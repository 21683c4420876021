"""What the routes that take jobs have in common: room for one, its request, and the answer."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from starlette.responses import Response

from server.answered import answered
from server.http.bodies import Making
from server.http.dependencies import ModelsDependency, Owner, ServiceDependency
from server.http.intake import Sent, digest
from server.http.reference import Reference
from server.http.schemas import Video, VideoCreated
from server.http.served_model import ServedModel
from server.http.served_models import ServedModels
from server.jobs.job import Extended, Job
from server.service import Service
from wan_tpu.media import Media
from wan_tpu.request import VideoRequest

logger = logging.getLogger(__name__)

DECODED_AT_ONCE, SOURCES_AT_ONCE = 2, 4
"""Pictures and clips that are decoded, to many times what they came as; stored videos in memory."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="the same key and body gives the same job, with another body 409",
    ),
]


async def room_in_queue(service: ServiceDependency, owner: Owner, request: Request) -> None:
    """Refuses a job that cannot be taken before its body is read; repetitions are let through."""
    key = request.headers.get("idempotency-key")
    with answered():
        is_new = key is None or await service.jobs.find_idempotent(owner, key) is None
    if is_new:
        await service.check_open(owner)


class Taking:
    """Takes the job of one request that came in."""

    def __init__(
        self,
        request: Request,
        service: ServiceDependency,
        models: ModelsDependency,
        owner: Owner,
        idempotency_key: IdempotencyKey = None,
    ):
        self.service: Service = service
        self.models: ServedModels = models
        self.owner: str = owner
        self._idempotency_key = idempotency_key
        self._decoding: asyncio.Semaphore = request.app.state.decoding
        self.sources: asyncio.Semaphore = request.app.state.sources
        """For who reads a stored video: it is in memory until its job is accepted."""

    async def repeated(self, sent: Sent, *context: str) -> Job | None:
        """The job that the same request was given before, by its idempotency key.

        Args:
            sent: by the client.
            context: see `server.http.intake.digest`.

        Raises:
            ApiError: the key came with another request.
        """
        with answered():
            key = self._idempotency_key
            return await self.service.repeated(self.owner, key, digest(sent, *context))

    async def decoded(self, function: Any, *arguments: Any) -> Any:
        """What a function returns that decodes pictures and clips, beside other requests."""
        async with self._decoding:
            return await asyncio.to_thread(function, *arguments)

    async def choose(self, sent: Sent, source_id: str | None = None) -> ServedModel:
        """The model that makes the video: as the client says, or that of the video it is made from.

        Raises:
            ApiError: no such model is served.
        """
        name = sent.body.model
        if name is None and source_id is not None:
            with answered():
                source = await self.service.jobs.find_owned(self.owner, source_id)
            name = source.model if source is not None and self.models.has(source.model) else None
        return self.models.find(name)

    async def complete(
        self, model: ServedModel, body: Making, references: Mapping[str, Reference]
    ) -> VideoRequest:
        """The complete request of a body; see `ServedModel.request`."""
        if not references and body.lora is None:
            return model.request(body)
        return await self.decoded(model.request, body, references.values())

    async def accept(
        self,
        sent: Sent,
        model: ServedModel,
        request: VideoRequest,
        media: Media,
        *context: str,
        source_id: str | None = None,
        extended: Extended | None = None,
    ) -> VideoCreated:
        """Takes the job or jobs; arguments as of `Service.accept` and `repeated`."""
        jobs = await self.service.accept(
            self.owner,
            request,
            media=media,
            source_id=source_id,
            extended=extended,
            model=model.id,
            request_digest=digest(sent, *context),
            idempotency_key=self._idempotency_key,
            number=sent.body.n or 1,
        )
        for job in jobs:
            logger.info("job accepted", extra={"job": job.id, "owner": self.owner})
        return self._answer(jobs)

    async def answer(self, first: Job) -> VideoCreated:
        """The job's object, and those of the others that its request asked for."""
        with answered():
            return self._answer(await self.service.jobs.group_of(first))

    def _answer(self, jobs: list[Job]) -> VideoCreated:
        bodies = self.service.jobs.bodies(jobs)
        body = bodies[0]
        if len(bodies) > 1:
            body = body.removesuffix(b"}") + b',"videos":[%s]}' % b",".join(bodies)
        return ready_json(body, _poll_headers(self.service))


TakingDependency = Annotated[Taking, Depends()]


def video_answer(service: Service, job: Job) -> Video:
    """A job's object."""
    return ready_json(service.jobs.bodies([job])[0], _poll_headers(service))


def _poll_headers(service: Service) -> dict[str, str]:
    return {"openai-poll-after-ms": str(service.settings.poll_after_ms)}


def ready_json(body: bytes, headers: dict[str, str] | None = None) -> Any:
    """JSON that is kept encoded: many clients poll, and a model would be encoded for each."""
    return Response(body, headers=headers, media_type="application/json")
