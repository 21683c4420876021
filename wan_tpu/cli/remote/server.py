"""One server over HTTP: asked again while it is busy or away, and its errors in one line.

What is used is the protocol's own: create, retrieve, list, download, delete. Only `cancel` and
the slices are wan-tpu's. httpx is loaded with the first server, so that `--help` does without it.
"""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from wan_tpu import __version__
from wan_tpu.cli.progress import say
from wan_tpu.cli.remote.answers import (
    AwayError,
    NotThereError,
    RemoteError,
    is_worth_another_try,
    plain,
    read_json,
    refusal,
    seconds_to_wait,
    words_of,
)
from wan_tpu.cli.remote.video import RemoteVideo
from wan_tpu.errors import InputError

if TYPE_CHECKING:
    import httpx2

VIDEOS, MODELS, SLICES = "/v1/videos", "/v1/models", "/v1/slices"
PAGE = 100

CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
"""A clip is decoded before the job is taken, which may last."""

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 10.0
POLL_SECONDS, LONGEST_POLL_SECONDS = 1.0, 30.0
"""How often to ask how far a video is, where the server says nothing of it."""


class RemoteServer:
    """A server, by its address.

    Attributes:
        address: without a slash at its end.
        poll_seconds: how long to wait before asking for the same video again.
    """

    def __init__(self, address: str, *, key: str | None, patience_seconds: float):
        """Opens no connection yet.

        Args:
            address: `http://host:port`, perhaps with a path.
            key: for `Authorization: Bearer`; None where none is asked for.
            patience_seconds: how long it may be away once it has answered, or be busy.

        Raises:
            InputError: the address is none.
        """
        import httpx2

        self._http = httpx2
        self.address = address
        self.poll_seconds = POLL_SECONDS
        headers = {"User-Agent": f"wan-tpu/{__version__}", "Accept": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        try:
            self._client = httpx2.Client(
                base_url=address,
                headers=headers,
                timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise InputError(f"the server's address cannot be used: {error}") from None
        self._patience = patience_seconds
        self._was_there = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    def create(
        self, fields: Mapping[str, Any], files: Mapping[str, bytes], *, key: str
    ) -> list[RemoteVideo]:
        """Asks for a video, or several; a lost answer is asked for again and makes no other job.

        Args:
            fields: of the request, by the names of the API.
            files: pictures and clips, by the field that takes them.
            key: `Idempotency-Key`: of this job and no other.

        Returns:
            The video, or all that the server says to make.

        Raises:
            InputError: the server does not take the request.
            RemoteError: it cannot be reached, or does not let us in.
        """
        self._json("GET", VIDEOS, params={"limit": 1})  # before a large clip is sent to nobody
        form: dict[str, Any] = {name: (None, str(value)) for name, value in fields.items()}
        form |= {name: (name, data) for name, data in files.items()}
        first = self._json("POST", VIDEOS, files=form, headers={"Idempotency-Key": key})
        every = first.get("videos")
        return [RemoteVideo.read(each) for each in (every if isinstance(every, list) else [first])]

    def models(self) -> list[dict[str, Any]]:
        """What the server has, as it says it. Raises as `create`."""
        return self._list(MODELS, "models")

    def slices(self) -> list[dict[str, Any]]:
        """The slices that are there, as they say it.

        Raises:
            RemoteError: the server has its own slice, and no others; or as of `create`.
        """
        try:
            return self._list(SLICES, "slices")
        except NotThereError:
            message = f"{self.address} has its own slice; only a fleet's server lists slices"
            raise RemoteError(message) from None

    def _list(self, path: str, what: str) -> list[dict[str, Any]]:
        found = self._json("GET", path).get("data")
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise RemoteError(f"{self.address} answers {path} with no list of {what}")
        return found

    def retrieve(self, video_id: str) -> RemoteVideo:
        """How far a video is.

        Raises:
            NotThereError: there is none of this id.
            RemoteError: as of `create`.
        """
        return RemoteVideo.read(self._json("GET", f"{VIDEOS}/{video_id}"))

    def cancel(self, video_id: str) -> RemoteVideo:
        """Ends a job that waits or runs. Raises as `retrieve`, and where it has ended already."""
        return RemoteVideo.read(self._json("POST", f"{VIDEOS}/{video_id}/cancel"))

    def delete(self, video_id: str) -> None:
        """Ends a job, forgets it and removes its files. Raises as `retrieve`."""
        self._json("DELETE", f"{VIDEOS}/{video_id}")

    def videos(self) -> Iterator[RemoteVideo]:
        """All that the key sees, newest first, page by page. Raises as `create`."""
        after: dict[str, str] = {}
        while True:
            page = self._json("GET", VIDEOS, params={"limit": PAGE, "order": "desc", **after})
            entries = page.get("data")
            if not isinstance(entries, list):
                raise RemoteError(f"{self.address} answers {VIDEOS} with no list of videos")
            found = [RemoteVideo.read(each) for each in entries]
            yield from found
            if not (found and page.get("has_more")):
                return
            after = {"after": found[-1].id}

    @contextlib.contextmanager
    def content(
        self, video_id: str, variant: str, headers: Mapping[str, str]
    ) -> Iterator["httpx2.Response"]:
        """A file of a video, as it comes; it is asked for once.

        Raises:
            NotThereError, RemoteError: the server does not send it.
            httpx2.TransportError: the connection is lost, before or in the middle.
        """
        params = {} if variant == "video" else {"variant": variant}
        path = f"{VIDEOS}/{video_id}/content"
        with self._client.stream(
            "GET",
            path,
            params=params,
            headers=dict(headers),
            follow_redirects=True,  # to where a fleet's files lie; the key does not go there
        ) as response:
            if not response.is_success:
                response.read()
                raise self._refusal(path, response)
            yield response

    def asking_again(self) -> "Patience":
        """For one question that is asked until it is answered."""
        return Patience(self.address, self._patience)

    def wait_for(self, patience: "Patience", error: "httpx2.TransportError") -> None:
        """Waits before a lost connection is tried anew.

        Raises:
            RemoteError: it has taken too long, or nobody was there from the beginning.
        """
        if isinstance(error, self._http.TimeoutException):
            words = "no answer in time"
        else:
            words = re.sub(r"^\[Errno -?\d+\] ", "", plain(error)) or type(error).__name__
        if not self._was_there:
            raise RemoteError(f"{self.address} cannot be reached: {words}") from None
        patience.wait(words)

    def _json(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """The object that a request is answered with, asked for until there is an answer."""
        response = self._ask(method, path, **arguments)
        milliseconds = response.headers.get("openai-poll-after-ms", "")
        if milliseconds.isascii() and milliseconds.isdigit():
            self.poll_seconds = min(int(milliseconds[:9]) / 1000, LONGEST_POLL_SECONDS)
        data = read_json(response.content)
        if not isinstance(data, dict):
            raise RemoteError(
                f"{self.address} answers {path} with something else than JSON: it is no service of "
                "videos"
            )
        return data

    def _ask(self, method: str, path: str, **arguments: Any) -> "httpx2.Response":
        patience = self.asking_again()
        while True:
            try:
                response = self._client.request(method, path, **arguments)
            except self._http.TransportError as error:
                self.wait_for(patience, error)
                continue
            self._was_there = True
            if response.is_success:
                patience.over()
                return response
            if not is_worth_another_try(response.status_code, response.headers, response.content):
                raise self._refusal(path, response)
            message = words_of(read_json(response.content)) or f"status {response.status_code}"
            patience.wait(message, seconds_to_wait(response.headers))

    def _refusal(self, path: str, response: "httpx2.Response") -> Exception:
        return refusal(self.address, path, response.status_code, response.headers, response.content)


class Patience:
    """Waits between two tries, longer from try to try, and says so once."""

    def __init__(self, address: str, seconds: float):
        """Counts from the first time that it waits.

        Args:
            address: of the server.
            seconds: how long it may go on.
        """
        self._seconds = seconds
        self._address = address
        self._since: float | None = None
        self._next = FIRST_WAIT_SECONDS
        self._said = ""

    def wait(self, problem: str, asked: float | None = None) -> None:
        """Waits before the next try.

        Args:
            problem: why this one did not do.
            asked: seconds, where the server has said when to come again.

        Raises:
            AwayError: it has taken too long.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        left = self._since + self._seconds - now
        if left <= 0:
            raise AwayError(f"{self._address} did not answer for {self._seconds:.0f} s: {problem}")
        if problem != self._said:
            say(f"{self._address}: {problem}; asks again, for up to {left:.0f} s")
            self._said = problem
        time.sleep(min(left, self._next if asked is None else asked))
        self._next = min(2 * self._next, LONGEST_WAIT_SECONDS)

    def over(self) -> None:
        """There is an answer."""
        if self._since is not None:
            say(f"{self._address} answers again")
            self._since, self._said, self._next = None, "", FIRST_WAIT_SECONDS
