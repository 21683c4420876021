"""Buckets of every kind answer alike: real stores, and a folder."""

import asyncio
import contextlib
import datetime
import os
import sys
import traceback

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.oauth2 import service_account

from server.answered import answered
from server.errors import ApiError
from tests.server.files.test_full_disk import fill, mounted
from tests.server.running import wait_for
from wan_tpu.errors import MissingPackageError
from wan_tpu.storage import google_bucket, object_store
from wan_tpu.storage.bucket import (
    BucketError,
    BucketUrlError,
    ObjectMissing,
    check_bucket,
    open_bucket,
)

KINDS = ("folder", "s3", "gs")


def set_environment(monkeypatch, environment):
    for name in [name for name in os.environ if name.startswith(("AWS_", "STORAGE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=KINDS)
def bucket(request, tmp_path, monkeypatch):
    """An empty one: a part of a store of the session's."""
    if request.param == "folder":
        return open_bucket(str(tmp_path / "a folder %"))
    server = request.getfixturevalue(request.param)
    set_environment(monkeypatch, server.environment)
    return open_bucket(f"{server.url}/{tmp_path.name}/part")


def run(*steps):
    """Awaits steps at the same time; returns what each gave."""

    async def together():
        return await asyncio.gather(*steps)

    return asyncio.run(together())


async def read(bucket, key, start, end):
    return b"".join([chunk async for chunk in bucket.stream(key, start, end)])


def test_objects_are_written_read_listed_and_removed(bucket, tmp_path):
    data = bytes(range(256)) * 4096
    (tmp_path / "file").write_bytes(data)

    async def life():
        assert await bucket.list("") == []
        assert await bucket.head("a/b.mp4") is None
        assert await bucket.put("a/b.mp4", tmp_path / "file", media_type="video/mp4")
        assert await bucket.put("a/c", b"c")
        assert await bucket.put("ab", b"")
        assert await bucket.get("a/b.mp4") == data
        assert await bucket.get("ab") == b""
        assert await read(bucket, "a/b.mp4", 1000, 700_001) == data[1000:700_001]
        assert await read(bucket, "a/c", 0, 9) == b"c"
        stat = await bucket.head("a/b.mp4")
        assert (stat.key, stat.size) == ("a/b.mp4", len(data))
        assert abs(stat.modified - (tmp_path / "file").stat().st_mtime) < 600
        assert sorted(each.key for each in await bucket.list("a/")) == ["a/b.mp4", "a/c"]
        assert stat in await bucket.list("a/")
        await bucket.copy("a/b.mp4", "z/b")
        assert await bucket.get("z/b") == data
        assert await bucket.delete_all("a/") == 2
        assert await bucket.delete_all("a/") == 0
        await bucket.delete("ab")
        await bucket.delete("ab")
        assert [each.key for each in await bucket.list("")] == ["z/b"]

    asyncio.run(life())


def test_what_is_missing_is_said_to_be_missing(bucket):
    async def ask():
        for step in (
            bucket.get("nothing"),
            read(bucket, "nothing", 0, 1),
            bucket.copy("nothing", "b"),
        ):
            with pytest.raises(ObjectMissing, match="nothing"):
                await step

    asyncio.run(ask())


def test_of_two_writers_one_creates(bucket):
    """Red when an object that is there is written over."""
    wrote = run(*(bucket.put("race", bytes([i]) * 1000) for i in range(6)))
    assert sorted(wrote) == [False] * 5 + [True]
    assert run(bucket.get("race")) == [bytes([wrote.index(True)]) * 1000]
    assert run(bucket.put("race", b"anew", create=False)) == [True]
    assert run(bucket.get("race")) == [b"anew"]


def test_large_files_are_created_in_parts(bucket, tmp_path, monkeypatch):
    """The same promise where the content is not held in memory.

    One after the other: at the end of a copy in parts SeaweedFS asks for the name before it writes,
    and of 60 pairs at the same moment one found both created.
    """
    monkeypatch.setattr(object_store, "SINGLE_BYTES", 1000)
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * (6 << 20))
    wrote = [run(bucket.put("race", tmp_path / name))[0] for name in "ab"]
    assert wrote == [True, False]
    assert run(bucket.get("race")) == [b"a" * (6 << 20)]
    assert [each.key for each in run(bucket.list(""))[0]] == ["race"]


def test_a_signed_url_gives_ranges_to_anyone(bucket):
    run(bucket.put("a/video", bytes(range(100)), media_type="video/mp4"))
    (url,) = run(bucket.url("a/video", 60))
    if not bucket.name.startswith("s3:"):
        assert url is None
        return
    answer = httpx.get(url, headers={"Range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, bytes(range(10, 20)))
    assert answer.headers["content-type"] == "video/mp4"
    assert httpx.get(url.replace("a/video", "a/other")).status_code == 403


def test_google_signs_with_a_key_file(gs, monkeypatch):
    """The emulator takes any signature: that it is one that holds only Google can say."""
    set_environment(monkeypatch, gs.environment)
    bucket = open_bucket(f"{gs.url}/signed")
    run(bucket.put("a b.mp4", bytes(range(100)), media_type="video/webm"))
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    bucket._signer = service_account.Credentials.from_service_account_info(
        {"client_email": "a@b.example", "token_uri": gs.endpoint, "private_key": pem.decode()}
    )
    (url,) = run(bucket.url("a b.mp4", 60))
    assert "X-Goog-Expires=60" in url
    answer = httpx.get(url, headers={"Range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, bytes(range(10, 20)))
    assert answer.headers["content-type"] == "video/webm"


def test_a_bucket_is_tried_before_it_is_used(bucket):
    run(check_bucket(bucket, redirect=bucket.name.startswith("s3:")))
    assert run(bucket.list("")) == [[]]
    if not bucket.name.startswith("s3:"):
        with refused("WAN_TPU_FILES_REDIRECT needs signed URLs"):
            run(check_bucket(bucket, redirect=True))


def test_a_store_that_writes_over_is_refused(tmp_path, monkeypatch):
    """As one does that ignores If-None-Match."""
    bucket = open_bucket(str(tmp_path))
    put = bucket.put
    monkeypatch.setattr(bucket, "put", lambda key, data: put(key, data, create=False))
    with refused("must know If-None-Match"):
        run(check_bucket(bucket, redirect=False))


def message_of(error):
    """The one line that a user reads; the secret is not in what a log shows of it either."""
    text = "".join(traceback.format_exception(error))
    assert "secret" not in text
    assert "\n" not in str(error)
    return str(error)


@contextlib.contextmanager
def refused(*words):
    with pytest.raises(BucketError) as caught:
        yield
    message = message_of(caught.value)
    for each in words:
        assert each in message, message


def everything(bucket):
    """Each thing that can be asked of a bucket."""
    return (
        lambda: bucket.put("a/b", b"c"),
        lambda: bucket.get("a/b"),
        lambda: read(bucket, "a/b", 0, 1),
        lambda: bucket.head("a/b"),
        lambda: bucket.list("a/"),
        lambda: bucket.delete("a/b"),
        lambda: bucket.delete_all("a/"),
        lambda: bucket.copy("a/b", "c"),
    )


def test_wrong_s3_credentials_are_named(s3, monkeypatch):
    wrong = {"AWS_SECRET_ACCESS_KEY": "a secret"}
    set_environment(monkeypatch, s3.environment | wrong)
    for step in everything(open_bucket(s3.url)):
        with refused(s3.url, "credentials"):
            run(step())
    with refused("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"):
        run(open_bucket(s3.url).put("a", b""))
    set_environment(monkeypatch, s3.environment | {"AWS_ACCESS_KEY_ID": "nobody"})
    with refused("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"):
        run(open_bucket(s3.url).list(""))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with refused("set together"):
        open_bucket(s3.url)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # No machine's role is asked for: this one may have one.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://169.254.1.1:1")
    monkeypatch.setitem(object_store.RETRIES, "max_retries", 0)
    with refused("there are no credentials", "AWS_ACCESS_KEY_ID"):
        run(open_bucket(s3.url).list(""))


def test_what_s3_does_not_let_us_do_is_said(s3, monkeypatch):
    set_environment(monkeypatch, s3.environment)
    run(open_bucket(s3.url).put("kept", b"k"))
    set_environment(monkeypatch, s3.reader)
    bucket = open_bucket(s3.url)
    assert run(bucket.get("kept")) == [b"k"]
    for step in (bucket.put("a", b""), bucket.delete("kept"), bucket.copy("kept", "a")):
        with refused("does not let these credentials", "AccessDenied"):
            run(step)
    set_environment(monkeypatch, s3.environment)
    with refused("no bucket nowhere", "WAN_TPU_FILES"):
        run(open_bucket("s3://nowhere").list(""))
    with refused("no bucket nowhere", "WAN_TPU_FILES"):
        run(open_bucket("s3://nowhere").get("a"))


def test_a_store_that_is_away_is_said_to_be(monkeypatch, s3):
    monkeypatch.setitem(object_store.RETRIES, "max_retries", 1)
    set_environment(monkeypatch, s3.environment | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    for step in everything(open_bucket(s3.url)):
        with refused("127.0.0.1:1 cannot be reached", "AWS_ENDPOINT_URL"):
            run(step())


def test_what_google_does_not_find_is_said(gs, monkeypatch, tmp_path):
    set_environment(monkeypatch, gs.environment)
    nowhere = open_bucket("gs://nowhere")
    for step in (nowhere.list(""), nowhere.put("a", b""), check_bucket(nowhere, redirect=False)):
        with refused("gs://nowhere: there is no bucket nowhere", "WAN_TPU_FILES"):
            run(step)
    monkeypatch.setattr(google_bucket, "RETRY", google_bucket.RETRY.with_timeout(0.1))
    set_environment(monkeypatch, {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:1"})
    for step in everything(open_bucket(gs.url)):
        with refused("http://127.0.0.1:1 cannot be reached"):
            run(step())
    set_environment(monkeypatch, {"NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": str(tmp_path)})
    with refused("gs://videos: there are no credentials", "GOOGLE_APPLICATION_CREDENTIALS"):
        open_bucket(gs.url)


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_store_that_is_killed_loses_nothing(kind, request, tmp_path, monkeypatch):
    """What is under way fails in one line, or waits until the store is back."""
    server = request.getfixturevalue(kind)
    set_environment(monkeypatch, server.environment)
    patient = impatient = open_bucket(f"{server.url}/{tmp_path.name}")
    if kind == "s3":
        monkeypatch.setitem(object_store.RETRIES, "max_retries", 1)
        impatient = open_bucket(f"{server.url}/{tmp_path.name}")
        forever = {"max_retries": 1000, "retry_timeout": datetime.timedelta(seconds=180)}
        monkeypatch.setattr(object_store, "RETRIES", object_store.RETRIES | forever)
        patient = open_bucket(f"{server.url}/{tmp_path.name}")
    retry = google_bucket.RETRY
    large = os.urandom(1 << 20) * 24

    async def strike():
        assert await patient.put("kept", b"k" * 100_000)
        assert await patient.put("large", large)
        read_on = patient.stream("large", 0, len(large))
        begin = await anext(read_on)
        server.freeze()
        monkeypatch.setattr(google_bucket, "RETRY", retry.with_timeout(0.1))
        under_way = [
            asyncio.ensure_future(step)
            for step in (impatient.put("new", b"n" * (4 << 20)), impatient.get("kept"))
        ]
        await asyncio.to_thread(wait_for, lambda: connections_to(server) >= 2)
        server.kill()
        for step in under_way:
            with refused("cannot be reached"):
                await step
        monkeypatch.setattr(google_bucket, "RETRY", retry.with_timeout(180))
        under_way = [
            asyncio.ensure_future(step)
            for step in (patient.put("late", b"l"), patient.get("kept"), patient.list(""))
        ]
        await asyncio.to_thread(server.restart)
        wrote, kept, listed = await asyncio.gather(*under_way)
        assert (wrote, kept) == (True, b"k" * 100_000)
        assert begin + b"".join([chunk async for chunk in read_on]) == large
        assert "kept" in [each.key for each in listed]
        assert "new" not in [each.key for each in listed]
        assert await impatient.put("new", b"n") is True

    try:
        asyncio.run(strike())
    finally:
        if not server.is_running:
            server.restart()


def connections_to(server):
    port = int(server.endpoint.rpartition(":")[2])
    lines = psutil.Process().net_connections("tcp")
    return sum(1 for line in lines if line.raddr and line.raddr.port == port)


def test_a_folder_on_a_full_disk_says_so(tmp_path, monkeypatch):
    """Red when it is taken for a folder that nobody may write, or a part for an object."""
    with mounted(tmp_path / "disk", "8m") as disk:
        bucket = open_bucket(f"file://{disk}/files")
        run(bucket.put("a/kept", b"k" * 1000))
        fill(disk)
        for limit in (object_store.SINGLE_BYTES, 1000):
            monkeypatch.setattr(object_store, "SINGLE_BYTES", limit)
            with refused("No space left on device; make room there"):
                run(bucket.put("a/new", b"n" * 100_000))
            with pytest.raises(ApiError) as caught, answered():
                run(bucket.put("a/new", b"n" * 100_000))
            assert caught.value.code == "disk_full"
        assert [each.key for each in run(bucket.list(""))[0]] == ["a/kept"]
        assert run(bucket.get("a/kept")) == [b"k" * 1000]
        assert run(bucket.delete_all("a/")) == [1]
        (disk / "filler").unlink()
        assert run(bucket.put("a/new", b"n" * 100_000)) == [True]


def test_http_in_the_clear_is_meant_or_refused(monkeypatch):
    set_environment(monkeypatch, {"AWS_ENDPOINT_URL": "http://user:a-secret@192.0.2.1:9000"})
    with refused("AWS_ENDPOINT_URL is http://192.0.2.1:9000", "AWS_ALLOW_HTTP=true"):
        open_bucket("s3://videos")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    assert open_bucket("s3://videos/part/").name == "s3://videos/part"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "192.0.2.1:9000")
    with refused("written https://HOST"):
        open_bucket("s3://videos")


@pytest.mark.parametrize(
    "url",
    ["https://a/b", "az://a/b", "s3://", "s3://a:secret@b/c", "s3://a/b?secret", "s3://a/../b",
     "s3://a/b//c", "file://host/folder", ""],
)  # fmt: skip
def test_what_is_no_bucket_is_refused(url):
    with pytest.raises(BucketUrlError) as caught:
        open_bucket(url)
    assert "WAN_TPU_FILES" in message_of(caught.value)


@pytest.mark.parametrize(
    ("url", "package", "module"),
    [("s3://videos", "obstore", "object_store"), ("gs://videos", "google.auth", "google_bucket")],
)
def test_a_package_that_is_missing_is_named(url, package, module, monkeypatch):
    monkeypatch.delitem(sys.modules, f"wan_tpu.storage.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=f"{package}: pip install 'wan_tpu") as caught:
        open_bucket(url)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with refused(f"cannot use the folder {tmp_path / 'file'}", "WAN_TPU_FILES"):
        open_bucket(str(tmp_path / "file"))
    with refused("cannot use the folder /proc/none", "WAN_TPU_FILES"):
        open_bucket("file:///proc/none")
    assert open_bucket(f"file://{tmp_path}/a%20b").name == str(tmp_path / "a b")


def test_what_a_writer_left_unfinished_goes_with_the_rest_of_a_folder(tmp_path):
    bucket = open_bucket(str(tmp_path))
    run(bucket.put("a/b", b"c"))
    (tmp_path / "a" / "b#1").write_bytes(b"half")
    assert [each.key for each in run(bucket.list(""))[0]] == ["a/b"]
    assert run(bucket.delete_all("a/")) == [1]
    assert not (tmp_path / "a").exists()
