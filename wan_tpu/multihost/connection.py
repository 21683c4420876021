"""The connection between process 0 and another one, once they have proved themselves."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from wan_tpu.errors import MismatchError
from wan_tpu.multihost.group import ProcessGroup
from wan_tpu.multihost.handshake import MAX_LINE_BYTES, FollowersSide, Signer
from wan_tpu.multihost.secret import OPTION, VARIABLE
from wan_tpu.multihost.words import MAX_WORD_BYTES, decode, encode

CONNECT_SECONDS = 5.0


class Connection:
    """A socket that carries signed words both ways; several threads may send."""

    def __init__(
        self,
        connected: socket.socket,
        *,
        sends: Signer,
        hears: Signer,
        received: bytes = b"",
    ):
        """Takes over a socket on which both ends have proved themselves.

        Args:
            connected: blocking, without a timeout.
            sends: signs what this end says.
            hears: checks what the other end says.
            received: what came after the handshake and is not yet looked at.
        """
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._sends, self._hears = sends, hears
        self._received = received
        self._sending = threading.Lock()

    def send(self, word: Any) -> None:
        """Says something; that the other end is gone is learnt where it is listened to."""
        self.send_line(encode(word))

    def send_line(self, line: bytes) -> None:
        """Says a word that is encoded already."""
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(self._sends.sign(line))

    def listen(self, on_word: Callable[[Any], None]) -> None:
        """Calls `on_word` with each word until the other end is gone.

        Raises:
            ValueError: it makes no sense, or somebody else has said it.
        """
        with contextlib.suppress(OSError):
            while True:
                line, end, rest = self._received.partition(b"\n")
                if end:
                    self._received = rest
                    on_word(decode(self._hears.check(line + end)))
                elif len(line) > MAX_WORD_BYTES:
                    raise ValueError(f"a line of more than {MAX_WORD_BYTES} bytes")
                elif part := self._socket.recv(1 << 16):
                    self._received += part
                else:
                    return

    def dismiss(self, word: Any, timeout_seconds: float) -> None:
        """Says a last word and waits for the other end to hang up.

        To close while the other end still speaks would reset the connection, and the word be lost.
        """
        self.send(word)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(timeout_seconds)
            while self._socket.recv(4096):
                pass
        self.close()

    def close(self) -> None:
        """Ends the connection, for a `listen` in another thread, too."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def connect_to_leader(group: ProcessGroup, timeout_seconds: float) -> Connection:
    """Connects a follower to process 0, once both have proved themselves.

    Args:
        group: this process, and where process 0 listens.
        timeout_seconds: for all of it.

    Raises:
        OSError: nobody answers, or hangs up; it may be worth another try.
        MismatchError: whoever answers is no process of this slice, or has another secret.
    """
    deadline = time.monotonic() + timeout_seconds
    connected = socket.create_connection(
        (group.host, group.port), timeout=min(CONNECT_SECONDS, timeout_seconds)
    )
    try:
        return _prove(connected, group, deadline)
    except ValueError as error:
        connected.close()
        raise MismatchError(
            f"whoever answers at {group.coordinator} is no process 0 of this release: {error}"
        ) from None
    except MismatchError as error:
        connected.close()
        raise MismatchError(
            f"process 0 at {group.coordinator} and this process do not have the same secret "
            f"({error}); {VARIABLE} or {OPTION} must name the same one on every host"
        ) from None
    except OSError:
        connected.close()
        raise


def _prove(connected: socket.socket, group: ProcessGroup, deadline: float) -> Connection:
    if connected.getsockname() == connected.getpeername():
        raise ConnectionError("nobody listens there")  # a port may be connected to itself
    side = FollowersSide(
        group.secret, process_id=group.process_id, num_processes=group.num_processes
    )
    connected.sendall(side.hello)
    challenge, rest = _receive_line(connected, b"", deadline)
    connected.sendall(side.prove(challenge))
    proof, rest = _receive_line(connected, rest, deadline)
    keys = side.check(proof)
    connected.settimeout(None)
    return Connection(
        connected, sends=Signer(keys.to_leader), hears=Signer(keys.to_follower), received=rest
    )


def _receive_line(
    connected: socket.socket, received: bytes, deadline: float
) -> tuple[bytes, bytes]:
    """The next line, and what came after it; one deadline, however it is cut into pieces."""
    while True:
        line, end, rest = received.partition(b"\n")
        if end:
            return line + end, rest
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"no line of ours: {line[:40]!r}")
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("it connects and does not answer")
        connected.settimeout(remaining)
        part = connected.recv(MAX_LINE_BYTES)
        if not part:
            raise ConnectionError("it hung up")
        received += part
