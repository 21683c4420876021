"""Messages and binary frames over a signed connection; a pair of sockets in this process."""

import contextlib
import socket
import threading
import time

import pytest

from wan_tpu import media
from wan_tpu.errors import MediaError
from wan_tpu.media import Media, digest_of
from wan_tpu.multihost.connection import FRAME_BYTES, Connection
from wan_tpu.multihost.handshake import Signer
from wan_tpu.multihost.messages import Continue, Heartbeat, encode
from wan_tpu.multihost.transfer import Incoming, frames_of

KEY, OTHER = b"k" * 32, b"o" * 32


class Ends:
    """Two ends of a connection; what the second one receives is in `received`."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.raw = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
        self.first = Connection(self.raw, signer=Signer(KEY), verifier=Signer(OTHER))
        self.second = Connection(accepted, signer=Signer(OTHER), verifier=Signer(KEY))
        self.received = []

    def listen(self):
        """Until the first end is closed."""
        self.first.close()
        self.second.listen(self.received.append)


@pytest.fixture
def ends():
    both = Ends()
    yield both
    both.first.close()
    both.second.close()


def test_frames_and_messages_come_in_their_order(ends):
    sent = [b"", b"\n", b"=5\n", b"{}\n" * 100, bytes(100)]
    for data in sent:
        ends.first.send_frame(data)
        ends.first.send(Continue())
    ends.listen()
    assert ends.received == [part for data in sent for part in (data, Continue())]


def test_a_frame_may_come_in_pieces(ends):
    data = bytes(range(256)) * (FRAME_BYTES // 256)
    sending = threading.Thread(target=lambda: (ends.first.send_frame(data), ends.first.close()))
    sending.start()
    ends.second.listen(ends.received.append)
    sending.join()
    assert ends.received == [data]


def signed(*contents, key=KEY):
    signer = Signer(key)
    return b"".join(signer.sign(content) for content in contents)


@pytest.mark.parametrize(
    "stream",
    [
        signed(b"=4\nabcd").replace(b"abcd", b"abcx"),
        signed(b"=4\nabcd").replace(b"=4", b"=3") + b"\n" * 100,
        signed(b"=4\nabcd", b"=4\nefgh").replace(b"abcd", b"efgh", 1),
        signed(b"=4\nabcd", key=OTHER),
        signed(b"=4\nabcd") + signed(b"=4\nabcd"),
        b"=4\nabcd",
        b"0" * 64 + b" =4\nabcd",
    ],
    ids=["changed", "shortened", "swapped", "another key", "replayed", "unsigned", "badly signed"],
)
def test_a_frame_that_the_other_end_has_not_sent(ends, stream):
    ends.raw.sendall(stream)
    with pytest.raises(ValueError, match="has not signed"):
        ends.listen()
    assert ends.received in ([], [b"abcd"])


def test_a_frame_that_is_too_large_is_not_waited_for(ends):
    ends.raw.sendall(b"0" * 64 + b" =%d\n" % (FRAME_BYTES + 1))
    with pytest.raises(ValueError, match=f"a frame of {FRAME_BYTES + 1} bytes, at most"):
        ends.second.listen(ends.received.append)


def test_a_connection_that_ends_in_a_frame_is_over(ends):
    ends.raw.sendall(signed(b"=4\nabcd")[:-1])
    ends.listen()
    assert ends.received == []


def test_a_heartbeat_does_not_wait_for_who_reads_nothing(ends):
    """Red when it is sent like any other message: the buffers of the kernel are full."""
    ends.raw.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ends.raw.send(bytes(1 << 16))
    ends.raw.setblocking(True)
    began = time.monotonic()
    ends.first.send_unless_busy(Heartbeat())
    sending = threading.Thread(target=ends.first.send_frame, args=(bytes(FRAME_BYTES),))
    sending.start()
    ends.first.send_unless_busy(Heartbeat())
    assert time.monotonic() - began < 1
    ends.second.close()
    sending.join()


def test_a_heartbeat_to_who_is_gone_is_dropped(ends):
    ends.first.close()
    ends.first.send_unless_busy(Heartbeat())


FIRST, SECOND = b"first" * 100_000, b"second"


def announced(contents):
    return {digest: len(data) for digest, data in contents.items()}


def test_what_was_announced_is_put_together():
    whole = Media.of(FIRST, SECOND, b"")
    incoming = Incoming(announced(whole))
    for frame in frames_of(whole):
        assert not incoming.is_complete
        assert len(frame) <= FRAME_BYTES
        incoming.add(bytes(frame))
    assert incoming.is_complete
    assert dict(incoming.media()) == dict(whole)


def test_bytes_of_another_digest_are_named():
    incoming = Incoming({digest_of(b"right"): 5})
    incoming.add(b"wrong")
    with pytest.raises(MediaError) as caught:
        incoming.media()
    assert digest_of(b"right") in str(caught.value)
    assert digest_of(b"wrong") in str(caught.value)


def test_more_than_was_announced_is_refused():
    incoming = Incoming({digest_of(SECOND): len(SECOND)})
    with pytest.raises(ValueError, match="a frame of 7 bytes where 6 are missing"):
        incoming.add(SECOND + b"x")


@pytest.mark.parametrize("size", [-1, True, "6", 1.5, None])
def test_sizes_are_whole_numbers(size):
    with pytest.raises(ValueError, match="sizes of pictures that are none"):
        Incoming({digest_of(SECOND): size})


def test_a_follower_holds_no_more_than_a_request_may_carry(monkeypatch):
    monkeypatch.setattr(media, "MAX_MEDIA_BYTES", 5)
    with pytest.raises(ValueError, match="have 6 bytes together, at most 5 are taken"):
        Incoming({digest_of(SECOND): 6})


def test_no_message_looks_like_a_frame():
    """A line is a frame's by its first character after the signature."""
    assert encode(Continue())[:1] == b"{"
