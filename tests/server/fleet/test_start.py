"""The end of a start: what becomes of its files when Temporal does not take the result."""

import asyncio

import pytest
from temporalio import activity
from temporalio.worker import Worker

from server.files.job_files import JobFiles
from server.fleet.messages import Order, slice_queue
from server.fleet.start import Room, Start
from server.settings import Settings
from tests.server.fleet.stand_in import make_order, stand_in
from wan_tpu.storage.bucket import open_bucket


class Late:
    """A slice whose video is made, and whose result comes a second time, or too late."""

    def __init__(self, api, folder, *, is_taken):
        self.api = api
        self.bucket = open_bucket(str(folder))
        self.is_taken = is_taken
        self.is_done = asyncio.Event()

    @activity.defn
    async def generate(self, order: Order) -> None:
        info = activity.info()
        if self.is_taken:  # and the answer to that is lost
            handle = self.api.client.get_async_activity_handle(task_token=info.task_token)
            await handle.complete({"start": order.start})
        else:
            await self.api.client.get_workflow_handle(order.id).terminate()
        await self.bucket.put(f"videos/{order.id}/{order.start}/video.mp4", b"made")
        start = Start(order, self._room())
        start._may_have_files = True
        await start._complete({"start": order.start})
        self.is_done.set()
        activity.raise_complete_async()

    def _room(self):
        settings = Settings(fleet="temporal://here:1/default", role="slice", files="/nowhere")
        nothing = dict.fromkeys(("scratch", "engine", "supervisor", "metrics"))
        return Room(
            name="late",
            client=self.api.client,
            files=JobFiles(self.bucket),
            settings=settings,
            **nothing,  # pyright: ignore[reportArgumentType] - it has come past all that
        )


@pytest.mark.parametrize("is_taken", [True, False])
def test_files_stay_only_if_the_result_was_taken(fleet_url, tmp_path, is_taken):
    async def work():
        async with stand_in(fleet_url) as api:
            late = Late(api, tmp_path, is_taken=is_taken)
            queue = slice_queue("late")
            async with Worker(api.client, task_queue=queue, activities=[late.generate]):
                order = make_order(model="late")
                await api.start(order)
                await late.is_done.wait()
            return order

    order = asyncio.run(work())
    path = tmp_path / "videos" / order.id / "1" / "video.mp4"
    assert path.exists() is is_taken
