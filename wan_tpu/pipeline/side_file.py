"""The JSON file beside a video: how it was made. A file that is not ours is left alone."""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wan_tpu.errors import OutputError
from wan_tpu.pipeline.video_file import SUFFIXES
from wan_tpu.pipeline.whole_file import check_file_path, reporting, write_json_atomically

WRITTEN_BY = "wan-tpu generate"

LARGEST_BYTES = 2**20
"""Ours are some kilobytes, and a prompt of 200 kB at most."""


def side_file_of(video: Path) -> Path:
    """Where the story of a video is told: `fox.json` beside `fox.mp4`."""
    return video.with_suffix(".json")


def check_side_file(video: Path) -> Path:
    """Finds out, before any work, whether the file beside a video can be written.

    Returns:
        Its path.

    Raises:
        OutputError: it cannot, is not ours, or tells of another video that is there.
    """
    side = side_file_of(video)
    way_out = f"take another name, for example {free_name(video)}"
    with reporting(side):
        try:
            mode = os.lstat(side).st_mode
        except FileNotFoundError:
            return check_file_path(side)
        if stat.S_ISLNK(mode) and not side.exists():
            raise OutputError(f"cannot write {side}: it is a link to nothing; {way_out}")
        check_file_path(side)
        told = _video_of(side)
    if told is None:
        raise OutputError(f"cannot write {side}: the file there is not wan-tpu's; {way_out}")
    other = video.with_name(told)
    if other.name != video.name and side_file_of(other) == side and other.exists():
        raise OutputError(f"cannot write {side}: it tells how {other} was made; {way_out}")
    return side


def write_side_file(video: Path, metadata: Mapping[str, Any]) -> None:
    """Writes how a video was made.

    Raises:
        OutputError: the file cannot be written, or one that is not ours has come meanwhile.
    """
    side = check_side_file(video)
    write_json_atomically(side, {"written_by": WRITTEN_BY, "video": video.name, **metadata})


def free_name(video: Path) -> Path:
    """The first of `fox-2.mp4`, `fox-3.mp4`, ... that neither video nor side file has."""
    number = 2
    while True:
        found = video.with_name(f"{video.stem}-{number}{video.suffix}")
        if not (os.path.lexists(found) or os.path.lexists(side_file_of(found))):
            return found
        number += 1


def _video_of(side: Path) -> str | None:
    """The name of the video that a side file tells of; None if it is not ours."""
    if side.stat().st_size > LARGEST_BYTES:
        return None
    try:
        data = json.loads(side.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    told, versions = data.get("video"), data.get("versions")
    if data.get("written_by") == WRITTEN_BY and isinstance(told, str) and told:
        return Path(told).name
    if "request" in data and isinstance(versions, dict) and "wan_tpu" in versions:
        # Earlier ones did not say of which: of the one that is there.
        there = [side.with_suffix(suffix) for suffix in SUFFIXES]
        return next((video for video in there if video.exists()), there[0]).name
    return None
