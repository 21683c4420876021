"""A hub of one repository over real HTTP, for the hub's own client, with faults to order."""

import collections
import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import urllib.parse

COMMIT = "0123456789abcdef" * 2 + "01234567"
CLIENT = """
import json, logging, sys
logging.basicConfig(level="INFO", format="%(message)s")
from wan_tpu.checkpoints import hub
hub.FIRST_WAIT_SECONDS = 0.05
from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.errors import WanTpuError
call, name, variant = json.loads(sys.argv[1])
try:
    model = {"open": open_model, "describe": describe_model}[call](name, variant=variant)
except WanTpuError as error:
    print(json.dumps({"error": str(error)}))
else:
    places = {part: str(model.component_folder(part)) for part in model.kind.components}
    print(json.dumps({"folder": str(model.folder), "revision": model.revision, **places}))
"""


class FakeHub:
    """What it serves, what it was asked, and how it fails.

    Attributes:
        files: by path in the repository: the content, or a size that is only told.
        requests: paths in the order they were asked for, with the method in front.
        faults: by what a path contains: answers that are given once each before the right one, as
            (status, headers).
    """

    def __init__(self, repository: str, files: dict[str, bytes | int]):
        self.repository = repository
        self.files = files
        self.requests: list[str] = []
        self.faults: dict[str, list[tuple[int, dict[str, str]]]] = collections.defaultdict(list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        for part, faults in self.faults.items():
            if part in path and faults:
                status, headers = faults.pop(0)
                return status, headers, b"busy"
        path = urllib.parse.unquote(path.partition("?")[0])
        if path.startswith(f"/api/models/{self.repository}/revision/"):
            found = {"id": self.repository, "sha": COMMIT, "siblings": [], "private": False}
            return 200, {}, json.dumps(found).encode()
        if path.startswith(f"/api/models/{self.repository}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": _size(content), "oid": _oid(name)}
                for name, content in self.files.items()
            ]
            return 200, {}, json.dumps(tree).encode()
        prefix = f"/{self.repository}/resolve/{COMMIT}/"
        content = self.files.get(path.removeprefix(prefix)) if path.startswith(prefix) else None
        if not isinstance(content, bytes):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        etag = f'"{_oid(path.removeprefix(prefix))}"'
        return 200, {"ETag": etag, "X-Repo-Commit": COMMIT}, content

    def fetched(self) -> list[str]:
        """The files that were sent, in order of their names."""
        mark = f"GET /{self.repository}/resolve/{COMMIT}/"
        return sorted({r.removeprefix(mark) for r in self.requests if r.startswith(mark)})


def _size(content: bytes | int) -> int:
    return content if isinstance(content, int) else len(content)


def _oid(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


def files_of(folder: pathlib.Path) -> dict[str, bytes | int]:
    """A folder's files as a repository has them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def serving(hub: FakeHub):
    """Serves on a free port; yields the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            hub.requests.append(f"{self.command} {urllib.parse.unquote(self.path)}")
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - http.server's name

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment_of(address, home):
    """That of a process whose hub is at an address, with a cache of its own."""
    return {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


def ask(address: str, home: pathlib.Path, name: str, *, call="open", variant=None, **environment):
    """Opens or describes a model in a process of its own.

    Returns:
        What it found, and its log.
    """
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps([call, name, variant])],
        capture_output=True,
        text=True,
        env={**environment_of(address, home), **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr
