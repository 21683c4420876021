"""The slices of a fleet, as the routes see them; `server.fleet` knows them, one slice has none."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol

from wan_tpu.checkpoints.models import ModelDescription

SliceState = Literal["loading", "ready", "busy", "broken"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShownSlice:
    """A slice as it said of itself a moment ago; never what it makes, or for whom.

    Attributes:
        name: of the slice.
        model: that it serves, as clients call it.
        state: what it is at.
        words: more of that, for people: what is loaded, or what is broken.
        since: unix seconds at which the state began.
        layout: its split over devices; None before the engine is ready.
    """

    name: str
    model: str
    state: SliceState
    words: str
    since: float
    layout: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FleetModel:
    """A model that slices serve.

    Attributes:
        description: without files.
        warm: (width, height, frames) that the slices compile at start.
    """

    description: ModelDescription
    warm: tuple[tuple[int, int, int], ...]


class Slices(Protocol):
    """What is known of the slices."""

    def models(self) -> Mapping[str, FleetModel]:
        """The models that are served, by name; of each the same object until it changes."""
        ...

    def shown(self) -> list[ShownSlice]:
        """The slices that are there, by name."""
        ...
