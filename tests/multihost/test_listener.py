"""Recorded sessions, changed lines, impostors and crowds, over real sockets in this process."""

import contextlib
import logging
import resource
import socket
import threading
import time

import pytest

from tests.multihost.running import free_port
from tests.server.running import wait_for
from wan_tpu.errors import MismatchError, ProcessLostError
from wan_tpu.multihost import listener
from wan_tpu.multihost.connection import connect_to_leader
from wan_tpu.multihost.group import ProcessGroup
from wan_tpu.multihost.join import join
from wan_tpu.multihost.listener import Listener
from wan_tpu.multihost.lockstep import run_in_step
from wan_tpu.multihost.messages import Begin, Cancel, Continue, End, Heartbeat, Hello, encode

SECRET = "s" * 32
NONCE = b"ab" * 32
HELLO = b"wan-tpu-slice/1 hello 1 2 " + NONCE + b"\n"
PROOF = b"wan-tpu-slice/1 proof " + NONCE + b"\n"
CHALLENGE = b"wan-tpu-slice/1 challenge " + NONCE + b"\n"


def group_at(port, process_id, secret=SECRET):
    return ProcessGroup(
        num_processes=2, process_id=process_id, host="127.0.0.1", port=port, secret=secret
    )


class Listening:
    """Process 0's listener, and whom it has taken in."""

    def __init__(self, secret=SECRET):
        self.port = free_port()
        self.taken, self.denied = [], []
        self.listener = Listener(
            group_at(self.port, 0, secret),
            on_process=lambda connection, hello: self.taken.append((connection, hello)),
            on_denied=self.denied.append,
        )

    def connect(self, source="127.0.0.1"):
        return socket.create_connection(("127.0.0.1", self.port), source_address=(source, 0))

    def join_with(self, secret=SECRET):
        """A process that comes in as a follower does."""
        connection = connect_to_leader(group_at(self.port, 1, secret), 5)
        connection.send(Hello(process_id=1, num_processes=2, machine="b"))
        return connection

    def close(self):
        self.listener.close()
        for connection, _ in self.taken:
            connection.close()


@pytest.fixture
def listening():
    found = Listening()
    yield found
    found.close()


def is_hung_up(client, timeout=5):
    """Whether the other end ends the connection, whatever it says before."""
    client.settimeout(timeout)
    try:
        while client.recv(4096):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def test_who_proves_himself_is_taken_in(listening):
    connection = listening.join_with()
    wait_for(lambda: listening.taken)
    assert listening.taken[0][1] == Hello(process_id=1, num_processes=2, machine="b")
    connection.close()


def test_another_secret_is_said_on_both_sides(listening, caplog):
    with pytest.raises(MismatchError) as caught:
        listening.join_with("o" * 32)
    assert "do not have the same secret" in str(caught.value)
    assert "WAN_TPU_GROUP_SECRET_FILE" in str(caught.value)
    wait_for(lambda: listening.denied == ["127.0.0.1"])
    assert "127.0.0.1 could not prove the slice's secret: it says it is process 1" in caplog.text
    assert listening.taken == []


@pytest.mark.parametrize(
    "said",
    [
        HELLO + PROOF,
        HELLO + b"x" * 300,
        b"x" * 300,
        PROOF,
        b"\n" * 1000,
        b"[" * 200 + b"\n",
        encode(Hello(process_id=1, num_processes=2, machine="b")),
        HELLO.replace(b" 1 2 ", b" 99999999999999999999 2 "),
    ],
)
def test_who_says_something_else_is_hung_up_on(listening, said):
    with listening.connect() as client:
        client.sendall(said)
        assert is_hung_up(client)
    listening.join_with().close()
    wait_for(lambda: listening.taken)


def test_all_that_is_said_has_one_deadline(listening, monkeypatch):
    """Red when each byte has its own."""
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 1.0)
    began = time.monotonic()
    with listening.connect() as client:
        client.settimeout(0.1)
        for byte in HELLO:
            with contextlib.suppress(TimeoutError):
                try:
                    client.sendall(bytes([byte]))
                    if not client.recv(1):
                        break
                except ConnectionError:
                    break
        else:
            raise AssertionError("it was listened to for ever")
    assert time.monotonic() - began < 5


