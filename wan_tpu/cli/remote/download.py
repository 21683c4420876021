"""Brings a file of a video here: all of it and as the server has it, or nothing."""

import hashlib
import os
import pathlib
import re
from typing import TYPE_CHECKING, BinaryIO

from wan_tpu.cli.progress import ProgressBars
from wan_tpu.cli.remote.answers import RemoteError
from wan_tpu.cli.remote.server import RemoteServer
from wan_tpu.cli.remote.video import RemoteVideo
from wan_tpu.pipeline.progress import Progress
from wan_tpu.pipeline.whole_file import aside_of, publish, reporting

if TYPE_CHECKING:
    import httpx2

VIDEO = "video"
SUFFIXES = {VIDEO: (".mp4",), "thumbnail": (".webp",), "spritesheet": (".jpg", ".jpeg")}
"""Of the files of a video, by variant; the first is written where none is named."""


def download(
    server: RemoteServer,
    video: RemoteVideo,
    path: pathlib.Path,
    bars: ProgressBars,
    *,
    variant: str = VIDEO,
) -> None:
    """Writes a file of a completed video; what arrived before a connection broke is kept.

    Args:
        server: that has it.
        video: whose file it is.
        path: replaced once the file is complete, not before.
        bars: show how much has come.
        variant: which file.

    Raises:
        InputError, RemoteError: the server does not send it, or what came is not what it has.
        OutputError: it cannot be written.
    """
    target = pathlib.Path(os.path.realpath(path))
    aside = aside_of(target)
    with reporting(path):
        try:
            with aside.open("w+b") as file:
                _Transfer(server, video.id, variant, file, bars).run()
                if not file.tell():
                    raise RemoteError(f"the server sent an empty file for {video.id}")
            _check(aside, video, variant)
            publish(aside, target)
        finally:
            aside.unlink(missing_ok=True)


class _Transfer:
    """One file on its way, over as many connections as it takes."""

    def __init__(
        self,
        server: RemoteServer,
        video_id: str,
        variant: str,
        file: BinaryIO,
        bars: ProgressBars,
    ):
        self._server, self._video_id, self._variant = server, video_id, variant
        self._file, self._bars = file, bars
        self._tag = ""
        """What names these bytes: a file that has changed meanwhile is not put behind them."""

    def run(self) -> None:
        """Until all is there."""
        import httpx2

        patience = self._server.asking_again()
        while True:
            before = self._file.tell()
            headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
            if before and self._tag:
                headers |= {"Range": f"bytes={before}-", "If-Range": self._tag}
            try:
                with self._server.content(self._video_id, self._variant, headers) as response:
                    self._receive(response)
                return
            except httpx2.TransportError as error:
                if self._file.tell() > before:
                    patience.over()
                self._server.wait_for(patience, error)

    def _receive(self, response: "httpx2.Response") -> None:
        """Appends an answer, or begins anew with one that is the whole file."""
        range_of = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+)", response.headers.get("content-range", "").strip()
        )
        if range_of is None or int(range_of[1]) != self._file.tell():
            if response.status_code == 206:
                raise RemoteError(
                    f"the server sent another part of {self._video_id} than it should"
                )
            self._file.seek(0)
            self._file.truncate()
        tag = response.headers.get("etag", "")
        self._tag = "" if tag.startswith("W/") else tag
        length = range_of[2] if range_of else response.headers.get("content-length", "")
        total = int(length) if length.isdecimal() else 0
        for part in response.iter_raw():
            self._file.write(part)
            if total:
                percent = min(100 * self._file.tell() // total, 100)
                self._bars.show(Progress(stage="fetch", done=percent, total=100, seconds=0.0))


def _check(aside: pathlib.Path, video: RemoteVideo, variant: str) -> None:
    """Compares what came with what the server says of the file, where it does.

    Raises:
        RemoteError: they differ.
    """
    said = video.metadata.get("files")
    said = said.get(variant) if isinstance(said, dict) else None
    wanted = said.get("sha256") if isinstance(said, dict) else None
    with aside.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted is not None and found != wanted:
        raise RemoteError(
            f"{video.id} arrived damaged: its SHA-256 is {found}, the server's {wanted}; fetch it "
            "again"
        )
