"""say how far videos of a server are, until they have ended

One by its id, as `wan-tpu remote generate` shows it; without an id a line for each change of all
that wait or run. Exit code 1 where one of them failed. Ctrl-C leaves them as they are.
"""

import argparse
import time

from wan_tpu.cli.interruptible import ended_by_signals
from wan_tpu.cli.progress import ProgressBars, say
from wan_tpu.cli.remote.follow import follow
from wan_tpu.cli.remote.options import open_server, video_id
from wan_tpu.cli.remote.server import RemoteServer
from wan_tpu.cli.remote.video import QUEUED, RemoteVideo
from wan_tpu.cli.streams import write_data

EXIT_FAILED = 1
SHOWN_PROMPT = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu remote watch`."""
    parser.add_argument(
        "id", type=video_id, nargs="?", metavar="ID", help="of a video (default: all)"
    )


def run(parsed: argparse.Namespace) -> int:
    """Watches; 0 when all that were watched are completed."""
    with open_server(parsed) as server, ended_by_signals():
        if parsed.id is None:
            return EXIT_FAILED if watch_all(server) else 0
        with ProgressBars() as bars:
            video = follow(server, server.retrieve(parsed.id), bars)
        say(f"{video.id} is {video.state}")
    return 0


def watch_all(server: RemoteServer) -> int:
    """Writes a line for each change until nothing waits or runs; the number of failures."""
    watched: dict[str, str] = {}
    failed = 0
    is_first = True
    while True:
        found = _look(server, set(watched), everything=is_first)
        for gone in watched.keys() - found.keys():
            write_data(f"{gone}  deleted\n")
            del watched[gone]
        for video in found.values():
            if video.is_finished and video.id not in watched:
                continue
            change = _change(video)
            if watched.get(video.id) != change:
                prompt = video.text("prompt")[:SHOWN_PROMPT]
                write_data(f"{video.id}  {video.state}  {prompt}\n")
            watched[video.id] = change
            if video.is_finished:
                failed += video.failure is not None
                del watched[video.id]
        if not watched:
            return failed
        is_first = False
        time.sleep(server.poll_seconds)


def _look(server: RemoteServer, watched: set[str], *, everything: bool) -> dict[str, RemoteVideo]:
    """The newest videos, as many as it takes to see all that are watched."""
    found: dict[str, RemoteVideo] = {}
    missing = set(watched)
    for video in server.videos():
        found[video.id] = video
        missing.discard(video.id)
        if not (missing or everything):
            break
    return found


def _change(video: RemoteVideo) -> str:
    """What a line is written for: another status, place or stage, but no step."""
    if video.status == QUEUED or video.is_finished:
        return f"{video.status} {video.text('queue_position')}"
    return f"{video.status} {video.text('stage')}"
