"""The folder of adapters as the service has it: what requests may name, what is wrong, what is new.

No JAX: of files the headers are read. The engine looks for itself when a job's turn comes.
"""

import asyncio
import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import AsyncIterator, Mapping, Sequence

from server.errors import ApiError
from server.http.blame import refused
from wan_tpu.adapters.account import ModelShapes
from wan_tpu.adapters.choice import EXPERTS
from wan_tpu.adapters.experts import expert_of_file
from wan_tpu.adapters.known_shapes import transformer_shapes
from wan_tpu.adapters.library import AdapterLibrary, Entry
from wan_tpu.adapters.styles import AdapterFile, read_adapter
from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.errors import CheckpointError, InputError
from wan_tpu.family import TRANSFORMER

logger = logging.getLogger(__name__)

WATCH_SECONDS = 2.0
SHOWN_CHARACTERS = 500
TRIGGERS = ("modelspec.trigger_phrase", "trigger_phrase", "trigger_words", "trigger_word")
DESCRIPTIONS = ("modelspec.description", "description")
"""Where files say it, of those that say it at all."""

_WORDS = {component: word for word, component in EXPERTS.items()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An adapter as clients see it.

    Attributes:
        name: as requests say it.
        summary: rank, how much it changes, style and size.
        description: what the file says of itself; None where it says nothing.
        trigger: words that a prompt needs for it, where the file says them.
        expert: `high` or `low`, of a model of two, where the file is for one of them.
        fault: why it cannot be used; None for one that can.
    """

    name: str
    summary: str = ""
    description: str | None = None
    trigger: str | None = None
    expert: str | None = None
    fault: str | None = None


class ServedAdapters:
    """The adapters that requests may name; from any thread."""

    def __init__(self, folder: pathlib.Path | None, model: ModelDescription):
        """Reads nothing yet.

        Args:
            folder: None for none.
            model: that they are for.

        Raises:
            InputError: there is no such folder.
        """
        self._experts = model.kind.experts
        self._library = None
        self._listed: dict[str, tuple[Entry, Listed]] = {}
        self._said: dict[str, str | None] = {}
        if folder is None:
            return
        shapes = ModelShapes(
            name=model.name,
            shapes=transformer_shapes(model.configs[TRANSFORMER]),
            num_experts=len(self._experts),
        )
        try:
            self._library = AdapterLibrary(folder, shapes)
        except InputError as error:
            raise InputError(f"WAN_TPU_ADAPTERS={folder}: {error}") from None

    def look(self) -> list[Listed]:
        """What is in the folder now, by name; says in the log what is new there."""
        if self._library is None:
            return []
        entries = self._library.look()
        listed = {entry.name: (entry, self._list(entry)) for entry in entries}
        self._listed = listed
        self._tell({name: each.fault for name, (_, each) in listed.items()})
        return [each for _, each in listed.values()]

    def check(self, texts: Sequence[str]) -> set[str]:
        """Refuses adapters that are not there, or not for this model.

        Args:
            texts: each `NAME:STRENGTH[@EXPERT]`.

        Returns:
            The transformers that something is added to, as far as names and headers tell.

        Raises:
            ApiError: names the field `lora`.
        """
        if not texts:
            return set()
        if self._library is None:
            message = "lora names an adapter, and this server has none; leave it out"
            raise ApiError(400, "invalid_value", message, param="lora")
        every, given = set(self._experts), set()
        listed = {each.name: each for each in self.look()}
        try:
            for text in texts:
                choice = self._library.choose(text)
                name = pathlib.Path(choice.path).name
                expert = choice.expert or (listed[name].expert if name in listed else None)
                given |= every if expert is None else {EXPERTS[expert]} & every
                if choice.expert is not None and len(self._experts) < 2:
                    raise InputError(
                        f"lora names the expert {choice.expert}, of a model that has two, and this "
                        "one has one; leave it out"
                    )
        except InputError as error:
            raise refused(error, otherwise="lora") from None
        return given

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Looks now and then until the block is left, so that the log has what happens there."""
        if self._library is None:
            yield
            return
        watch = asyncio.create_task(self._watch(), name="adapters")
        try:
            yield
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch

    async def _watch(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.look)
            except Exception:
                logger.exception("looking at the adapters failed and goes on")
            await asyncio.sleep(WATCH_SECONDS)

    def _tell(self, faults: Mapping[str, str | None]) -> None:
        """Writes what has changed since the last time."""
        before, self._said = self._said, dict(faults)
        for name, fault in faults.items():
            if name in before and before[name] == fault:
                continue
            if fault is None:
                logger.info("the adapter %s can be used", name)
            else:
                logger.warning("the adapter %s cannot be used: %s", name, fault)
        for name in before.keys() - faults.keys():
            logger.info("the adapter %s is gone", name)

    def _list(self, entry: Entry) -> Listed:
        known, listed = self._listed.get(entry.name, (None, None))
        if known is entry and listed is not None:
            return listed
        if entry.fault is not None:
            return Listed(name=entry.name, fault=entry.fault)
        try:
            files = [read_adapter(file, with_numbers=False) for file in entry.files]
        except CheckpointError as error:  # it has changed since
            return Listed(name=entry.name, fault=f"{entry.name} cannot be read: {error}")
        return Listed(
            name=entry.name,
            summary=entry.description,
            description=_said_by(files, DESCRIPTIONS),
            trigger=_said_by(files, TRIGGERS),
            expert=self._expert_of(files),
        )

    def _expert_of(self, files: Sequence[AdapterFile]) -> str | None:
        """The one of two that all its files are for."""
        if len(self._experts) < 2:
            return None
        found = set()
        for file in files:
            by_file = expert_of_file(file)[0]
            found |= {by_file if keys is None else keys for keys in file.adapters}
        return _WORDS.get(found.pop() or "") if len(found) == 1 else None


def _said_by(files: Sequence[AdapterFile], keys: Sequence[str]) -> str | None:
    """The first of some texts that a file's header has."""
    for file in files:
        for key in keys:
            text = " ".join(str(file.header.get(key) or "").split())
            if text:
                return text[:SHOWN_CHARACTERS]
    return None
