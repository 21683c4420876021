"""A repository of the Hugging Face hub: what is in it, and the files that are needed of it.

Files are in the hub's cache from then on. Before anything large is fetched it is known, and said,
how much that is and whether the disk has room for it. A hub that is busy is asked again.
"""

import email.utils
import glob
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from wan_tpu.errors import CheckpointError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

ATTEMPTS = 6
CONNECTION_ATTEMPTS = 3
"""A hub that does not answer at all is mostly no hub that is busy, but no network."""
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 120.0
LARGE_BYTES = 10**9
BUSY = (408, 429, 500, 502, 503, 504)


class _NoAnswerError(Exception):
    """The hub did not give what it was asked for; the reason is one line."""


class Repository:
    """A model's repository at one revision.

    Attributes:
        hub_id: `owner/name`.
        names: of its files, as paths with slashes; None when the hub cannot be asked, and what is
            in the cache has to do.
        unreachable: why it cannot be asked; else empty.
    """

    def __init__(self, source: str):
        """Asks the hub for the files' names and sizes.

        Args:
            source: `owner/name`, or `owner/name@revision` for a commit, branch or tag.

        Raises:
            CheckpointError: there is no such repository or revision, or it is gated.
        """
        self.hub_id, at, self._revision = source.partition("@")
        if at and not self._revision:
            raise CheckpointError(
                f"{source} names no revision after @, for example {self.hub_id}@main"
            )
        self._source = source
        self._sizes: dict[str, int] = {}
        self.unreachable = ""
        self.names: Collection[str] | None = self._list()

    def fetch(self, names: Collection[str], what: str) -> pathlib.Path:
        """The folder of the repository in the cache, with these files in it.

        Args:
            names: of files; those that are in the cache are not fetched again.
            what: the files in words, for the log.

        Raises:
            CheckpointError: they are not in the cache and cannot be had, or the disk is too small.
        """
        missing = [name for name in names if name in self._sizes]
        self._check_disk(sum(self._sizes[name] for name in missing), len(missing), what)
        patterns = [glob.escape(name) for name in names]
        try:
            folder = self._ask(
                lambda hub: hub.snapshot_download(
                    self.hub_id,
                    revision=self._revision or None,
                    allow_patterns=patterns,
                    local_files_only=self.names is None,
                )
            )
        except _NoAnswerError as error:
            reason = self.unreachable or str(error)
            raise CheckpointError(
                f"{self._source} is not in the cache and cannot be downloaded: {reason}"
            ) from None
        for name in missing:
            del self._sizes[name]
        return pathlib.Path(folder)

    def cached_folder(self) -> pathlib.Path:
        """The folder in the cache, with whatever is in it; for when the hub cannot be asked."""
        return self.fetch(["model_index.json"], "the index")

    def _list(self) -> Collection[str] | None:
        """Names of all files, and the sizes of those that are not in the cache."""
        import huggingface_hub

        def list_files(hub: Any) -> list[Any]:
            api = hub.HfApi()
            commit = api.repo_info(self.hub_id, revision=self._revision or "main").sha
            tree = api.list_repo_tree(self.hub_id, recursive=True, revision=commit)
            return [(commit, file) for file in tree if isinstance(file, hub.RepoFile)]

        try:
            files = self._ask(list_files, unreachable_is_final=self._is_cached())
        except _NoAnswerError as error:
            self.unreachable = str(error)
            return None
        for commit, file in files:
            cached = huggingface_hub.try_to_load_from_cache(self.hub_id, file.path, revision=commit)
            if not isinstance(cached, str):
                self._sizes[file.path] = file.size
        return [file.path for _, file in files]

    def _is_cached(self) -> bool:
        """Whether a model or an adapter of some revision is in the cache."""
        from huggingface_hub import constants

        folder = pathlib.Path(constants.HF_HUB_CACHE) / f"models--{self.hub_id.replace('/', '--')}"
        try:
            kept = ("*/model_index.json", "**/*.safetensors")
            return any(any((folder / "snapshots").glob(pattern)) for pattern in kept)
        except OSError:
            return False

    def _check_disk(self, num_bytes: int, num_files: int, what: str) -> None:
        """Says what is about to be fetched, and refuses what does not fit."""
        if not num_bytes:
            return
        from huggingface_hub import constants

        cache = pathlib.Path(constants.HF_HUB_CACHE).expanduser()
        existing = next(each for each in (cache, *cache.absolute().parents) if each.exists())
        free = shutil.disk_usage(existing).free
        if num_bytes > free:
            raise CheckpointError(
                f"{what} of {self.hub_id} need {_gb(num_bytes)} in {cache} and {_gb(free)} are "
                f"free there: {_gb(num_bytes - free)} are missing; HF_HOME names another place"
            )
        logger.log(
            # What takes minutes and much of a disk is said even where only warnings are.
            logging.WARNING if num_bytes >= LARGE_BYTES else logging.INFO,
            "downloading %s of %s: %d files, %s, to %s (%s free)",
            what,
            self._source,
            num_files,
            _gb(num_bytes),
            cache,
            _gb(free),
        )

    def _ask(self, question: Callable[[Any], Answer], unreachable_is_final: bool = False) -> Answer:
        """The hub's answer; what is wrong with the question becomes one sentence.

        Raises:
            CheckpointError: there is no such repository or revision, or it is gated.
            _NoAnswerError: the hub is busy, broken or not to be reached.
        """
        import huggingface_hub
        from huggingface_hub import errors

        try:
            return _ask_again(lambda: question(huggingface_hub), self.hub_id, unreachable_is_final)
        except errors.RevisionNotFoundError:
            raise CheckpointError(
                f"{self.hub_id} has no revision {self._revision!r}; expected a commit, branch or "
                "tag, such as main"
            ) from None
        except errors.GatedRepoError:
            raise CheckpointError(
                f"{self.hub_id} is gated: accept its terms and log in (`hf auth login`)"
            ) from None
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            raise CheckpointError(
                f"the hub has no model {self.hub_id!r}, and no folder is called so"
            ) from None
        except (errors.LocalEntryNotFoundError, errors.HTTPError, OSError) as error:
            raise _NoAnswerError(_first_line(error)) from None


