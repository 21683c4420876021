"""An unauthenticated client gets nothing and costs next to nothing.

Real processes and sockets; the engine is the scripted one.
"""

import contextlib
import json
import re
import selectors
import socket
import time

import psutil
import pytest

from tests.server.running import wait_for

SECRET = "correct horse battery staple of a slice"
NONCE = "ab" * 32
HELLO = b"wan-tpu-slice/1 hello 1 2 " + NONCE.encode() + b"\n"
PROOF = b"wan-tpu-slice/1 proof " + NONCE.encode() + b"\n"


def message(kind, **fields):
    return json.dumps({"kind": kind, **fields}).encode() + b"\n"


def plain_hello(process_id=1, machine=None):
    """A member's first line, as it is said between processes that trust each other."""
    machine = socket.gethostname() if machine is None else machine
    return message("Hello", process_id=process_id, num_processes=2, machine=machine)


@pytest.fixture
def secret_file(tmp_path):
    file = tmp_path / "group.secret"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    return file


def address_of(found):
    host, _, port = found.coordinator.partition(":")
    return host, int(port)


def tell(found, *lines):
    """What a client receives that sends these lines, each after the answer to the one before."""
    heard = b""
    client = socket.create_connection(address_of(found), timeout=60)
    with client, contextlib.suppress(OSError):  # it may hang up on us before we are done
        for line in lines:
            client.sendall(line)
            heard += client.recv(1 << 16)
        client.shutdown(socket.SHUT_WR)
        while part := client.recv(1 << 16):
            heard += part
    return heard


def assert_tells_nothing(heard):
    assert socket.gethostname().encode() not in heard
    for word in (b"identity", b"settings", b"versions", b"{", b"Refused", b"Welcome", b"Begin"):
        assert word not in heard, heard


def identity_lines():
    differs = message("Identified", identity={"versions": {"python": "2.7"}})
    return (differs, message("Loaded"), message("Position", job=0, barrier=0, stage=""))


def test_a_client_before_process_1_gets_nothing(start_slice, secret_file):
    """It would learn from a refusal what to send next time, and then be sent every prompt."""
    found = start_slice(2, started=(0,), group_secret_file=secret_file, join_timeout_seconds=120)
    wait_for(lambda: (r := found.ask("/readyz")) is not None and "process 1 of 2" in r.text)
    for lines in (
        (plain_hello() + b"".join(identity_lines()),),
        (HELLO, PROOF, plain_hello(), *identity_lines()),
        (HELLO, plain_hello() + b"".join(identity_lines())),
    ):
        assert_tells_nothing(tell(found, *lines))
    found.start_process(1)
    found.wait_ready()
    done = found.finish(found.create("a confidential product launch", num_inference_steps=3))
    assert done["status"] == "completed"
    assert found.statuses(0) == []


def test_one_line_does_not_end_the_slice(start_slice, secret_file):
    """Whoever knows a machine's name could say that its process was started anew."""
    found = start_slice(2, group_secret_file=secret_file).wait_ready()
    video = found.create("slow", num_inference_steps=10)
    found.wait_step(video, 1)
    for lines in (
        (plain_hello(),),
        (plain_hello(machine="elsewhere"),),
        (HELLO, PROOF),
        (HELLO, PROOF, plain_hello()),
        (HELLO, b"0" * 64 + b" " + plain_hello()),
    ):
        for _ in range(3):
            assert_tells_nothing(tell(found, *lines))
    assert found.finish(video)["status"] == "completed"
    assert found.statuses(0) == found.statuses(1) == []


def test_another_secret_on_one_host_is_said_on_both(start_slice, secret_file, tmp_path):
    """Within seconds, and the others go on once it has the right one."""
    other = tmp_path / "other.secret"
    other.write_text("another secret of more than 32 characters\n")
    other.chmod(0o600)
    of_process = {1: {"group_secret_file": other}}
    found = start_slice(
        2, group_secret_file=secret_file, of_process=of_process, join_timeout_seconds=170
    )
    assert found.wait_ended(1) == [1]
    line = f"process 0 at {found.coordinator} and this process do not have the same secret"
    assert line in found.log(1)
    assert "Traceback" not in found.log(1)
    said = "127.0.0.1 could not prove the slice's secret"
    found.wait_log(f"{said}: it says it is process 1; does it have the same WAN_TPU_GROUP_SECRET")
    wait_for(lambda: said in found.ask("/readyz").text)
    other.write_text(secret_file.read_text())
    found.wait_ready()
    assert found.statuses(0) == []
    assert SECRET not in found.log() + found.log(1)


class Crowd:
    """Clients of every kind, up to a number: one that is disconnected comes again."""

    def __init__(self, address, count):
        self.address = address
        self.came = 0
        self._count = count
        self._selector = selectors.DefaultSelector()
        self._next_byte = 0.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def press(self):
        """Fills the crowd up; the slow ones say another byte once a second."""
        while len(self._selector.get_map()) < self._count:
            self._come()
        is_time = time.monotonic() > self._next_byte
        if is_time:
            self._next_byte = time.monotonic() + 1
        for key, _ in self._selector.select(0):
            with contextlib.suppress(BlockingIOError):
                self._leave_if_hung_up(key.fileobj)
        for key in list(self._selector.get_map().values()) if is_time else ():
            if key.data == "slow":
                with contextlib.suppress(OSError):
                    key.fileobj.send(b"w")

    def _come(self):
        kind = ("silent", "slow", "rubbish", "plain", "proof")[self.came % 5]
        client = socket.create_connection(self.address, timeout=60)
        self.came += 1
        client.setblocking(False)
        said = {
            "rubbish": b"\0\xff" * 50_000,
            "plain": plain_hello(process_id=7),
            "proof": HELLO,
        }
        with contextlib.suppress(OSError):
            client.send(said.get(kind, b"w"))
        self._selector.register(client, selectors.EVENT_READ, kind)

    def _leave_if_hung_up(self, client):
        try:
            is_gone = not client.recv(1 << 16)
        except ConnectionError:
            is_gone = True
        if is_gone:
            self._selector.unregister(client)
            client.close()


def test_four_hundred_unauthenticated_clients(start_slice, secret_file):
    """The process that owns the devices stays small, and the slice forms and works all the same."""
    found = start_slice(2, started=(0,), group_secret_file=secret_file, join_timeout_seconds=170)
    wait_for(lambda: (r := found.ask("/readyz")) is not None and "process 1 of 2" in r.text)
    (pid,) = found.engine_pids()
    engine = psutil.Process(pid)
    threads, descriptors = engine.num_threads(), engine.num_fds()
    most = [0, 0]

    def pressed(condition):
        def look():
            crowd.press()
            most[:] = max(most[0], engine.num_threads()), max(most[1], engine.num_fds())
            return condition()

        return look

    with Crowd(address_of(found), 400) as crowd:
        wait_for(pressed(lambda: crowd.came > 1000))
        found.start_process(1)
        wait_for(pressed(lambda: found.ask("/readyz").status_code == 200))
        video = found.create(num_inference_steps=5)
        ended = ("completed", "failed")
        wait_for(pressed(lambda: found.retrieve(video)["status"] in ended))
    assert found.retrieve(video)["status"] == "completed"
    assert most[0] <= threads + 4, "a thread for process 1 and a few of the engine's own"
    assert most[1] <= descriptors + 80
    assert found.statuses(0) == found.statuses(1) == []
    lines = re.findall("logger=wan_tpu.multihost", found.log())
    assert len(lines) < 60, f"{len(lines)} lines for {crowd.came} clients"
