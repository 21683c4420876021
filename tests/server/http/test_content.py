"""Files are sent alike from the disk and from a bucket, over real HTTP; never a part as a whole."""

import asyncio
import contextlib
import dataclasses
import os
import threading

import httpx
import pytest
import uvicorn
from starlette.requests import Request

from server.errors import ApiError
from server.files.job_files import JobFiles, file_key
from server.files.media import FILE_NAMES
from server.files.media import Media as VideoFiles
from server.files.seam import LocalFiles
from server.files.uploads import Uploads
from server.http.content import finished_file, input_file, input_response, stored_response
from server.http.observed import Observed
from server.jobs.job import State
from server.metrics import Metrics
from tests.server.files.test_bucket import set_environment
from tests.server.running import wait_for
from wan_tpu.cli.remote.server import RemoteServer
from wan_tpu.media import Media, digest_of
from wan_tpu.storage import object_store
from wan_tpu.storage.bucket import BucketError, open_bucket

JOB = "video_" + "0" * 32
VIDEO = bytes(range(256)) * 8192  # two of the pieces in which it is sent, and more
PICTURE = b"\x89PNG\r\n\x1a\n" + b"p" * 999
ROUTES = ("/content", "/input")


@dataclasses.dataclass
class Made:
    """What of a completed job the answers depend on."""

    id: str
    metadata: dict | None
    state: State = State.COMPLETED


class App:
    """The two answers with files, inside what stands in front of all routes."""

    def __init__(self, files, job, *, redirect=False):
        self.files, self.job, self.redirect = files, job, redirect
        self.metrics = Metrics()
        self.observed = Observed(self.answer, metrics=self.metrics)

    async def __call__(self, scope, receive, send):
        await self.observed(scope, receive, send)

    async def answer(self, scope, receive, send):
        scope["state"]["is_head"] = scope["method"] == "HEAD"
        request = Request({**scope, "method": "GET"}, receive)
        try:
            if scope["path"].endswith("/content"):
                stored = await finished_file(self.files, self.job, "video")
                response = await stored_response(request, stored, self.job, "video", self.redirect)
            else:
                digest = digest_of(PICTURE)
                stored = await input_file(self.files, self.job, "image", digest)
                response = await input_response(request, stored, self.job, "image", self.redirect)
        except ApiError as error:
            response = error.response()
        await response({**scope, "method": "GET"}, receive, send)


@contextlib.contextmanager
def served(app):
    """A client of an application behind a real server."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def write_video(folder):
    folder.mkdir(exist_ok=True)
    for variant, name in FILE_NAMES.items():
        (folder / name).write_bytes(VIDEO if variant == "video" else variant.encode())
    return folder


async def fill(files, folder):
    await files.put_uploads([JOB], Media.of(PICTURE))
    noted = await files.publish(JOB, 1, write_video(folder))
    return Made(id=JOB, metadata={"start": 1, "files": noted})


def filled(bucket, tmp_path, **options):
    files = JobFiles(bucket)
    return App(files, asyncio.run(fill(files, tmp_path / "made")), **options)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A client of files on the disk, as one slice has them."""
    root = tmp_path_factory.mktemp("local")
    media, uploads = VideoFiles(root, min_free_bytes=0), Uploads(root)
    write_video(media.begin(JOB))
    job = Made(id=JOB, metadata={"files": media.measure(JOB)})
    media.publish(JOB)
    with uploads.keeping(Media.of(PICTURE)), served(App(LocalFiles(media, uploads), job)) as client:
        yield client


@pytest.fixture(scope="module", params=["folder", "s3", "gs"])
def remote(request, tmp_path_factory):
    """A client of files in a bucket of each kind."""
    root = tmp_path_factory.mktemp("remote")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "folder":
            bucket = open_bucket(str(root / "bucket"))
        else:
            server = request.getfixturevalue(request.param)
            set_environment(patch, server.environment)
            bucket = open_bucket(f"{server.url}/{root.name}")
        with served(filled(bucket, root)) as client:
            yield client


