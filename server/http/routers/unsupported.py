"""What OpenAI's clients can ask for and no model here can do."""

from fastapi import APIRouter

from server.errors import DO_NOT_RETRY, ApiError

router = APIRouter(prefix="/v1/videos", include_in_schema=False)


@router.post("/characters")
@router.get("/characters/{character_id}")
async def use_characters(character_id: str = "") -> None:
    """Not supported."""
    message = "a character is not supported: no Wan model keeps one from video to video"
    raise ApiError(501, "not_supported", message, headers=DO_NOT_RETRY)
