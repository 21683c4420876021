"""Where process 0 listens: one thread for all who connect, until they have proved themselves.

Strangers cost the process that owns the devices a bounded number of descriptors, one thread, a
bounded number of log lines and a small share of one core, however many they are and whatever they
say.
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
from wan_tpu.multihost.handshake import MAX_LINE_BYTES, LeadersSide, Signer
from wan_tpu.multihost.secret import VARIABLE
from wan_tpu.multihost.words import Hello, decode

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
"""For all that is said until a process is known, one deadline. Milliseconds on a quiet machine."""

SPARE_STRANGERS = 64
"""Connections without proof at a time, besides one for each process of the slice."""

MAX_HELLO_BYTES = 1024

BACKLOG = 1024
"""Connections that wait in the kernel; who finds no place there tries again after a second."""

ACCEPTS_AT_ONCE, ACCEPT_REST_SECONDS = 16, 0.1
"""160 connections a second at the most once all are here: who connects in a loop does not keep the
interpreter from the pipeline's thread."""

OUT_OF_DESCRIPTORS_REST_SECONDS = 1.0

LOG_SECONDS = 30.0
"""Between two lines of one kind on strangers."""

UNPROVED = "could not prove the slice's secret"


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class _Stranger:
    """Somebody who has connected and is not known yet."""

    socket: socket.socket
    address: str
    deadline: float
    side: LeadersSide
    received: bytes = b""
    hears: Signer | None = None