WANTED = {
    "all of it": {},
    "a part": {"Range": "bytes=100-1000"},
    "one byte": {"Range": "bytes=0-0"},
    "from there": {"Range": "bytes=900-"},
    "the last": {"Range": "bytes=-20"},
    "beyond its end": {"Range": "bytes=900-99999999"},
    "more than all": {"Range": "bytes=-99999999"},
    "outside": {"Range": "bytes=99999999-"},
    "malformed": {"Range": "bytes=x"},
    "reversed": {"Range": "bytes=9-3"},
    "another unit": {"Range": "frames=0-1"},
    "of another file": {"Range": "bytes=0-9", "If-Range": '"other"'},
    "what it has": {"If-None-Match": "ETAG"},
    "what another is": {"If-None-Match": '"other"'},
    "of this file": {"Range": "bytes=0-9", "If-Range": "ETAG"},
}
OWN = ("date", "last-modified", "x-request-id")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_bucket_answers_as_the_disk_does(local, remote, method):
    """Red when a status, a header or a byte differs."""
    for route in ROUTES:
        etag = local.head(route).headers["etag"]
        for name, headers in WANTED.items():
            wanted = {key: value.replace("ETAG", etag) for key, value in headers.items()}
            expected = local.request(method, route, headers=wanted)
            answer = remote.request(method, route, headers=wanted)
            assert answer.status_code == expected.status_code, name
            assert answer.content == expected.content, name
            for each in (answer, expected):
                for key in OWN:
                    each.headers.pop(key, None)
            assert dict(answer.headers) == dict(expected.headers), name


def test_a_part_is_the_part(remote):
    answer = remote.get("/content", headers={"Range": "bytes=300000-999999"})
    assert answer.status_code == 206
    assert answer.content == VIDEO[300_000:1_000_000]
    assert answer.headers["content-range"] == f"bytes 300000-999999/{len(VIDEO)}"
    date = answer.headers["last-modified"]
    headers = {"Range": "bytes=1-2", "If-Range": date}
    assert remote.get("/content", headers=headers).status_code == 206


def test_several_parts_are_answered_with_the_whole(remote):
    answer = remote.get("/content", headers={"Range": "bytes=0-9,20-29"})
    assert (answer.status_code, answer.content) == (200, VIDEO)


@pytest.fixture
def bucket(tmp_path):
    return open_bucket(str(tmp_path / "bucket"))


class Counted:
    """A bucket that counts how its objects are read, and does first what it is told."""

    def __init__(self, bucket):
        self.bucket = bucket
        self.begun = self.ended = self.pieces = 0
        self.before = None

    def __getattr__(self, name):
        return getattr(self.bucket, name)

    async def stream(self, key, start, end):
        self.begun += 1
        if self.before is not None:
            await self.before(key)
        try:
            async with contextlib.aclosing(self.bucket.stream(key, start, end)) as stream:
                async for chunk in stream:
                    self.pieces += 1
                    yield chunk
        finally:
            self.ended += 1


def test_only_what_is_sent_is_read(bucket, tmp_path):
    """Red when HEAD, or a client that has the file already, makes the server read it."""
    counted = Counted(bucket)
    with served(filled(counted, tmp_path)) as client:
        etag = client.head("/content").headers["etag"]
        assert client.get("/content", headers={"If-None-Match": etag}).status_code == 304
        assert client.get("/content", headers={"Range": "bytes=99999999-"}).status_code == 416
        assert counted.begun == 0
        assert client.get("/content", headers={"Range": "bytes=0-9"}).status_code == 206
        assert (counted.begun, counted.pieces) == (1, 1)


def test_a_client_that_goes_away_ends_the_read(bucket, tmp_path):
    """Red when the rest is read for nobody."""
    size = 1 << 30
    counted = Counted(bucket)
    app = filled(counted, tmp_path)
    os.truncate(tmp_path / "bucket" / file_key(JOB, 1, "video"), size)
    app.job.metadata["files"]["video"]["bytes"] = size
    with served(app) as client:
        with client.stream("GET", "/content") as answer:
            next(answer.iter_raw(1000))
        wait_for(lambda: counted.ended == 1)
    assert 0 < counted.pieces < size // object_store.CHUNK_BYTES
    assert app.metrics.broken_answers._value.get() == 0


def test_an_object_that_shrinks_breaks_the_answer(bucket, tmp_path):
    """Red when a part of a file is sent as all of it."""
    counted = Counted(bucket)
    app = filled(counted, tmp_path)

    async def shrink(key):
        await bucket.put(key, VIDEO[:-1], create=False)

    counted.before = shrink
    with served(app) as client:
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
            client.get("/content")
        assert app.metrics.broken_answers._value.get() == 1
        answer = client.get("/content")
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "files_lost")
        asyncio.run(bucket.delete(file_key(JOB, 1, "video")))
        assert client.get("/content").status_code == 410


