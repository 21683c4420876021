"""What a client is told when the database, the disk or the bucket takes nothing."""

import contextlib
import logging
from collections.abc import Iterator

from server.errors import ApiError, retry_after
from server.jobs.database import OwnershipLost, StoreFull, StoreUnavailable
from wan_tpu.storage.bucket import BucketError
from wan_tpu.storage.disk import is_disk_full

logger = logging.getLogger(__name__)

DATABASE_RETRY_SECONDS = 5.0
"""When to come again to a server whose database is away: it is looked for every two seconds."""


BUCKET_RETRY_SECONDS = 5.0
"""When to come again to a server whose bucket does not answer."""


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Has a client told that the database or the bucket is away, and when to come again."""
    later = retry_after(DATABASE_RETRY_SECONDS)
    try:
        yield
    except StoreFull as error:
        logger.error("%s", error)
        words = "the disk of the server's database is full; deleting videos makes room"
        raise ApiError(503, "disk_full", words, headers=later) from error
    except OSError as error:
        if not is_disk_full(error):
            raise
        logger.error("an upload cannot be written: %s", error)
        words = "the server's disk is full; deleting videos makes room"
        raise ApiError(503, "disk_full", words, headers=later) from error
    except (StoreUnavailable, OwnershipLost) as error:
        logger.warning("a request is turned away: %s", error)
        words = "the server's database takes nothing now; come again"
        raise ApiError(503, "database_unavailable", words, headers=later) from error
    except BucketError as error:
        if is_disk_full(error):
            logger.error("a file cannot be written: %s", error)
            words = "the disk of the server's files is full; deleting videos makes room"
            raise ApiError(503, "disk_full", words, headers=later) from error
        logger.warning("a request is turned away: %s", error)
        words = "the store of the server's files does not answer now; come again"
        headers = retry_after(BUCKET_RETRY_SECONDS)
        raise ApiError(503, "files_unavailable", words, headers=headers) from error
