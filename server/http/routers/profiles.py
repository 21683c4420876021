"""`/v1/profiles`: what the engine does, step by step, recorded for the operator."""

import json
import logging
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.responses import FileResponse

from server.engine.profiles import ProfileRecord
from server.errors import ApiError, shown
from server.http.answers import errors
from server.http.content import RangedFile
from server.http.dependencies import Owner, ProfilesDependency, ServiceDependency
from server.http.schemas import (
    MAX_PROFILE_SECONDS,
    MAX_PROFILE_STEPS,
    Profile,
    ProfileCreate,
    ProfileDeleted,
    ProfileError,
    ProfileList,
)

logger = logging.getLogger(__name__)

JSON = "application/json"
ARCHIVE = "application/gzip"
DEFAULT_STEPS = 3
EXPECTED = {
    "steps": f"a whole number between 1 and {MAX_PROFILE_STEPS}",
    "seconds": f"a number above 0 and at most {MAX_PROFILE_SECONDS}",
}


async def require_operator(service: ServiceDependency, owner: Owner) -> None:
    """Lets those keys in that the settings name; every key where they name none.

    Raises:
        ApiError: it is another key.
    """
    operators = service.settings.operators
    if service.keys is not None and operators and owner not in operators:
        message = "this key is not an operator's: WAN_TPU_OPERATORS names those that are"
        raise ApiError(403, "not_operator", message)


router = APIRouter(
    prefix="/v1/profiles", tags=["profiles"], dependencies=[Depends(require_operator)]
)


async def read_wanted(request: Request) -> ProfileCreate:
    """The body: `{"steps": 3}`, `{"seconds": 10}`, or nothing.

    Raises:
        ApiError: it is something else.
    """
    body = await request.body()
    if not body:
        return ProfileCreate()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        message = f"the body must be {JSON}, got {shown(kind) if kind else 'no Content-Type'}"
        raise ApiError(415, "unsupported_media_type", message)
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        message = f'the body must be a JSON object, {{"steps": 3}}, got {shown(fields)}'
        raise ApiError(400, "invalid_json", message)
    try:
        wanted = ProfileCreate.model_validate(fields)
    except ValidationError as error:
        field = str((*error.errors()[0]["loc"], "")[0])
        if field not in EXPECTED:
            known = ", ".join(EXPECTED)
            message = f"unknown field {shown(field)}; known: {known}"
            raise ApiError(400, "unknown_field", message, param=field) from None
        message = f"{field} must be {EXPECTED[field]}, got {shown(fields[field])}"
        raise ApiError(400, "invalid_value", message, param=field) from None
    if wanted.steps is not None and wanted.seconds is not None:
        message = "steps and seconds are given; one of them says when the profile ends"
        raise ApiError(400, "conflict", message, param="seconds")
    return wanted


@router.post(
    "",
    operation_id="createProfile",
    status_code=202,
    responses=errors(403, 408, 409, 413, 415),
    openapi_extra={
        "requestBody": {"content": {JSON: {"schema": ProfileCreate.model_json_schema()}}}
    },
)
async def create_profile(
    profiles: ProfilesDependency,
    owner: Owner,
    wanted: Annotated[ProfileCreate, Depends(read_wanted)],
) -> Profile:
    """Begins to record, beside the job that runs, and answers at once."""
    steps = wanted.steps
    if steps is None and wanted.seconds is None:
        steps = DEFAULT_STEPS
    record = profiles.begin(steps=steps, seconds=wanted.seconds)
    logger.info("profile %s begun", record.id, extra={"owner": owner})
    return _shown(record)


@router.get("", operation_id="listProfiles", responses=errors(403))
async def list_profiles(profiles: ProfilesDependency) -> ProfileList:
    """Lists profiles, newest first."""
    return ProfileList(object="list", data=[_shown(each) for each in profiles.list()])


@router.get("/{profile_id}", operation_id="retrieveProfile", responses=errors(403, 404))
async def retrieve_profile(profile_id: str, profiles: ProfilesDependency) -> Profile:
    """Shows a profile."""
    return _shown(profiles.find(profile_id))


@router.delete("/{profile_id}", operation_id="deleteProfile", responses=errors(403, 404))
async def delete_profile(
    profile_id: str, profiles: ProfilesDependency, owner: Owner
) -> ProfileDeleted:
    """Removes a profile; one that is being recorded is stopped, the job goes on."""
    await profiles.delete(profile_id)
    logger.info("profile %s deleted", profile_id, extra={"owner": owner})
    return ProfileDeleted(id=profile_id, object="profile.deleted", deleted=True)


@router.get(
    "/{profile_id}/content",
    operation_id="downloadProfile",
    response_class=FileResponse,
    responses={
        **errors(403, 404, 409, 416),
        200: {
            "description": "The trace, packed",
            "content": {ARCHIVE: {"schema": {"type": "string", "format": "binary"}}},
        },
        206: {"description": "The ranges that were asked for"},
    },
)
async def download_profile(profile_id: str, profiles: ProfilesDependency) -> RangedFile:
    """Sends a completed profile: a folder for xprof, as .tar.gz."""
    path = profiles.archive(profile_id)
    return RangedFile(path, media_type=ARCHIVE, filename=path.name)


def _shown(record: ProfileRecord) -> Profile:
    return Profile(
        id=record.id,
        object="profile",
        status=record.status,  # pyright: ignore[reportArgumentType] - the model checks it
        created_at=record.created_at,
        bytes=record.num_bytes,
        error=None
        if record.problem is None
        else ProfileError(code="profile_failed", message=record.problem),
    )