def test_who_proves_himself_and_says_no_more_has_it_too(listening, monkeypatch):
    monkeypatch.setattr(listener, "HANDSHAKE_SECONDS", 1.0)
    connection = connect_to_leader(group_at(listening.port, 1), 5)
    heard = threading.Thread(target=connection.listen, args=(print,))
    heard.start()
    heard.join(10)
    assert not heard.is_alive()
    connection.close()
    assert listening.taken == []


def test_a_crowd_of_one_address_keeps_nobody_of_another_out(listening):
    """Red when who comes last is turned away, or who came first without a look at the others."""
    other = listening.connect("127.0.0.2")  # one that is slow to speak
    other.sendall(HELLO[:10])
    crowd = [listening.connect() for _ in range(150)]
    wait_for(lambda: sum(is_hung_up(each, 0.01) for each in crowd) >= 150 - 67)
    listening.join_with().close()
    wait_for(lambda: listening.taken)
    other.sendall(HELLO[10:])
    other.settimeout(5)
    assert other.recv(4096).startswith(b"wan-tpu-slice/1 challenge ")
    for each in (other, *crowd):
        each.close()


def test_log_lines_on_unauthenticated_clients_are_few(listening, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(60):
        with listening.connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert is_hung_up(client)
        with contextlib.suppress(MismatchError):
            listening.join_with("o" * 32)
    assert len(caplog.records) <= 4, caplog.text
    assert (
        "is no process of this slice: not a line of this protocol: b'GET / HTTP/1.1\\r\\n'"
        in caplog.text
    )


def test_without_a_free_descriptor_it_waits_for_one(listening, caplog):
    """Red when the thread ends, or asks again and again without a rest."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as waiting:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
        try:
            waiting.connect(("127.0.0.1", listening.port))
            wait_for(lambda: "nobody can connect for a moment: Too many open" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
        waiting.sendall(HELLO)
        waiting.settimeout(10)
        assert waiting.recv(4096).startswith(b"wan-tpu-slice/1 challenge ")
    assert caplog.text.count("nobody can connect") == 1


def test_after_the_end_nobody_listens(listening):
    waiting = listening.connect()
    listening.listener.close()
    assert is_hung_up(waiting)
    waiting.close()
    with pytest.raises(ConnectionRefusedError):
        wait_for(lambda: listening.connect().close(), seconds=5)


class Relay:
    """Between a follower and process 0: records what the follower sent, and may change lines."""

    def __init__(self, port):
        self.recorded = b""
        self.change = lambda line: line
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        with self._server:
            follower, _ = self._server.accept()
        leader = socket.create_connection(("127.0.0.1", self._to))
        passing = threading.Thread(target=self._pass, args=(follower, leader), daemon=True)
        passing.start()
        with leader.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                follower.sendall(self.change(line))
        self._end(follower, leader)
        passing.join()
        follower.close()
        leader.close()

    def _pass(self, follower, leader):
        with contextlib.suppress(OSError):
            while part := follower.recv(4096):
                self.recorded += part
                leader.sendall(part)
        self._end(follower, leader)

    def _end(self, *both):
        for each in both:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Relayed:
    """Process 0 and one follower that connects through a relay."""

    def __init__(self):
        self.port = free_port()
        self.relay = Relay(self.port)
        self.lost = {0: [], 1: []}
        self.processes = {}
        threads = [
            threading.Thread(target=self._join, args=(group_at(port, number),))
            for number, port in ((0, self.port), (1, self.relay.port))
        ]
        for thread in threads:
            thread.start()
            wait_for(lambda: self.is_listening())
        for thread in threads:
            thread.join()

    def is_listening(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True

    def _join(self, group):
        def lose(message):
            self.lost[group.process_id].append(message)
            if not group.leads:  # it would end now
                self.processes[1]._connection.close()

        self.processes[group.process_id], _ = join(group, dict, on_lost=lose, on_stop=lambda: None)


def go_on(times, reached):
    def make(task, should_stop):
        for _ in range(times):
            if should_stop():
                reached.append("stopped")
                return
            reached.append("went on")

    return make


def test_a_recorded_session_is_refused():
    pair = Relayed()
    assert pair.relay.recorded.count(b"\n") > 3
    with socket.create_connection(("127.0.0.1", pair.port)) as client:
        client.sendall(pair.relay.recorded)
        heard = b""
        with contextlib.suppress(ConnectionError):
            while part := client.recv(4096):
                heard += part
    assert b"{" not in heard
    reached = []
    follower = threading.Thread(
        target=run_in_step, args=(pair.processes[1], None, go_on(2, reached))
    )
    follower.start()
    run_in_step(pair.processes[0], {}, go_on(2, []))
    follower.join()
    assert reached == ["went on"] * 2
    assert pair.lost == {0: [], 1: []}
    pair.processes[0].close()


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line * 2,
        lambda line: line.replace(b"Continue", b"Cancel"),
        lambda line: b"",
        lambda line: encode(Cancel()) + line,
        lambda line: b"0" * 64 + b" " + encode(Cancel()) + line,
    ],
    ids=["twice", "another", "left out", "unsigned", "wrongly signed"],
)
def test_a_line_that_process_0_did_not_say_is_not_obeyed(change):
    """The connection is open and trusted; somebody on the way changes one message in it."""
    pair = Relayed()
    pair.relay.change = lambda line: change(line) if b'"Continue"' in line else line
    reached = []

    def follow():
        run_in_step(pair.processes[1], None, go_on(3, reached))

    threading.Thread(target=follow, daemon=True).start()
    threading.Thread(
        target=run_in_step, args=(pair.processes[0], {}, go_on(3, [])), daemon=True
    ).start()
    wait_for(lambda: pair.lost[1])
    assert pair.lost[1][0].startswith(
        "process 0 sent something malformed: a line that the other end has not"
    )
    assert "stopped" not in reached
    assert len(reached) <= 1
    wait_for(lambda: pair.lost[0])
    assert "process 1 (" in pair.lost[0][0]


ORDERS = b"".join(
    encode(message)
    for message in (
        Heartbeat(),
        Begin(job=1, task={"prompt": "do it"}),
        Continue(),
        End(failure=""),
    )
)


@pytest.mark.parametrize(
    "answers",
    [
        (CHALLENGE, PROOF + ORDERS),
        (CHALLENGE + PROOF + ORDERS,),
        (CHALLENGE, None),
        (CHALLENGE, b"wan-tpu-slice/1 denied\n"),
        (ORDERS,),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n",),
        (b"x" * 10_000,),
    ],
    ids=["proof", "at once", "the follower's own", "denied", "orders", "http", "long"],
)
def test_who_answers_in_place_of_process_0_is_not_obeyed(answers):
    """Nor is he told which machine this is."""
    heard = []

    def answer():
        with server:
            follower, _ = server.accept()
        with follower, contextlib.suppress(OSError):
            for words in answers:
                heard.append(follower.recv(4096))
                follower.sendall(heard[-1] if words is None else words)
            while part := follower.recv(4096):
                heard.append(part)

    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    impostor = threading.Thread(target=answer)
    impostor.start()
    began = time.monotonic()
    with pytest.raises(MismatchError):
        join(group_at(port, 1), dict, on_lost=print, on_stop=print, join_seconds=60)
    assert time.monotonic() - began < 30, "at once, not at the end of the patience"
    impostor.join()
    said = b"".join(heard)
    assert socket.gethostname().encode() not in said.replace(b"wan-tpu-slice/1 ", b"")
    assert b"{" not in said


@pytest.mark.parametrize("speaks", [False, True])
def test_who_answers_and_never_ends_is_left(speaks, monkeypatch):
    """A byte now and then keeps no follower: there is one deadline for all of it."""
    ending = threading.Event()

    def answer(connected):
        with connected, contextlib.suppress(OSError):
            while not ending.wait(0.05):
                if speaks:
                    connected.sendall(b"w")

    def accept():
        with contextlib.suppress(OSError):
            while not ending.is_set():
                connected, _ = server.accept()
                threading.Thread(target=answer, args=(connected,), daemon=True).start()

    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    group = group_at(server.getsockname()[1], 1)
    with pytest.raises(ProcessLostError, match="does not answer"):
        join(group, dict, on_lost=print, on_stop=print, join_seconds=1)
    ending.set()
    server.close()
