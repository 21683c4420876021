"""What the engine's process says of an error that ended a video."""

from server.engine.failure import Failure
from server.engine.seam import Engine
from server.files.uploads import UploadLost
from wan_tpu.errors import AdapterError
from wan_tpu.storage.disk import is_disk_full


def code_of(engine: Engine, error: Exception) -> Failure:
    """Which kind of failure it is: some are the same for every engine."""
    if isinstance(error, UploadLost):
        return Failure.UPLOAD_LOST
    if is_disk_full(error):
        return Failure.DISK_FULL
    return engine.failure_of(error)


def words_for(error: Exception, code: Failure) -> str:
    """What the client is told: no paths, no insides."""
    match code:
        case Failure.INVALID_REQUEST | Failure.BAD_NUMBERS | Failure.UPLOAD_LOST:
            return str(error)
        case Failure.ADAPTER_LOST:
            words = "the file of an adapter cannot be read any more"
            return str(error) if isinstance(error, AdapterError) else words
        case Failure.OUT_OF_MEMORY:
            return "the accelerator ran out of memory; ask for a smaller size or fewer frames"
        case Failure.DISK_FULL:
            return "the server's disk is full"
        case _:
            return f"the engine failed with {type(error).__name__}; the server's log says more"