def _ask_again(call: Callable[[], Answer], hub_id: str, unreachable_is_final: bool) -> Answer:
    """Calls until the hub answers, waiting as long as it asks for, or longer each time."""
    from huggingface_hub import errors

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except (errors.HTTPError, OSError) as error:
            reason, asked = _why_busy(error)
            attempts = ATTEMPTS
            if not reason:
                reason, asked = _why_unreachable(error), None
                attempts = 1 if unreachable_is_final else CONNECTION_ATTEMPTS
            wait = FIRST_WAIT_SECONDS * 2 ** (attempt - 1) if asked is None else asked
            if not reason or attempt >= attempts or wait > LONGEST_WAIT_SECONDS:
                raise
            logger.warning(
                "the hub %s when asked for %s; asking again in %g s (%d of %d)",
                reason,
                hub_id,
                wait,
                attempt,
                attempts - 1,
            )
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _why_busy(error: BaseException) -> tuple[str, float | None]:
    """What a busy hub said, and the seconds that it asks to wait; empty for any other error."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        if response is not None and response.status_code in BUSY:
            asked = _retry_after(response.headers.get("Retry-After"))
            return f"answered {response.status_code}", asked
    return "", None


def _why_unreachable(error: BaseException) -> str:
    """Empty where another attempt cannot help: nothing was asked, or the answer was final."""
    import httpx2

    for each in _chain(error):
        if isinstance(each, httpx2.ProxyError | httpx2.UnsupportedProtocol):
            return ""
        if isinstance(each, httpx2.TransportError):
            return f"could not be reached ({_first_line(each)})"
    return ""


def _chain(error: BaseException | None) -> list[BaseException]:
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _retry_after(value: str | None) -> float | None:
    """The header's seconds, or its date's distance from now."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