class Listener:
    """Accepts, lets everybody prove himself, and hands on those who have."""

    def __init__(
        self,
        group: ProcessGroup,
        *,
        on_process: Callable[[Connection, Hello], None],
        on_unproved: Callable[[str], None],
    ):
        """Listens.

        Args:
            group: with this process as number 0.
            on_process: given each process that has proved itself, on a thread of its own.
            on_unproved: told, not too often, the address of who has another secret.

        Raises:
            OSError: the address cannot be listened on.
        """
        self._group = group
        self._on_process, self._on_unproved = on_process, on_unproved
        self._socket = listen_at(group.host, group.port)
        self._socket.setblocking(False)
        self.address = str(self._socket.getsockname()[0])
        self._max_strangers = group.num_processes + SPARE_STRANGERS
        self._strangers: list[_Stranger] = []  # in the order of their deadlines
        self._complaints = _Complaints()
        self._expects_nobody = False
        self._rests_until: float | None = None
        self._wakes, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._is_closing = False
        threading.Thread(target=self._run, name="listener", daemon=True).start()

    def expect_nobody(self) -> None:
        """All processes are here; from now on who connects may wait a little."""
        self._expects_nobody = True

    def close(self) -> None:
        """Listens no more; from any thread."""
        self._is_closing = True
        with contextlib.suppress(OSError):
            self._wakes.send(b".")

    def _run(self) -> None:
        while not self._is_closing:
            for key, _ in self._selector.select(self._seconds_to_next()):
                if key.data in self._strangers:  # it may have made room a moment ago
                    self._hear(key.data)
                elif key.fileobj is self._socket:
                    self._accept()
            now = time.monotonic()
            while self._strangers and self._strangers[0].deadline <= now:
                self._turn_away(self._strangers[0], "did not say in time who it is")
            if self._rests_until is not None and self._rests_until <= now:
                self._rests_until = None
                self._selector.register(self._socket, selectors.EVENT_READ)
        for stranger in self._strangers:
            stranger.socket.close()
        self._selector.close()
        for each in (self._socket, self._wakes, self._woken):
            each.close()

    def _seconds_to_next(self) -> float | None:
        """Until there is something to do even if nobody says anything."""
        times = [stranger.deadline for stranger in self._strangers[:1]]
        times += [] if self._rests_until is None else [self._rests_until]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _accept(self) -> None:
        rest = ACCEPT_REST_SECONDS if self._expects_nobody else 0.0
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connected, address = self._socket.accept()
            except (BlockingIOError, ConnectionError):
                break
            except OSError as error:
                self._complaints.make("nobody", f"can connect for a moment: {error.strerror}")
                rest = OUT_OF_DESCRIPTORS_REST_SECONDS
                break
            self._take(connected, str(address[0]))
        if rest:
            self._rests_until = time.monotonic() + rest
            self._selector.unregister(self._socket)

    def _take(self, connected: socket.socket, address: str) -> None:
        """Lets somebody begin; where too many have, the most numerous make room.

        A process of ours is done within milliseconds. To turn away who comes last would let those
        who say nothing keep it out.
        """
        if len(self._strangers) >= self._max_strangers:
            counts = collections.Counter(stranger.address for stranger in self._strangers)
            crowd = max(counts.values())
            first = next(s for s in self._strangers if counts[s.address] == crowd)
            self._turn_away(first, f"made room: {self._max_strangers} had said nothing valid")
        connected.setblocking(False)
        stranger = _Stranger(
            socket=connected,
            address=address,
            deadline=time.monotonic() + HANDSHAKE_SECONDS,
            side=LeadersSide(self._group.secret),
        )
        self._strangers.append(stranger)
        self._selector.register(connected, selectors.EVENT_READ, stranger)

    def _hear(self, stranger: _Stranger) -> None:
        try:
            part = stranger.socket.recv(MAX_HELLO_BYTES)
            if not part:
                self._turn_away(stranger, "hung up before it said who it is")
                return
            stranger.received += part
            self._take_lines(stranger)
        except BlockingIOError:
            pass
        except OSError:
            self._turn_away(stranger, "hung up before it said who it is")
        except ValueError as error:
            self._turn_away(stranger, "is no process of ours", str(error))

    def _take_lines(self, stranger: _Stranger) -> None:
        while b"\n" in stranger.received:
            line, end, stranger.received = stranger.received.partition(b"\n")
            if stranger.hears is not None:
                self._hand_on(stranger, decode(stranger.hears.check(line + end)))
                return
            answer = stranger.side.answer(line + end)
            if stranger.socket.send(answer) < len(answer):
                raise ConnectionError("it does not read")
            if stranger.side.is_denied:
                said = f"it says it is process {stranger.side.process_id}; does it have the same "
                self._turn_away(stranger, UNPROVED, f"{said}{VARIABLE}?")
                return
            if stranger.side.keys is not None:
                stranger.hears = Signer(stranger.side.keys.to_leader)
        if len(stranger.received) > (MAX_LINE_BYTES if stranger.hears is None else MAX_HELLO_BYTES):
            raise ValueError(f"no line of ours: {stranger.received[:40]!r}")

    def _hand_on(self, stranger: _Stranger, hello: object) -> None:
        """It has proved itself and says who it is."""
        if not isinstance(hello, Hello) or not hello.is_well_formed:
            raise ValueError(f"not a Hello: {str(hello)[:40]!r}")
        if hello.process_id != stranger.side.process_id:
            raise ValueError("it is another process than it said before")
        keys = stranger.side.keys
        assert keys is not None
        assert stranger.hears is not None
        self._forget(stranger)
        stranger.socket.setblocking(True)
        connection = Connection(
            stranger.socket,
            sends=Signer(keys.to_follower),
            hears=stranger.hears,
            received=stranger.received,
        )
        threading.Thread(
            target=self._on_process, args=(connection, hello), name="follower", daemon=True
        ).start()

    def _forget(self, stranger: _Stranger) -> None:
        self._strangers.remove(stranger)
        self._selector.unregister(stranger.socket)

    def _turn_away(self, stranger: _Stranger, reason: str, detail: str = "") -> None:
        self._forget(stranger)
        stranger.socket.close()
        is_said = self._complaints.make(stranger.address, reason, detail)
        if is_said and reason == UNPROVED:
            self._on_unproved(stranger.address)


class _Complaints:
    """Log lines on strangers: of each kind one in a while, with the number of those left out."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._unsaid: collections.Counter[str] = collections.Counter()

    def make(self, who: str, what: str, detail: str = "") -> bool:
        """Says it, unless the like was said a moment ago; returns whether it did."""
        now = time.monotonic()
        if now - self._last.get(what, -LOG_SECONDS) < LOG_SECONDS:
            self._unsaid[what] += 1
            return False
        self._last[what] = now
        more = self._unsaid.pop(what, 0)
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
