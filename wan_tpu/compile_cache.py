"""Compiled programs on the disk, so that nothing that happens to the disk harms more than time.

JAX's own file cache writes in place and on purpose never replaces a file that is there (jax-ml/jax
pull request 21394): an entry cut short by a full disk or a crash is warned about and compiled anew
at every start, for ever. Here an entry carries its digest and appears whole or not at all; one that
is damaged counts as not there, and the next compilation replaces it.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import secrets
import time

import jax
from jax._src import compilation_cache
from jax._src.compilation_cache_interface import CacheInterface

logger = logging.getLogger(__name__)

SUFFIX = "-cache"
PARTIAL_SUFFIX = ".part"
MAGIC = b"wan-tpu compiled 1\n"
"""Opens an entry; then 32 bytes of SHA-256, then what JAX gave."""

ONE_HOUR = 3600.0
"""A file that was begun so long ago and has no name yet belongs to a process that died."""


class CompileCache(CacheInterface):
    """One file per program; takes and gives bytes, never raises. Processes may share the folder."""

    def __init__(self, folder: pathlib.Path):
        """The folder is there; whether it can be read and written shows with use."""
        self._path = folder  # JAX's name for it
        self._said: set[str] = set()
        self._remove_abandoned()

    def get(self, key: str) -> bytes | None:
        """The program kept under a key; None if there is none that is whole."""
        path = self._entry(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say_once("cannot read compiled programs in %s (%s)", error)
            return None
        head = len(MAGIC) + hashlib.sha256().digest_size
        kept = content[head:]
        if content[:head] == MAGIC + hashlib.sha256(kept).digest():
            return kept
        self._say_once("compiled programs in %s are damaged (%s); they are made again", path.name)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program, in place of whatever was there."""
        partial = self._path / f".{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
        try:
            try:
                with partial.open("wb") as file:
                    file.write(MAGIC + hashlib.sha256(value).digest())
                    file.write(value)
                partial.replace(self._entry(key))
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            self._say_once("cannot keep compiled programs in %s (%s); going on without", error)

    def _entry(self, key: str) -> pathlib.Path:
        return self._path / f"{key}{SUFFIX}"

    def _say_once(self, message: str, detail: object) -> None:
        """A warning of each kind once: a full disk would say it for every program."""
        if message not in self._said:
            self._said.add(message)
            reason = detail.strerror if isinstance(detail, OSError) else detail
            logger.warning(message, self._path, reason)

    def _remove_abandoned(self) -> None:
        with contextlib.suppress(OSError):  # then it takes some room, and no more
            for partial in self._path.glob(f".*{PARTIAL_SUFFIX}"):
                if time.time() - partial.stat().st_mtime > ONE_HOUR:
                    partial.unlink()


def use_folder(folder: pathlib.Path) -> None:
    """Lets JAX keep compiled programs in a folder; where it cannot be had, says so and goes on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning(
            "cannot keep compiled programs in %s (%s); going on without", folder, error.strerror
        )
        return
    # JAX has no public way to bring a cache of one's own.
    compilation_cache.get_file_cache = lambda path: (CompileCache(pathlib.Path(path)), path)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX's own thresholds skip most programs.
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # Without this, XLA's GPU caches put the folder into each key.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
