"""A line to PostgreSQL over TCP that can be broken at the worst moment: after the COMMIT."""

import contextlib
import pathlib
import socket
import threading

COMMIT = b"COMMIT\0"


class BrokenLine:
    """Passes everything on, until told to lose the answer to a commit.

    `lose_answer` names the statement whose transaction is meant; with `silent` the line stays open
    and says nothing more, without it both ends are closed.
    """

    def __init__(self, target: pathlib.Path):
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._statement: bytes | None = None
        self._silent = False
        self._open: list[socket.socket] = []
        self.lost = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self):
        return self._listener.getsockname()[1]

    def lose_answer(self, statement: bytes, *, silent=False):
        with self._lock:
            self._statement, self._silent = statement, silent
            self.lost.clear()

    def close(self):
        self._listener.close()
        with self._lock:
            for line in self._open:
                cut(line)

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._target))
            with self._lock:
                self._open += [client, server]
            Pair(self, client, server)

    def _is_meant(self, seen: bytes):
        """Whether the commit at the end of what was sent is the one; once."""
        with self._lock:
            if self._statement is None or self._statement not in seen:
                return None
            self._statement = None
            return "silent" if self._silent else "closed"


class Pair:
    """One connection through the line."""

    def __init__(self, line: BrokenLine, client: socket.socket, server: socket.socket):
        self._line, self._client, self._server = line, client, server
        self._fate: str | None = None
        threading.Thread(target=self._to_server, daemon=True).start()
        threading.Thread(target=self._to_client, daemon=True).start()

    def _to_server(self):
        seen = b""
        for data in chunks(self._client):
            seen += data
            if COMMIT in data:
                self._fate = self._fate or self._line._is_meant(seen)
                seen = b""
            with contextlib.suppress(OSError):
                self._server.sendall(data)
        cut(self._server)

    def _to_client(self):
        for data in chunks(self._server):
            if self._fate is not None:  # the server has committed: this is its answer
                self._line.lost.set()
                if self._fate == "closed":
                    break
                continue
            with contextlib.suppress(OSError):
                self._client.sendall(data)
        cut(self._client)
        cut(self._server)


def chunks(line):
    with contextlib.suppress(OSError):
        while data := line.recv(65536):
            yield data


def cut(line):
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
