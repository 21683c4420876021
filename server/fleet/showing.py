"""What a slice says of itself in the bucket, where every server of the API reads it.

An object for each slice, written anew at every change and every 20 s, and removed at an orderly
end: a slice is there as long as its object is young. What it says is written under the name of its
model, too, and stays: a server of the API that starts while no slice is there knows the model by
it. It says nothing of any job.
"""

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter

from server.slices import SliceState
from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.storage.bucket import Bucket, BucketError

logger = logging.getLogger(__name__)

FOLDER, MODELS = "slices", "models"
EVERY_SECONDS = 20.0
ALIVE_SECONDS = 90.0
"""A slice whose object is older than this is gone: it missed four turns."""

LAST_WORD_SECONDS = 3.0

_DESCRIPTION = TypeAdapter(ModelDescription)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A slice, as it shows itself.

    Attributes:
        name: of the slice.
        model: as clients call it.
        description: of the model; without the folder and the files that only its hosts have.
        warm_sizes: `WxH` that are compiled at start.
        state: whether it takes jobs (`ready`), makes one, gets ready, or cannot.
        words: what it is at or what is wrong; empty where nothing is to be said.
        since: unix seconds, of the state.
        engine: layout, attention and devices, as the engine describes them.
        processes: that share the model.
    """

    name: str
    model: str
    description: ModelDescription
    warm_sizes: tuple[str, ...]
    state: SliceState
    words: str
    since: float
    engine: Mapping[str, Any]
    processes: int

    @property
    def key(self) -> str:
        """Of its object."""
        return f"{FOLDER}/{self.name}.json"

    @property
    def model_key(self) -> str:
        """Of the object that says which model it is."""
        return f"{MODELS}/{quote(self.model, safe='')}.json"

    def to_json(self) -> bytes:
        """As the object has it."""
        description = dataclasses.replace(self.description, folder=None, files={})
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["description"] = _DESCRIPTION.dump_python(description, mode="json")
        return json.dumps(fields).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Shown":
        """Reads an object; fields that a later release adds are passed over.

        Raises:
            ValueError: it is none, or of a release that says it otherwise.
        """
        try:
            given = json.loads(text)
            fields = {field.name: given[field.name] for field in dataclasses.fields(cls)}
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no slice: {error}") from None
        description = _DESCRIPTION.validate_python(fields.pop("description"))
        warm_sizes = tuple(fields.pop("warm_sizes"))
        return cls(**fields, description=description, warm_sizes=warm_sizes)


class Showing:
    """Keeps a slice's object as the slice is.

    Attributes:
        trouble: why it cannot be written, as a sentence; None while it can.
    """

    def __init__(self, bucket: Bucket, shown: Shown):
        self.trouble: str | None = None
        self._bucket = bucket
        self._shown = shown
        self._changed = asyncio.Event()

    def update(self, state: SliceState, words: str, engine: Mapping[str, Any]) -> None:
        """Says how the slice is now."""
        now = self._shown
        if (state, words, engine) == (now.state, now.words, now.engine):
            return
        since = now.since if state == now.state else time.time()
        self._shown = dataclasses.replace(now, state=state, words=words, since=since, engine=engine)
        self._changed.set()

    async def run(self) -> None:
        """Writes for ever."""
        while True:
            self._changed.clear()
            try:
                for key in (self._shown.key, self._shown.model_key):
                    await self._bucket.put(key, self._shown.to_json(), create=False)
                self.trouble = None
            except BucketError as error:
                if self.trouble is None:
                    logger.warning("this slice cannot be shown: %s", error)
                self.trouble = str(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), EVERY_SECONDS)

    async def remove(self) -> None:
        """The slice ends in good order. One that cannot say so is forgotten all the same."""
        with contextlib.suppress(BucketError, TimeoutError):
            async with asyncio.timeout(LAST_WORD_SECONDS):
                await self._bucket.delete(self._shown.key)
