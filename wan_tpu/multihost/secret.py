"""The secret by which the processes of a slice know each other: where it is kept, what it must be.

Whoever knows it belongs to the slice, so a file that others may read or change is refused.
"""

import ipaddress
import os
import pathlib
import stat

from wan_tpu.errors import InputError

VARIABLE, OPTION = "WAN_TPU_GROUP_SECRET_FILE", "--group-secret-file"

MIN_CHARACTERS = 32
"""Who records a handshake can try secrets at leisure; 32 hex digits are beyond trying."""

MAX_BYTES = 4096
"""Of the file that are looked at: a secret is its first line."""

HOW_TO_MAKE = "(umask 077; openssl rand -hex 32 > group.secret)"


def read_secret(path: pathlib.Path) -> str:
    """The secret in a file: its first line, without the blanks around it.

    Raises:
        InputError: there is no such file, others may read or change it, or it is too short.
    """
    try:
        # Not blocking: a named pipe would keep us waiting for somebody to write.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            _check_file(path, os.fstat(descriptor))
            line = os.read(descriptor, MAX_BYTES).partition(b"\n")[0]
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InputError(f"the slice's secret cannot be read: {error}") from None
    try:
        secret = line.decode().strip()
    except UnicodeDecodeError:
        raise InputError(f"the first line of {path} is no text; make one: {HOW_TO_MAKE}") from None
    if len(secret) < MIN_CHARACTERS:
        raise InputError(
            f"the slice's secret in {path} has {len(secret)} characters, at least "
            f"{MIN_CHARACTERS} are needed; make one: {HOW_TO_MAKE}"
        )
    return secret


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach a host, as far as its name tells."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_protected(host: str, secret: str) -> None:
    """Refuses a control port that the network reaches and nothing protects.

    Raises:
        InputError: there is no secret, and `host` is not this machine alone.
    """
    if not secret and not is_loopback(host):
        raise InputError(
            f"process 0 at {host} is open to the network and the slice has no secret: give every "
            f"host the same file with {VARIABLE} or {OPTION}; make one: {HOW_TO_MAKE}"
        )


def _check_file(path: pathlib.Path, status: os.stat_result) -> None:
    """Refuses what is no file, and one that more than its owner and group can get at.

    The group may read it: that is how a file of root's is given to a service of another user.
    """
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"the slice's secret {path} is no file")
    if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        mode = stat.S_IMODE(status.st_mode)
        raise InputError(
            f"the slice's secret {path} has mode {mode:04o}, so others may read or change it; "
            f"chmod 600 {path}, and make a new one if others were there"
        )
