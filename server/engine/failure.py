"""Why a video could not be made: the words that clients get as `error.code`."""

import enum


class Failure(enum.StrEnum):
    """Why a job failed: `error.code` of the video object."""

    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    OUT_OF_MEMORY = "out_of_memory"
    INVALID_REQUEST = "invalid_request"
    DISK_FULL = "disk_full"
    UPLOAD_LOST = "upload_lost"
    ADAPTER_LOST = "adapter_lost"
    BAD_NUMBERS = "bad_numbers"
    ENGINE_CRASHED = "engine_crashed"
    ENGINE_ERROR = "engine_error"


ENGINES_OWN = frozenset({Failure.BAD_NUMBERS, Failure.ENGINE_CRASHED, Failure.ENGINE_ERROR})
"""What says something about the engine. The others are what a request asked for, or the disk's."""


class EngineFailure(Exception):
    """The engine could not start, or could not make a video."""

    def __init__(self, code: Failure, message: str):
        super().__init__(message)
        self.code = code


class ProcessLost(Exception):
    """The engine ended because another process of the slice was lost; see `engine.lockstep`."""
