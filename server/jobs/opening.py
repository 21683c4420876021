"""Opens the data folder and the database, and has them adopted or brought back a release."""

import contextlib
import pathlib
from collections.abc import Iterator

from server.files.data_folder import DataFolder, DataFolderError
from server.files.media import Media
from server.files.uploads import Uploads
from server.jobs.binding import bind
from server.jobs.store import Store
from server.settings import Settings


def adopt(settings: Settings) -> str:
    """Has a data folder and a database belong together from now on; returns what to say of it.

    Raises:
        DataFolderError: the folder cannot be used.
        StoreError: the database cannot be used.
    """
    with contextlib.ExitStack() as opened:
        folder, *_, store = open_data(settings, opened, adopts=True)
        bind(folder, store)
        return f"the folder {folder.path} and {store.name} belong together from now on"


def downgrade(settings: Settings) -> str:
    """Brings the database to the schema of the release before this one; returns what to say.

    Raises:
        DataFolderError: the folder cannot be used.
        StoreError: the database cannot be used.
    """
    with contextlib.ExitStack() as opened:
        *_, store = open_data(settings, opened)
        store.downgrade()
        return f"{store.name} is now one of the release before this one"


def open_data(
    settings: Settings, opened: contextlib.ExitStack, *, adopts: bool = False
) -> tuple[DataFolder, Media, Uploads, Store]:
    """The folder first: its lock keeps a second server from so much as looking at the database."""
    folder = DataFolder(settings.data_dir, adopt=adopts)
    opened.callback(folder.close)
    with usable(settings.data_dir):
        media = Media(
            settings.data_dir,
            min_free_bytes=settings.min_free_bytes,
            trash_seconds=settings.trash_seconds,
        )
        uploads = Uploads(settings.data_dir)
    store = Store(settings.database, timeout_seconds=settings.database_timeout_seconds)
    opened.callback(store.close)
    return folder, media, uploads, store


@contextlib.contextmanager
def usable(data_dir: pathlib.Path) -> Iterator[None]:
    """Says in one line which part of the data folder cannot be used."""
    try:
        yield
    except OSError as error:
        raise DataFolderError(
            f"cannot use {error.filename or data_dir} of the data folder: {error.strerror}"
        ) from error
