"""The profiles of a server: asked of the engine one at a time, a few of them kept as archives.

They lie in `profiles/` of the data folder, `profile_....tar.gz` each; a folder of that name is one
that was being recorded when the server ended.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import secrets
import shutil
import tarfile
import time
from collections.abc import Callable

from server.engine.client import EngineClient
from server.engine.failure import EngineFailure, ProcessLost
from server.errors import DO_NOT_RETRY, ApiError, retry_after
from server.files.data_folder import make_private

logger = logging.getLogger(__name__)

PROFILE = re.compile("profile_[0-9a-f]{16}")
SUFFIX = ".tar.gz"

MAX_KEPT, MAX_KEPT_BYTES = 16, 2**31
"""Of all that are kept. Nothing is removed by itself: the operator deletes."""

MAX_BYTES = 2**30
"""Of one, before it is packed."""

LATER_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRecord:
    """One profile.

    Attributes:
        status: in_progress, completed or failed.
        created_at: unix seconds.
        num_bytes: of the archive; None while there is none.
        problem: why it failed.
    """

    id: str
    status: str
    created_at: int
    num_bytes: int | None = None
    problem: str | None = None


class Profiles:
    """What was recorded, and what is."""

    def __init__(self, data_dir: pathlib.Path, engine: EngineClient, has_room: Callable[[], bool]):
        """Makes the folder, and removes what an earlier server was recording at its end.

        Args:
            data_dir: of the server, which is its owner.
            engine: that is asked.
            has_room: whether the disk takes more.
        """
        self._folder = data_dir.resolve() / "profiles"
        self._engine = engine
        self._has_room = has_room
        self._others: dict[str, ProfileRecord] = {}
        """What has no archive: the running one, and those that failed."""
        self._task: asyncio.Task[None] | None = None
        self._folder.mkdir(mode=0o700, exist_ok=True)
        make_private(self._folder)
        for path in self._folder.iterdir():
            name = path.name.removesuffix(f"{SUFFIX}.part")
            if PROFILE.fullmatch(name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif PROFILE.fullmatch(name):
                path.unlink(missing_ok=True)

    def list(self) -> list[ProfileRecord]:
        """All of them, newest first."""
        found = dict(self._others)
        for path in self._folder.glob(f"profile_*{SUFFIX}"):
            profile_id = path.name.removesuffix(SUFFIX)
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if PROFILE.fullmatch(profile_id):
                    found[profile_id] = ProfileRecord(
                        id=profile_id,
                        status="completed",
                        created_at=int(status.st_mtime),
                        num_bytes=status.st_size,
                    )
        return sorted(found.values(), key=lambda record: record.created_at, reverse=True)

    def find(self, profile_id: str) -> ProfileRecord:
        """One of them.

        Raises:
            ApiError: there is none of this id.
        """
        for record in self.list():
            if record.id == profile_id:
                return record
        message = f"there is no profile {profile_id[:80]!r}"
        raise ApiError(404, "not_found", message, param="profile_id")

    def archive(self, profile_id: str) -> pathlib.Path:
        """The file of a completed one.

        Raises:
            ApiError: there is none of this id, or it has no file.
        """
        record = self.find(profile_id)
        if record.status != "completed":
            message = f"{profile_id} is {record.status}" + (
                f": {record.problem}" if record.problem else "; its file is there once it completed"
            )
            raise ApiError(409, "profile_not_ready", message, headers=DO_NOT_RETRY)
        return self._folder / f"{profile_id}{SUFFIX}"

    def begin(self, *, steps: int | None, seconds: float | None) -> ProfileRecord:
        """Asks the engine for a profile.

        Args:
            steps: denoising steps of the job that runs, or else of the next one.
            seconds: from now on, where there are no steps.

        Raises:
            ApiError: one is being recorded, as many are kept as may, or the disk is full.
        """
        if self._task is not None and not self._task.done():
            message = "a profile is being recorded; wait for it, or delete it"
            raise ApiError(409, "profile_running", message, headers=DO_NOT_RETRY)
        kept = [record.num_bytes for record in self.list() if record.num_bytes is not None]
        if len(kept) >= MAX_KEPT or sum(kept) >= MAX_KEPT_BYTES:
            message = f"{len(kept)} profiles of {sum(kept)} bytes are kept; delete some"
            later = retry_after(LATER_SECONDS)
            raise ApiError(429, "quota_exceeded", message, headers=later)
        if not self._has_room():
            later = retry_after(LATER_SECONDS)
            raise ApiError(503, "disk_full", "the server's disk is nearly full", headers=later)
        if not self._engine.is_ready:
            later = retry_after(LATER_SECONDS)
            raise ApiError(503, "not_ready", "the engine is not ready: see /readyz", headers=later)
        record = ProfileRecord(
            id=f"profile_{secrets.token_hex(8)}", status="in_progress", created_at=int(time.time())
        )
        while len(self._others) >= MAX_KEPT:  # failures, oldest first
            del self._others[next(iter(self._others))]
        self._others[record.id] = record
        work = self._record(record, steps, seconds)
        self._task = asyncio.create_task(work, name=record.id)
        return record

    async def delete(self, profile_id: str) -> None:
        """Forgets a profile and removes its file; one that is being recorded is stopped.

        Raises:
            ApiError: there is none of this id.
        """
        record = self.find(profile_id)
        if record.status == "in_progress" and self._task is not None:
            await self._engine.cancel(profile_id)
            await asyncio.wait({self._task})
        self._others.pop(profile_id, None)
        (self._folder / f"{profile_id}{SUFFIX}").unlink(missing_ok=True)

    async def close(self) -> None:
        """Gives up what is being recorded."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _record(
        self, record: ProfileRecord, steps: int | None, seconds: float | None
    ) -> None:
        """Waits for the engine, packs what it wrote, and notes what became of it."""
        folder = self._folder / record.id
        problem: str | None = None
        try:
            problem = await self._engine.record(record.id, folder, steps=steps, seconds=seconds)
            if problem is None:
                problem = await asyncio.to_thread(self._pack, folder)
        except (EngineFailure, ProcessLost) as error:
            problem = str(error) or "another process of the slice was lost"
        except OSError as error:
            problem = f"the profile cannot be written: {error.strerror or error}"
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if problem is None:
            self._others.pop(record.id, None)
            logger.info("%s is complete", record.id)
        elif record.id in self._others:
            logger.warning("%s failed: %s", record.id, problem)
            self._others[record.id] = dataclasses.replace(record, status="failed", problem=problem)

    def _pack(self, folder: pathlib.Path) -> str | None:
        """Makes the archive, whole or not at all; returns why there is none."""
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > MAX_BYTES:
            return f"it has {size} bytes, more than {MAX_BYTES}; ask for fewer steps"
        aside = folder.with_name(f"{folder.name}{SUFFIX}.part")
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                with tarfile.open(fileobj=file, mode="w:gz", compresslevel=3) as archive:
                    archive.add(folder, arcname=folder.name)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, folder.with_name(f"{folder.name}{SUFFIX}"))
        finally:
            aside.unlink(missing_ok=True)
        return None
