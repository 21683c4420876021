"""Where the server listens: taken before anything else starts, so that nothing starts in vain."""

import contextlib
import errno
import os
import pathlib
import socket
import stat
from collections.abc import Iterator

from server.settings import Settings
from wan_tpu.errors import WanTpuError

UNIX_MODE_MASK = 0o117
"""Leaves 0660: whoever may use the socket file may use the service."""


class ListenError(WanTpuError):
    """The address cannot be listened at; says which setting names it."""


class Listening:
    """Sockets that are bound and listen.

    Attributes:
        sockets: one for each address of the host's name.
        where: as people are told.
    """

    def __init__(self, sockets: list[socket.socket], where: str, path: pathlib.Path | None):
        self.sockets = sockets
        self.where = where
        self._path = path
        self._inode = None if path is None else path.stat().st_ino

    def close(self) -> None:
        """Stops, and removes the socket file if it is still ours."""
        for each in self.sockets:
            each.close()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()


def listen(settings: Settings) -> Listening:
    """Takes the address that the settings name.

    Raises:
        ListenError: it is taken, or is no address of this machine.
    """
    if settings.unix_socket is not None:
        return _listen_at_file(settings.unix_socket)
    return _listen_at_port(settings.host, settings.port)


def _listen_at_port(host: str, port: int) -> Listening:
    sockets: list[socket.socket] = []
    with _closing_on_error(sockets):
        try:
            absent: OSError | None = None
            for family, address in _addresses(host):
                try:
                    bound = socket.create_server((address, port), family=family, backlog=2048)
                except OSError as error:
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
                    absent = error  # localhost is ::1 too, also where there is no IPv6
                    continue
                sockets.append(bound)
                port = bound.getsockname()[1]  # 0 takes a free one, for all of them the same
            if not sockets and absent is not None:
                raise absent
        except OSError as error:
            raise ListenError(f"cannot listen on {host}:{port}: {_why(error, host)}") from None
    name = f"[{host}]" if ":" in host else host
    return Listening(sockets, f"http://{name or '0.0.0.0'}:{port}", None)


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """(family, address) of each address of a name; of an empty one, all of this machine."""
    found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _why(error: OSError, host: str) -> str:
    """What is wrong, and with which setting."""
    if isinstance(error, socket.gaierror):
        return f"{host!r} is no name of this machine; WAN_TPU_HOST, for example 127.0.0.1"
    match error.errno:
        case errno.EADDRINUSE:
            return "another program listens there; stop it or set WAN_TPU_PORT, for example 8001"
        case errno.EACCES | errno.EPERM:
            return "not allowed; set WAN_TPU_PORT to one of 1024 or more, for example 8000"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address; set WAN_TPU_HOST, for example to 127.0.0.1"
        case _:
            return f"{error.strerror or error}; see WAN_TPU_HOST and WAN_TPU_PORT"


def _listen_at_file(path: pathlib.Path) -> Listening:
    sockets: list[socket.socket] = []
    with _closing_on_error(sockets):
        try:
            _remove_stale(path)
            bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sockets.append(bound)
            before = os.umask(UNIX_MODE_MASK)
            try:
                bound.bind(str(path))
            finally:
                os.umask(before)
            bound.listen(2048)
        except OSError as error:
            words = error.strerror or str(error)
            raise ListenError(
                f"cannot listen at {path}: {words}; see WAN_TPU_UNIX_SOCKET"
            ) from None
        return Listening(sockets, f"unix:{path}", path)


def _remove_stale(path: pathlib.Path) -> None:
    """Removes the socket file of a server that is gone; nothing else.

    Raises:
        ListenError: a server answers there, or it is no socket.
    """
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise ListenError(f"{path} is there and is no socket; WAN_TPU_UNIX_SOCKET names a new file")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # somebody listens and has much to do
    raise ListenError(f"another server listens at {path}; stop it or set WAN_TPU_UNIX_SOCKET")


@contextlib.contextmanager
def _closing_on_error(sockets: list[socket.socket]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for each in sockets:
            each.close()
        raise