def test_an_object_that_goes_before_it_is_read_is_lost(bucket, tmp_path):
    counted = Counted(bucket)
    counted.before = bucket.delete
    with served(filled(counted, tmp_path)) as client:
        for route in ROUTES:
            answer = client.get(route)
            assert (answer.status_code, answer.json()["error"]["code"]) == (410, "files_lost")


def test_a_store_that_fails_before_the_first_byte_is_said_to_be_away(bucket, tmp_path):
    """Red when it is the server's fault, or the connection breaks for nothing."""
    counted = Counted(bucket)

    async def fail(key):
        raise BucketError("away")

    counted.before = fail
    with served(filled(counted, tmp_path)) as client:
        for route in ROUTES:
            answer = client.get(route)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "files_unavailable"


def test_clients_are_sent_to_where_the_file_lies(s3, tmp_path, monkeypatch):
    set_environment(monkeypatch, s3.environment)
    bucket = open_bucket(f"{s3.url}/{tmp_path.name}")
    with served(filled(bucket, tmp_path, redirect=True)) as client:
        for route, content in zip(ROUTES, (VIDEO, PICTURE), strict=True):
            answer = client.get(route)
            assert answer.status_code == 302
            assert answer.headers["location"].startswith(f"{s3.endpoint}/videos/")
            assert answer.headers["cache-control"] == "no-store"
            assert "etag" not in answer.headers
            assert client.get(route, follow_redirects=True).content == content
            part = client.get(route, headers={"Range": "bytes=5-8"}, follow_redirects=True)
            assert (part.status_code, part.content) == (206, content[5:9])
            # A URL is signed for GET alone, and the page's policy lets it load nothing from there.
            assert client.head(route).status_code == 200
            page = client.get(route, headers={"Sec-Fetch-Site": "same-origin"})
            assert (page.status_code, page.content) == (200, content)
            assert client.get(route, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 302
        etag = client.head("/content").headers["etag"]
        assert client.get("/content", headers={"If-None-Match": etag}).status_code == 304
        assert client.get("/content", follow_redirects=True).headers["content-type"] == "video/mp4"


def test_our_command_line_follows_to_the_store_without_its_key(s3, tmp_path, monkeypatch):
    set_environment(monkeypatch, s3.environment)
    app = filled(open_bucket(f"{s3.url}/{tmp_path.name}"), tmp_path, redirect=True)
    with (
        served(app) as client,
        RemoteServer(str(client.base_url), key="a key", patience_seconds=1) as server,
        server.content(JOB, "video", {"Range": "bytes=5-8"}) as answer,
    ):
        assert (answer.status_code, answer.read()) == (206, VIDEO[5:9])
        assert str(answer.url).startswith(s3.endpoint)
        assert "authorization" not in answer.request.headers


def test_a_folder_sends_nobody_elsewhere(bucket, tmp_path):
    with served(filled(bucket, tmp_path, redirect=True)) as client:
        assert client.get("/content").status_code == 200


def test_a_store_that_dies_breaks_what_it_was_at_and_comes_back(s3, tmp_path, monkeypatch):
    set_environment(monkeypatch, s3.environment)
    monkeypatch.setitem(object_store.RETRIES, "max_retries", 1)
    bucket = open_bucket(f"{s3.url}/{tmp_path.name}")
    app = filled(bucket, tmp_path)
    large = os.urandom(1 << 20) * 64
    key = file_key(JOB, 1, "video")
    asyncio.run(bucket.put(key, large, create=False))
    app.job.metadata["files"]["video"]["bytes"] = len(large)
    with served(app) as client:
        try:
            with client.stream("GET", "/content") as answer:
                pieces = answer.iter_raw(1000)
                next(pieces)
                s3.kill()
                with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
                    list(pieces)
            answer = client.get("/content")
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                503,
                "files_unavailable",
            )
            assert int(answer.headers["Retry-After"]) > 0
        finally:
            s3.restart()
        # It takes new objects before it finds all old ones again.
        wait_for(lambda: client.get("/content").status_code == 200)
        assert client.get("/content").content == large
