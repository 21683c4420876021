"""What routes ask for by type: the service, the key and its owner, the job of the path."""

from typing import Annotated

from fastapi import Depends, Path, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.answered import answered
from server.engine.profiles import Profiles
from server.errors import ApiError, retry_after
from server.http.limits import RequestRate, check_address
from server.http.schemas import VIDEO_ID
from server.http.served_models import ServedModels
from server.http.tickets import Tickets
from server.jobs.job import Job
from server.keys import Keys
from server.service import Service
from server.slices import Slices

NO_OWNER = ""
"""Whose the jobs are where no keys are asked for."""

KEYS_RETRY_SECONDS = 5.0


async def get_service(request: Request) -> Service:
    """The service that this application serves."""
    return request.app.state.service


async def get_models(request: Request) -> ServedModels:
    """The models that are served."""
    return request.app.state.models


async def get_profiles(request: Request) -> Profiles:
    """The profiles of this server's engine; where it has none, no route asks."""
    profiles: Profiles | None = request.app.state.service.profiles
    assert profiles is not None
    return profiles


async def get_slices(request: Request) -> Slices:
    """The slices of the fleet; where there is none, no route asks."""
    slices: Slices | None = request.app.state.service.slices
    assert slices is not None
    return slices


bearer = HTTPBearer(scheme_name="key", auto_error=False)


async def identify(request: Request) -> None:
    """Finds out who asks for a path that no route has, where keys are asked for."""
    if request.app.state.service.keys is not None:
        await require_key(request, await bearer(request))


async def require_key(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> None:
    """Finds out whose key it is: see `get_owner`.

    Raises:
        ApiError: there is no key, nobody knows it, or the file of keys cannot be read.
    """
    keys: Keys = request.app.state.service.keys
    if keys.problem is not None:
        message = "the server cannot read its API keys, so it takes none for now"
        raise ApiError(503, "keys_unavailable", message, headers=retry_after(KEYS_RETRY_SECONDS))
    key = "" if credentials is None else credentials.credentials.strip()
    owner = keys.find(key) if key else _owner_of_ticket(request, keys)
    if owner is not None:
        request.state.owner = owner
        request.state.key = key
        return
    await limit_strangers(request)
    code, message = "invalid_api_key", "this API key is not known here"
    if not key:
        code = "missing_api_key"
        message = "an API key is needed: send it as `Authorization: Bearer KEY`"
    raise ApiError(401, code, message, headers={"WWW-Authenticate": "Bearer"})


def _owner_of_ticket(request: Request, keys: Keys) -> str | None:
    tickets: Tickets = request.app.state.tickets
    known = tickets.key_hash(request)
    return None if known is None else keys.find_hash(known)


async def is_known(request: Request) -> bool:
    """Whether who asks may know how this server is made: by a key, or where none is asked for."""
    keys: Keys | None = request.app.state.service.keys
    if keys is None:
        return request.app.state.service.settings.is_loopback  # a slice answers everybody's probes
    credentials = await bearer(request)
    return credentials is not None and keys.find(credentials.credentials.strip()) is not None


async def get_owner(request: Request) -> str:
    """The name of the key that asks."""
    return getattr(request.state, "owner", NO_OWNER)


async def limit_rate(request: Request) -> None:
    """Bounds how many requests a second one key may send.

    Raises:
        ApiError: these were too many.
    """
    rate: RequestRate = request.app.state.key_rate
    rate.check(await get_owner(request))


async def limit_strangers(request: Request) -> None:
    """Bounds how many requests a second may come from one address without a key.

    Raises:
        ApiError: these were too many.
    """
    rate: RequestRate = request.app.state.stranger_rate
    check_address(rate, request.scope)


async def get_job(request: Request, video_id: Annotated[str, Path(pattern=f"^{VIDEO_ID}$")]) -> Job:
    """The job of the path, if it is the caller's.

    Raises:
        ApiError: there is none.
    """
    service = await get_service(request)
    with answered():
        job = await service.jobs.find_owned(await get_owner(request), video_id)
    if job is None:
        raise video_not_found(video_id)
    return job


def video_not_found(video_id: str, field: str = "video_id") -> ApiError:
    """There is no such video, or it is another key's."""
    return ApiError(404, "not_found", f"there is no video {video_id[:80]!r}", param=field)


IsKnown = Annotated[bool, Depends(is_known)]
ServiceDependency = Annotated[Service, Depends(get_service)]
ModelsDependency = Annotated[ServedModels, Depends(get_models)]
Owner = Annotated[str, Depends(get_owner)]
SlicesDependency = Annotated[Slices, Depends(get_slices)]
ProfilesDependency = Annotated[Profiles, Depends(get_profiles)]
OwnedJob = Annotated[Job, Depends(get_job)]
