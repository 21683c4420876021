"""The control port of process 0: one thread for all clients, until they have authenticated.

Unauthenticated clients cost the process that owns the devices a bounded number of descriptors, one
thread, a bounded number of log lines and a small share of one core, however many they are and
whatever they send.
"""

import collections
import contextlib
import dataclasses
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable

from wan_tpu.multihost.connection import Connection
from wan_tpu.multihost.group import ProcessGroup
from wan_tpu.multihost.handshake import MAX_LINE_BYTES, LeaderHandshake, Signer
from wan_tpu.multihost.messages import Hello, decode
from wan_tpu.multihost.secret import VARIABLE

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
"""One deadline for the whole handshake. It takes milliseconds on a quiet machine."""

SPARE_PENDING = 64
"""Unauthenticated connections at a time, besides one for each process of the slice."""

MAX_HELLO_BYTES = 1024

BACKLOG = 1024
"""Connections that wait in the kernel; one that finds no place tries again after a second."""

ACCEPTS_AT_ONCE, ACCEPT_REST_SECONDS = 16, 0.1
"""160 connections a second at the most once all have come: a client that connects in a loop does
not keep the interpreter from the pipeline's thread."""

OUT_OF_DESCRIPTORS_REST_SECONDS = 1.0

LOG_SECONDS = 30.0
"""Between two log lines of one kind on unauthenticated clients."""

DENIAL = "could not prove the slice's secret"


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class _Pending:
    """A client that has connected and has not authenticated itself yet."""

    socket: socket.socket
    address: str
    deadline: float
    handshake: LeaderHandshake
    received: bytes = b""
    verifier: Signer | None = None


