"""What OpenAI's clients can ask for and no model here can do: said in one way for all of it."""

from fastapi import APIRouter

from server.errors import DO_NOT_RETRY, ApiError

router = APIRouter(prefix="/v1/videos", include_in_schema=False)


@router.post("/edits")
async def edit_video() -> None:
    """Not supported."""
    raise _not_supported("editing a video")


@router.post("/extensions")
async def extend_video() -> None:
    """Not supported."""
    raise _not_supported("extending a video")


@router.post("/{video_id}/remix")
async def remix_video(video_id: str) -> None:
    """Not supported."""
    raise _not_supported("remixing a video")


@router.post("/characters")
@router.get("/characters/{character_id}")
async def use_characters(character_id: str = "") -> None:
    """Not supported."""
    raise _not_supported("a character")


def _not_supported(what: str) -> ApiError:
    message = f"{what} is not supported: this server makes videos from text only"
    return ApiError(501, "not_supported", message, headers=DO_NOT_RETRY)
