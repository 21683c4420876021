"""That a fleet's database and its bucket belong together: each knows the other by its id.

As `server.jobs.binding` does for a data folder: with a stranger, every file would be nobody's, or
every video gone.
"""

import json
import secrets

from server.files.job_files import JobFiles
from server.fleet.calls import FleetCalls
from server.fleet.store import FleetStore
from server.jobs.database import StoreError
from wan_tpu.storage.bucket import Bucket, ObjectMissing

MARK = "wan-tpu.json"
"""The bucket's object that says its id, and that of the database that knows its files."""


async def bind(store: FleetStore, calls: FleetCalls, bucket: Bucket, files: JobFiles) -> None:
    """Makes sure that a database and a bucket belong together; binds them where both are new.

    Raises:
        StoreError: they do not; says what to do.
        BucketError: the bucket cannot be used.
    """
    fresh = {"folder_id": secrets.token_hex(16), "database_id": store.database_id}
    try:
        mark = json.loads(await bucket.get(MARK))
    except ObjectMissing:
        if store.files_id is not None or await files.jobs_there():
            raise StoreError(_refusal(store, bucket)) from None
        # Of servers that start together one makes it.
        await bucket.put(MARK, json.dumps(fresh).encode())
        mark = json.loads(await bucket.get(MARK))
    except ValueError:
        raise StoreError(f"{MARK} in {bucket.name} is damaged; restore it from a backup") from None
    if mark.get("database_id") != store.database_id:
        raise StoreError(_refusal(store, bucket))
    if store.files_id is None:
        await calls.call(store.bind, mark["folder_id"])
    elif store.files_id != mark["folder_id"]:
        raise StoreError(_refusal(store, bucket))


def _refusal(store: FleetStore, bucket: Bucket) -> str:
    return (
        f"{bucket.name} and {store.name} do not belong together: each is to be used with the one "
        "that it was first used with; check WAN_TPU_FILES and WAN_TPU_DATABASE_URL. A new fleet "
        "takes an empty bucket, or an empty prefix of one, and an empty database"
    )
