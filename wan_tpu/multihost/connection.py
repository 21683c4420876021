"""The connection between process 0 and a follower, once both have authenticated themselves."""

import contextlib
import re
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from wan_tpu.errors import MismatchError
from wan_tpu.multihost.group import ProcessGroup
from wan_tpu.multihost.handshake import MAC_BYTES, MAX_LINE_BYTES, FollowerHandshake, Signer
from wan_tpu.multihost.messages import MAX_MESSAGE_BYTES, decode, encode
from wan_tpu.multihost.secret import OPTION, VARIABLE

CONNECT_SECONDS = 5.0

FRAME_BYTES = 1 << 18
"""Of a binary frame. The loss detector waits 20 s for a sign of life: 13 kB/s are enough."""

_FRAME = re.compile(rb"[^ ]{%d} =([0-9]{1,7})\n" % MAC_BYTES)
"""The line in front of a frame's bytes, signature included. No message begins so."""


class Connection:
    """A socket that carries signed messages both ways; several threads may send.

    A message is a line. Bytes go in binary frames, `=SIZE` on a line and so many bytes after it,
    each signed like a line and none larger than `FRAME_BYTES`: between two of them heartbeats pass.
    """

    def __init__(
        self,
        connected: socket.socket,
        *,
        signer: Signer,
        verifier: Signer,
        received: bytes = b"",
    ):
        """Takes over a socket on which both ends have authenticated themselves.

        Args:
            connected: blocking, without a timeout.
            signer: signs what this end sends.
            verifier: checks what the other end sends.
            received: what came after the handshake and is not yet looked at.
        """
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._signer, self._verifier = signer, verifier
        self._received = bytearray(received)
        self._sending = threading.Lock()

    def send(self, message: Any) -> None:
        """Sends a message; whether the other end is gone, `listen` finds out."""
        self.send_line(encode(message))

    def send_line(self, line: bytes) -> None:
        """Sends a message that is encoded already."""
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(self._signer.sign(line))

    def send_frame(self, data: bytes | memoryview) -> None:
        """Sends at most `FRAME_BYTES` as they are."""
        assert len(data) <= FRAME_BYTES
        self.send_line(b"=%d\n%s" % (len(data), data))

    def send_unless_busy(self, message: Any) -> None:
        """Sends a message, or drops it where that would wait: for a heartbeat.

        Whoever looks after several peers must not wait for one of them that reads nothing.
        """
        if not self._sending.acquire(blocking=False):
            return  # something else is being sent, which shows as much
        try:
            # The kernel calls a socket writable when a third of its buffer is free.
            _, writable, _ = select.select((), (self._socket,), (), 0)
            if writable:
                self._socket.sendall(self._signer.sign(encode(message)))
        except (OSError, ValueError):  # it is closed
            pass
        finally:
            self._sending.release()

    def listen(self, on_message: Callable[[Any], None]) -> None:
        """Calls `on_message` with each message, and with the bytes of each frame, until the end.

        Raises:
            ValueError: it is malformed, or the other end has not signed it.
        """
        with contextlib.suppress(OSError):
            while (line := self._read_line()) is not None:
                size = _FRAME.fullmatch(line)
                data = b"" if size is None else self._read(int(size[1]))
                if data is None:
                    return
                content = self._verifier.check(bytes(line) + data)
                on_message(decode(content) if size is None else data)

    def _read_line(self) -> bytes | None:
        """The next line; None at the end."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > MAX_MESSAGE_BYTES:
                raise ValueError(f"a line of more than {MAX_MESSAGE_BYTES} bytes")
            if not self._receive():
                return None
        return self._take(end + 1)

    def _read(self, size: int) -> bytes | None:
        """So many bytes; None at the end."""
        if size > FRAME_BYTES:
            raise ValueError(f"a frame of {size} bytes, at most {FRAME_BYTES} are sent")
        while len(self._received) < size:
            if not self._receive():
                return None
        return self._take(size)

    def _receive(self) -> bool:
        part = self._socket.recv(1 << 16)
        self._received += part
        return bool(part)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def dismiss(self, message: Any, timeout_seconds: float) -> None:
        """Sends a last message and waits for the other end to close.

        To close while the other end still sends would reset the connection and lose the message.
        """
        self.send(message)
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
    """Connects a follower to process 0, once both have authenticated themselves.

    Args:
        group: this process, and where process 0 listens.
        timeout_seconds: for all of it.

    Raises:
        OSError: nothing answers there, or it closes the connection; try again.
        MismatchError: what answers is no process of this slice, or has another secret.
    """
    deadline = time.monotonic() + timeout_seconds
    connected = socket.create_connection(
        (group.host, group.port), timeout=min(CONNECT_SECONDS, timeout_seconds)
    )
    try:
        return _authenticate(connected, group, deadline)
    except ValueError as error:
        connected.close()
        raise MismatchError(
            f"what answers at {group.coordinator} is no process 0 of this release: {error}"
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


def _authenticate(connected: socket.socket, group: ProcessGroup, deadline: float) -> Connection:
    if connected.getsockname() == connected.getpeername():
        raise ConnectionError("nothing listens there")  # a port may be connected to itself
    handshake = FollowerHandshake(
        group.secret, process_id=group.process_id, num_processes=group.num_processes
    )
    connected.sendall(handshake.hello)
    challenge, rest = _receive_line(connected, b"", deadline)
    connected.sendall(handshake.prove(challenge))
    proof, rest = _receive_line(connected, rest, deadline)
    keys = handshake.check(proof)
    connected.settimeout(None)
    return Connection(
        connected, signer=Signer(keys.to_leader), verifier=Signer(keys.to_follower), received=rest
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
            raise ValueError(f"not a line of this protocol: {line[:40]!r}")
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("it accepts the connection and does not answer")
        connected.settimeout(remaining)
        part = connected.recv(MAX_LINE_BYTES)
        if not part:
            raise ConnectionError("it closed the connection")
        received += part
