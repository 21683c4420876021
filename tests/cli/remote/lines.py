"""A line to a server that loses what it is told to lose, and a server of another make."""

import contextlib
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LosingLine:
    """Passes on one request at a time, and breaks off once, at the answer to a request.

    Attributes:
        requests: what came, as text.
        lost: answers that did not arrive whole.
    """

    def __init__(self, url, word, *, after=0):
        """Begins to listen.

        Args:
            url: of the server.
            word: in the first line of the request whose answer is lost, the first time.
            after: bytes of that answer's body that still arrive.
        """
        host, _, port = url.removeprefix("http://").partition(":")
        self._target = host, int(port)
        self._word, self._after = word, after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests, self.lost = [], 0
        self._open = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        """From now on nobody is there."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # it is being listened at
        self._listener.close()
        for line in self._open:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client, socket.create_connection(self._target) as server:
            while request := receive(client):
                head = request.partition(b"\r\n\r\n")[0].decode()
                self.requests.append(head)
                server.sendall(request)
                is_meant = self._word in head.splitlines()[0] and not self.lost
                answer = receive(server)
                if is_meant:
                    begin = answer.index(b"\r\n\r\n") + 4
                    self.lost += 1
                    if self._after:
                        client.sendall(answer[: begin + self._after])
                    return
                client.sendall(answer)


def receive(line):
    """One message of HTTP with the length that it says."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = line.recv(65536)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while len(body) < int(length[1] if length else 0):
        body += line.recv(65536)
    return head + b"\r\n\r\n" + body


class OtherMake:
    """Speaks the protocol's five routes and no more: forms, percents, no ranges, no cancel.

    Attributes:
        form: the last one that came.
        metadata: of each video, which the protocol has not.
    """

    content = b"not really a video"

    def __init__(self):
        self.form, self.metadata, self.polls = b"", None, 0
        self.deleted = False
        other = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                other.form = self.rfile.read(int(self.headers["content-length"]))
                if self.path != "/v1/videos":
                    return self.answer(404, {"detail": "Not Found"})
                if b"refused" in other.form:
                    detail = [{"loc": ["body", "size"], "msg": "is too large", "type": "value"}]
                    return self.answer(422, {"detail": detail})
                return self.answer(200, other.video("queued", 0))

            def do_GET(self):
                if self.path.endswith("/content"):
                    return self.answer(200, other.content)
                if self.path.startswith("/v1/videos?limit="):
                    return self.answer(200, {"object": "list", "data": [other.video("failed", 0)]})
                if self.path != "/v1/videos/other-1":
                    return self.answer(404, {"detail": "Not Found"})
                other.polls += 1
                done = other.polls > 2
                state = ("completed", 100) if done else ("in_progress", 30 * other.polls)
                return self.answer(200, other.video(*state))

            def do_DELETE(self):
                other.deleted = True
                self.answer(200, {"id": "other-1", "deleted": True})

            def answer(self, status, body):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("openai-poll-after-ms", "20")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def video(self, status, progress):
        extra = {} if self.metadata is None else {"metadata": self.metadata}
        video = {"id": "other-1", "object": "video", "status": status, "progress": progress}
        return video | {"model": "x", "seconds": "4", "size": "1x1", "created_at": 1} | extra

    def say_digest(self, content):
        """Says of what the files are, as servers of wan-tpu do."""
        digest = hashlib.sha256(content).hexdigest()
        self.metadata = {"files": {"video": {"bytes": len(content), "sha256": digest}}}

    def close(self):
        self._server.shutdown()
        self._server.server_close()
