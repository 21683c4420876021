"""Which server, with which key, and how long it may be away."""

import argparse
import os
import pathlib
import urllib.parse
from typing import Any

from wan_tpu.cli.options import positive_int
from wan_tpu.cli.remote.server import RemoteServer
from wan_tpu.cli.remote.video import is_id
from wan_tpu.errors import InputError

SERVER_VARIABLE, KEY_VARIABLE = "WAN_TPU_SERVER", "WAN_TPU_API_KEY"

DEFAULT_SERVER = "http://127.0.0.1:8000"
"""Where `make serve` and `python -m server` listen."""

PATIENCE_SECONDS = 600
"""A server that compiles a large model anew is back within minutes."""

LARGEST_KEY_FILE = 4096


def add_server_arguments(group: Any) -> None:
    """`--server`, `--api-key-file`, `--patience`."""
    group.add_argument(
        "--server", metavar="URL",
        help=f"for example https://videos.example.com (default: {SERVER_VARIABLE}, else "
        f"{DEFAULT_SERVER})",
    )  # fmt: skip
    group.add_argument(
        "--api-key-file", metavar="FILE",
        help=f"a file with the key and nothing else (default: the key in {KEY_VARIABLE})",
    )  # fmt: skip
    group.add_argument(
        "--patience", type=positive_int, default=PATIENCE_SECONDS, metavar="SECONDS",
        help="how long a server that has answered may be away, or busy (default: %(default)s)",
    )  # fmt: skip


def add_remote_arguments(group: Any) -> None:
    """`--lora`, `--step-cache`, `-n`: what a server has, or does, and no file from here."""
    group.add_argument(
        "--lora", action="append", default=[], metavar="NAME[:STRENGTH][@high|@low]",
        help="an adapter of the server's, as wan-tpu remote models lists them; how much of it "
        "(default: 1); of two experts the one it is for; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--step-cache", metavar="CACHE",
        help="what is reused between steps, for example magcache:0.12",
    )  # fmt: skip
    group.add_argument(
        "-n", "--n", type=positive_int, default=1, metavar="N",
        help="so many videos, with the seeds SEED, SEED + 1, ... (default: %(default)s)",
    )  # fmt: skip


def open_server(parsed: argparse.Namespace) -> RemoteServer:
    """The server that the options and the environment name; nothing is sent yet.

    Raises:
        InputError: the address or the key is none.
    """
    given = parsed.server or os.environ.get(SERVER_VARIABLE) or DEFAULT_SERVER
    return RemoteServer(
        read_address(given), key=_read_key(parsed.api_key_file), patience_seconds=parsed.patience
    )


def read_address(text: str) -> str:
    """A server's address without a slash at its end, and without the `/v1` that other clients want.

    Raises:
        InputError: it is none; it is not repeated where it may hold a password.
    """
    works = f"for example {DEFAULT_SERVER}"
    try:
        parts = urllib.parse.urlsplit(text.strip())
        _ = parts.port
    except ValueError:
        raise InputError(f"the server's address cannot be read; write {works}") from None
    if parts.username is not None or parts.password is not None:
        raise InputError(
            f"the server's address holds a name or password; a key is in {KEY_VARIABLE}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"the server's address must begin with http:// or https://, {works}, got {text!r}"
        )
    if parts.query or parts.fragment:
        raise InputError(f"the server's address ends before ? and #, {works}, got {text!r}")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _read_key(file: str | None) -> str | None:
    """The key; None without one. It is never shown.

    Raises:
        InputError: the file cannot be read, or what is given is no key.
    """
    if file is None:
        source, text = KEY_VARIABLE, os.environ.get(KEY_VARIABLE, "")
    else:
        source = f"--api-key-file {file}"
        try:
            with pathlib.Path(file).expanduser().open("rb") as opened:
                text = opened.read(LARGEST_KEY_FILE).decode("utf-8", "replace")
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
            why = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{source} cannot be read: {why}") from None
        if not text.strip():
            raise InputError(f"{source} is empty; it must hold the key")
    key = text.strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(f"{source} does not hold one key: keys are one word of plain letters")
    return key or None


def video_id(text: str) -> str:
    """An argparse type: the id of a video."""
    if not is_id(text):
        raise argparse.ArgumentTypeError(
            f"must be the id of a video, as wan-tpu remote list shows it, got {text[:80]!r}"
        )
    return text
