"""stop videos that wait or run on a server, or delete any

A cancelled video stays in the list as failed. --delete forgets it, completed or not, and removes
its files on the server; that is also how servers of other makes, which know no cancel, stop one.
"""

import argparse
import sys

from wan_tpu.cli.interruptible import ended_by_signals
from wan_tpu.cli.remote.answers import NotCancellableError, NotThereError
from wan_tpu.cli.remote.options import open_server, video_id
from wan_tpu.cli.remote.server import RemoteServer
from wan_tpu.cli.streams import write_data
from wan_tpu.errors import InputError

EXIT_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu remote cancel`."""
    parser.add_argument("ids", type=video_id, nargs="*", metavar="ID", help="of the videos")
    parser.add_argument(
        "--all", action="store_true", help="all of this key that wait or run, the newest first"
    )
    parser.add_argument(
        "--delete", action="store_true", help="forget the videos, and remove their files there"
    )


def run(parsed: argparse.Namespace) -> int:
    """Stops them, and prints the id of each; 1 where one could not be."""
    if parsed.all == bool(parsed.ids):
        raise InputError("name the videos to cancel, or write --all, and not both")
    is_complete = True
    with open_server(parsed) as server, ended_by_signals():
        ids = parsed.ids
        if parsed.all:
            ids = [video.id for video in server.videos() if not video.is_finished]
        for each in ids:
            try:
                _stop(server, each, delete=parsed.delete)
            except (NotThereError, NotCancellableError) as error:
                if not parsed.all:  # of all, some end by themselves meanwhile
                    sys.stderr.write(f"wan-tpu: {error}\n")
                    is_complete = False
            else:
                write_data(f"{each}\n")
    return 0 if is_complete else EXIT_FAILED


def _stop(server: RemoteServer, video_id: str, *, delete: bool) -> None:
    if delete:
        server.delete(video_id)
    else:
        server.cancel(video_id)