class Listener:
    """Accepts clients, authenticates them, and hands on those that are processes of the slice."""

    def __init__(
        self,
        group: ProcessGroup,
        *,
        on_process: Callable[[Connection, Hello], None],
        on_denied: Callable[[str], None],
    ):
        """Listens.

        Args:
            group: with this process as number 0.
            on_process: called with each authenticated process, on a thread of its own.
            on_denied: called, not too often, with the address of a client with another secret.

        Raises:
            OSError: the address cannot be listened on.
        """
        self._group = group
        self._on_process, self._on_denied = on_process, on_denied
        self._socket = listen_at(group.host, group.port)
        self._socket.setblocking(False)
        self.address = str(self._socket.getsockname()[0])
        self._max_pending = group.num_processes + SPARE_PENDING
        self._pending: list[_Pending] = []  # in the order of their deadlines
        self._log = _RateLimitedLog()
        self._expects_no_more = False
        self._rests_until: float | None = None
        self._wakes, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._is_closing = False
        threading.Thread(target=self._run, name="listener", daemon=True).start()

    def expect_no_more(self) -> None:
        """All processes have come; from now on a client may wait a little."""
        self._expects_no_more = True

    def close(self) -> None:
        """Listens no more; from any thread."""
        self._is_closing = True
        with contextlib.suppress(OSError):
            self._wakes.send(b".")

    def _run(self) -> None:
        while not self._is_closing:
            for key, _ in self._selector.select(self._seconds_to_next()):
                if key.data in self._pending:  # it may have been closed a moment ago
                    self._receive(key.data)
                elif key.fileobj is self._socket:
                    self._accept()
            now = time.monotonic()
            while self._pending and self._pending[0].deadline <= now:
                self._turn_away(self._pending[0], "did not authenticate itself in time")
            if self._rests_until is not None and self._rests_until <= now:
                self._rests_until = None
                self._selector.register(self._socket, selectors.EVENT_READ)
        for pending in self._pending:
            pending.socket.close()
        self._selector.close()
        for each in (self._socket, self._wakes, self._woken):
            each.close()

    def _seconds_to_next(self) -> float | None:
        """Until there is something to do even if nothing arrives."""
        times = [pending.deadline for pending in self._pending[:1]]
        times += [] if self._rests_until is None else [self._rests_until]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _accept(self) -> None:
        rest = ACCEPT_REST_SECONDS if self._expects_no_more else 0.0
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connected, address = self._socket.accept()
            except (BlockingIOError, ConnectionError):
                break
            except OSError as error:
                self._log.warn("nobody", f"can connect for a moment: {error.strerror}")
                rest = OUT_OF_DESCRIPTORS_REST_SECONDS
                break
            self._take(connected, str(address[0]))
        if rest:
            self._rests_until = time.monotonic() + rest
            self._selector.unregister(self._socket)

    def _take(self, connected: socket.socket, address: str) -> None:
        """Begins a handshake; where too many are pending, the most numerous address loses one.

        A process of the slice is done within milliseconds. To turn away the last one to come would
        let clients that send nothing keep it out.
        """
        if len(self._pending) >= self._max_pending:
            counts = collections.Counter(pending.address for pending in self._pending)
            crowd = max(counts.values())
            first = next(s for s in self._pending if counts[s.address] == crowd)
            self._turn_away(first, f"was closed: {self._max_pending} handshakes were pending")
        connected.setblocking(False)
        pending = _Pending(
            socket=connected,
            address=address,
            deadline=time.monotonic() + HANDSHAKE_SECONDS,
            handshake=LeaderHandshake(self._group.secret),
        )
        self._pending.append(pending)
        self._selector.register(connected, selectors.EVENT_READ, pending)

    def _receive(self, pending: _Pending) -> None:
        try:
            part = pending.socket.recv(MAX_HELLO_BYTES)
            if not part:
                self._turn_away(pending, "closed the connection before it authenticated itself")
                return
            pending.received += part
            self._take_lines(pending)
        except BlockingIOError:
            pass
        except OSError:
            self._turn_away(pending, "closed the connection before it authenticated itself")
        except ValueError as error:
            self._turn_away(pending, "is no process of this slice", str(error))

    def _take_lines(self, pending: _Pending) -> None:
        while b"\n" in pending.received:
            line, end, pending.received = pending.received.partition(b"\n")
            if pending.verifier is not None:
                self._hand_on(pending, decode(pending.verifier.check(line + end)))
                return
            answer = pending.handshake.answer(line + end)
            if pending.socket.send(answer) < len(answer):
                raise ConnectionError("it reads nothing")
            if pending.handshake.is_denied:
                claim = (
                    f"it says it is process {pending.handshake.process_id}; does it have the same "
                )
                self._turn_away(pending, DENIAL, f"{claim}{VARIABLE}?")
                return
            if pending.handshake.keys is not None:
                pending.verifier = Signer(pending.handshake.keys.to_leader)
        if len(pending.received) > (
            MAX_LINE_BYTES if pending.verifier is None else MAX_HELLO_BYTES
        ):
            raise ValueError(f"not a line of this protocol: {pending.received[:40]!r}")

    def _hand_on(self, pending: _Pending, hello: object) -> None:
        """It has authenticated itself and sends its rank."""
        if not isinstance(hello, Hello) or not hello.is_well_formed:
            raise ValueError(f"not a Hello: {str(hello)[:40]!r}")
        if hello.process_id != pending.handshake.process_id:
            raise ValueError("it claims another rank than before")
        keys = pending.handshake.keys
        assert keys is not None
        assert pending.verifier is not None
        self._forget(pending)
        pending.socket.setblocking(True)
        connection = Connection(
            pending.socket,
            signer=Signer(keys.to_follower),
            verifier=pending.verifier,
            received=pending.received,
        )
        threading.Thread(
            target=self._on_process, args=(connection, hello), name="follower", daemon=True
        ).start()

    def _forget(self, pending: _Pending) -> None:
        self._pending.remove(pending)
        self._selector.unregister(pending.socket)

    def _turn_away(self, pending: _Pending, reason: str, detail: str = "") -> None:
        self._forget(pending)
        pending.socket.close()
        is_logged = self._log.warn(pending.address, reason, detail)
        if is_logged and reason == DENIAL:
            self._on_denied(pending.address)


class _RateLimitedLog:
    """Log lines of each kind once in a while, with the number of those left out."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._dropped: collections.Counter[str] = collections.Counter()

    def warn(self, who: str, what: str, detail: str = "") -> bool:
        """Logs it, unless the like was logged a moment ago; returns whether it did."""
        now = time.monotonic()
        if now - self._last.get(what, -LOG_SECONDS) < LOG_SECONDS:
            self._dropped[what] += 1
            return False
        self._last[what] = now
        more = self._dropped.pop(what, 0)
        logger.warning(
            "%s %s%s%s",
            who,
            what,
            f": {detail}" if detail else "",
            f" (and {more} more before)" if more else "",
        )
        return True


def listen_at(host: str, port: int) -> socket.socket:
    """Listens at a name or an address of this machine, and at no other.

    Raises:
        OSError: that cannot be done.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)
