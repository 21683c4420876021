"""The slices of a fleet and the models that they serve, as they say in the bucket."""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping

from server.fleet.showing import ALIVE_SECONDS, FOLDER, MODELS, Shown
from server.slices import FleetModel, ShownSlice
from wan_tpu.geometry import parse_size
from wan_tpu.storage.bucket import Bucket, BucketError, ObjectMissing, Stat

logger = logging.getLogger(__name__)

READ_SECONDS = 3.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a slice said, and when it was heard by the steady clock of this server."""

    shown: Shown
    stat: Stat
    at: float


class Slices:
    """See `server.slices.Slices`; a bucket that is away changes nothing.

    Attributes:
        trouble: why the bucket cannot be read now; None while it can.
    """

    def __init__(
        self,
        bucket: Bucket,
        *,
        model_seconds: float,
        steady: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ):
        """Knows nothing until `read`.

        Args:
            bucket: of the fleet.
            model_seconds: how long a model counts as served after its last slice was there.
            steady: the clock that ages are measured by.
            wall: the clock that tells how old an object is that is seen for the first time.
        """
        self._bucket = bucket
        self._model_seconds = model_seconds
        self._steady, self._wall = steady, wall
        self._heard: dict[str, Heard] = {}
        self._models: dict[str, tuple[FleetModel, float]] = {}
        self._strange: dict[str, Stat] = {}
        self._read_at = steady()
        self.trouble: str | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Reads until the block is left."""
        task = asyncio.create_task(self._keep_up(), name="slices")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def models(self) -> Mapping[str, FleetModel]:
        """See `server.slices.Slices`."""
        return {model: served for model, (served, _) in self._models.items()}

    def count(self, model: str) -> int:
        """How many slices make a model's videos now."""
        there = [heard.shown for heard in self._heard.values() if self._is_there(heard)]
        return sum(each.model == model and each.state in ("ready", "busy") for each in there)

    def shown(self) -> list[ShownSlice]:
        """See `server.slices.Slices`."""
        there = [heard.shown for _, heard in sorted(self._heard.items()) if self._is_there(heard)]
        return [
            ShownSlice(
                name=each.name,
                model=each.model,
                state=each.state,
                words=each.words,
                since=each.since,
                layout=each.engine.get("layout"),
            )
            for each in there
        ]

    async def read(self) -> None:
        """Takes in what has changed.

        Raises:
            BucketError: the bucket cannot be read.
        """
        listed = [await self._bucket.list(f"{folder}/") for folder in (FOLDER, MODELS)]
        stats = {stat.key: stat for stat in itertools.chain(*listed)}
        self._read_at = now = self._steady()
        for key in self._heard.keys() - stats.keys():
            del self._heard[key]
        changed = [stat for key, stat in stats.items() if not self._knows(key, stat)]
        for key, heard in zip(
            [stat.key for stat in changed],
            await asyncio.gather(*(self._hear(stat, now) for stat in changed)),
            strict=True,
        ):
            if heard is not None:
                self._heard[key] = heard
        for heard in sorted(self._heard.values(), key=lambda heard: heard.at):
            if self._is_there(heard) or not _is_slice(heard):
                self._serve(heard)
        self._models = {
            model: (served, at)
            for model, (served, at) in self._models.items()
            if now - at < self._model_seconds
        }

    def _serve(self, heard: Heard) -> None:
        """Takes a slice's model for the one of its name; the same object unless it has changed."""
        shown = heard.shown
        frames = shown.description.defaults.num_frames
        warm = tuple((*parse_size(size), frames) for size in shown.warm_sizes)
        served = FleetModel(description=shown.description, warm=warm)
        before, _ = self._models.get(shown.model, (served, 0.0))
        self._models[shown.model] = (before if before == served else served, heard.at)

    async def _keep_up(self) -> None:
        while True:
            try:
                await self.read()
                self._note(None)
            except BucketError as error:
                self._note(str(error))
            except Exception:
                logger.exception("the slices cannot be read")
            await asyncio.sleep(READ_SECONDS)

    async def _hear(self, stat: Stat, now: float) -> Heard | None:
        try:
            shown = Shown.from_json(await self._bucket.get(stat.key))
        except ObjectMissing:
            return None  # it has just ended
        except ValueError as error:
            logger.warning("%s is left out: %s", stat.key, error)
            self._strange[stat.key] = stat
            return None
        is_new = stat.key not in self._heard
        # The bucket's clock and ours may differ: from the second time on it is ours alone.
        age = max(0.0, self._wall() - stat.modified) if is_new else 0.0
        return Heard(shown=shown, stat=stat, at=now - age)

    def _knows(self, key: str, stat: Stat) -> bool:
        heard = self._heard.get(key)
        return stat == self._strange.get(key) or (heard is not None and heard.stat == stat)

    def _is_there(self, heard: Heard) -> bool:
        return _is_slice(heard) and self._read_at - heard.at < ALIVE_SECONDS

    def _note(self, trouble: str | None) -> None:
        if trouble is not None and self.trouble is None:
            logger.error("the bucket cannot be read: %s", trouble)
        elif trouble is None and self.trouble is not None:
            logger.info("the bucket can be read again")
        self.trouble = trouble


def _is_slice(heard: Heard) -> bool:
    """Or else what remains of a model's slices."""
    return heard.stat.key.startswith(f"{FOLDER}/")
