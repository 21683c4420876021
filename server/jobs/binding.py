"""That a data folder and a database belong together: each knows the other by its id.

With another database, an empty or a restored one, every file in the folder would look like
nobody's, and with another folder every video would be gone. So neither is used with a stranger,
unless nothing can be lost by it or the user says so.
"""

import dataclasses
import pathlib

from server.files.data_folder import DataFolder
from server.files.media import Media, shown
from server.jobs.database import StoreError
from server.jobs.job import Job, State
from server.jobs.store import Store


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """What a folder and a database do not have in common.

    Attributes:
        strangers: folders of jobs that the database does not name.
        missing: completed jobs that have no folder.
        num_common: folders of jobs that it names.
    """

    strangers: list[str]
    missing: list[str]
    num_common: int


def compare(media: Media, jobs: list[Job]) -> Differences:
    """Looks for what would be lost."""
    there = media.job_folders()
    named = {job.id for job in jobs}
    completed = {job.id for job in jobs if job.state == State.COMPLETED}
    return Differences(
        strangers=sorted(there - named),
        missing=sorted(completed - there),
        num_common=len(there & named),
    )


def check_binding(folder: DataFolder, store: Store, media: Media, jobs: list[Job]) -> None:
    """Makes sure that a folder and a database belong together; binds them where both are new.

    Raises:
        StoreError: they do not; says what to do.
        DataFolderError: the folder cannot be written.
    """
    mark = folder.mark
    if (store.folder_id, mark.database_id) == (mark.folder_id, store.database_id):
        return
    differences = compare(media, jobs)
    # Releases before this one wrote no ids; such a pair is known by the videos it has in common.
    are_old = store.folder_id is None and mark.database_id is None
    is_old_pair = store.folder_id is None and differences.num_common > 0
    loses_nothing = not differences.strangers and (not differences.missing or are_old)
    if not (loses_nothing or is_old_pair):
        raise StoreError(_refusal(folder.path, store, differences))
    bind(folder, store)


def bind(folder: DataFolder, store: Store) -> None:
    """Has a folder and a database know each other from now on."""
    folder.bind(store.database_id)
    store.bind(folder.mark.folder_id)


def _refusal(folder: pathlib.Path, store: Store, differences: Differences) -> str:
    words = [f"the folder {folder} and {store.name} do not belong together:"]
    if differences.strangers:
        words.append(
            f"the database does not know {len(differences.strangers)} videos that lie there "
            f"({shown(differences.strangers[:3])});"
        )
    if differences.missing:
        words.append(
            f"{len(differences.missing)} videos that it knows do not lie there "
            f"({shown(differences.missing[:3])});"
        )
    words.append(
        "check WAN_TPU_DATA_DIR and WAN_TPU_DATABASE_URL, or say `python -m server adopt` to use "
        "them together from now on: files that the database does not know go to the folder's trash "
        "then, and stay there for WAN_TPU_TRASH_SECONDS"
    )
    return " ".join(words)
