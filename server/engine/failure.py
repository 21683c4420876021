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
    ENGINE_CRASHED = "engine_crashed"
    ENGINE_ERROR = "engine_error"
