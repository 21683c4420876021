"""`/v1/slices`: the slices of a fleet and what they are at."""

from fastapi import APIRouter

from server.http.dependencies import SlicesDependency
from server.http.schemas import Slice, SliceList

router = APIRouter(prefix="/v1/slices", tags=["slices"])


@router.get("", operation_id="listSlices")
async def list_slices(slices: SlicesDependency) -> SliceList:
    """Lists the slices that are there; a server that has its own slice has no such route."""
    data = [
        Slice(
            id=each.name,
            object="slice",
            model=each.model,
            state=each.state,
            words=each.words,
            since=int(each.since),
            layout=each.layout,
        )
        for each in slices.shown()
    ]
    return SliceList(object="list", data=data)
