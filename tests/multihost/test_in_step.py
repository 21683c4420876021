"""A leader and followers in threads, where a single message or a missing heartbeat decides."""

import threading

import pytest

from tests.multihost.running import free_port
from tests.server.running import wait_for
from wan_tpu.errors import Cancelled, MediaError, WanTpuError
from wan_tpu.media import NO_MEDIA, Media, digest_of
from wan_tpu.multihost import follower, health, leader
from wan_tpu.multihost.connection import FRAME_BYTES
from wan_tpu.multihost.group import ProcessGroup
from wan_tpu.multihost.join import join
from wan_tpu.multihost.lockstep import run_in_step


class Pair:
    """Process 0 and one follower; what they would end for is in `lost`."""

    def __init__(self):
        self.lost = []
        port = free_port()
        groups = [
            ProcessGroup(num_processes=2, process_id=number, host="127.0.0.1", port=port)
            for number in (0, 1)
        ]
        self.processes = [None, None]
        threads = [threading.Thread(target=self._join, args=(group,)) for group in groups]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _join(self, group):
        self.processes[group.process_id], _ = join(
            group, dict, on_lost=self.lost.append, on_stop=lambda: None
        )

    def run(self, *makes, task=None, media=NO_MEDIA, asked=lambda: False):
        """Each makes its own of one job; returns what each gives or raises."""
        found = [None, None]

        def run_one(number):
            given = (task or {}) if number == 0 else None
            try:
                found[number] = run_in_step(
                    self.processes[number], given, makes[number], media=media, asked=asked
                )
            except Exception as error:  # noqa: BLE001 - what it is, the test asks
                found[number] = error

        thread = threading.Thread(target=run_one, args=(1,))
        thread.start()
        run_one(0)
        thread.join()
        return found


@pytest.fixture
def pair():
    both = Pair()
    yield both
    both.processes[0].close()


def asks(times):
    def make(task, should_stop):
        for _ in range(times):
            if should_stop():
                raise Cancelled
        return task

    return make


def fails_after(times):
    def make(task, should_stop):
        asks(times)(task, should_stop)
        raise OSError("No space left on device")

    return make


def test_the_task_is_process_0_s(pair):
    assert pair.run(asks(3), asks(3), task={"seed": 7}) == [{"seed": 7}, {"seed": 7}]
    assert pair.processes[0].account()["messages"] == 3 + 2


def test_the_others_are_not_asked(pair):
    first, second = pair.run(asks(3), asks(3), asked=lambda: True)
    assert isinstance(first, Cancelled)
    assert isinstance(second, Cancelled)
    assert pair.run(asks(1), asks(1)) == [{}, {}]


def test_a_failure_of_process_0_is_told_to_the_others(pair):
    first, second = pair.run(fails_after(2), asks(5))
    assert isinstance(first, OSError)
    assert type(second) is WanTpuError
    assert str(second) == "process 0 failed: OSError: No space left on device"
    assert pair.run(asks(1), asks(1)) == [{}, {}]
    assert pair.lost == []


def stops(pair, number, times, ask=lambda: ()):
    """Asks which of several videos end, so often; gives the answers."""

    def make(task, should_stop):
        return [list(pair.processes[number].stopped(ask)) for _ in range(times)]

    return make


def test_which_of_several_videos_end_is_one_decision(pair):
    asked = iter([(), {2, 0}, {1}])
    first = stops(pair, 0, 3, lambda: next(asked))
    second = stops(pair, 1, 3, lambda: {7})  # nobody asks a follower
    assert pair.run(first, second) == [[[], [0, 2], [1]]] * 2
    assert pair.lost == []


def test_a_failure_of_process_0_ends_several_videos_of_the_others(pair):
    first, second = pair.run(fails_after(2), stops(pair, 1, 5))
    assert isinstance(first, OSError)
    assert str(second) == "process 0 has left the job"
    assert pair.run(asks(1), asks(1)) == [{}, {}]
    assert pair.lost == []


def returns_media(pair, number):
    def make(task, should_stop):
        media = pair.processes[number].receive_media()
        should_stop()
        return dict(media)

    return make


@pytest.mark.parametrize(
    "contents",
    [
        (b"x",),
        (b"",),
        (b"\n" * (FRAME_BYTES + 1), b"=5\n{}"),
        (bytes(FRAME_BYTES), bytes(2 * FRAME_BYTES), b"", b"end"),
    ],
    ids=["one byte", "none", "line breaks", "whole frames"],
)
def test_every_process_gets_the_bytes_before_the_job(pair, contents):
    media = Media.of(*contents)
    both = [returns_media(pair, number) for number in (0, 1)]
    assert pair.run(*both, media=media) == [dict(media)] * 2
    assert pair.run(*both) == [{}, {}], "the next job has none"
    assert pair.lost == []


def test_bytes_of_another_digest_are_refused_by_the_follower(pair, monkeypatch):
    """As if the memory of process 0 were damaged: its own check is left out here."""
    media = Media.of(b"right")
    (digest,) = media
    media._contents[digest] = b"wrong"
    monkeypatch.setattr(health, "GRACE_SECONDS", 1.0)

    def waits(task, should_stop):
        wait_for(lambda: pair.lost)

    _, second = pair.run(waits, returns_media(pair, 1), media=media)
    assert isinstance(second, MediaError)
    assert str(second) == f"bytes that should be {digest} are {digest_of(b'wrong')}, 5 bytes"
    assert "failed where process 0 did not: MediaError: bytes that should be" in pair.lost[0]


def test_one_barrier_more_is_out_of_step(pair):
    """As if one process had compiled a program that the other had already."""

    def one_more(task, should_stop):
        return asks(3)(task, should_stop)

    pair.run(asks(2), one_more)
    assert len(pair.lost) == 1
    assert "process 1 (" in pair.lost[0]
    assert "fell out of step: it is stopped with job 1 at barrier 2" in pair.lost[0]


def test_after_a_compilation_no_heartbeat_is_waited_for(monkeypatch):
    """Red when a follower does not send by itself that it has compiled."""
    for module in (follower, health, leader):
        monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 5.0)
    pair = Pair()
    reached = []

    def compiles(number):
        def make(task, should_stop):
            for name in ("a", "b", "c"):
                should_stop()
                pair.processes[number].note(f"compile {name}", is_over=False)
                should_stop()
                pair.processes[number].note(f"compile {name}", is_over=True)
                reached.append(name)
            should_stop()
            return "ok"

        return make

    both = threading.Thread(target=lambda: reached.append(pair.run(compiles(0), compiles(1))))
    both.start()
    both.join(4.5)  # less than one heartbeat; it takes milliseconds
    assert reached[-1] == ["ok", "ok"], reached
    pair.processes[0].close()


def test_when_a_process_is_lost_process_0_sends_nothing_more(pair):
    """Red when it sends Stop all the same: the others would take their loss for a good end."""
    received = []
    pair.processes[1]._on_stop = lambda: received.append("stop")

    def hangs_up(task, should_stop):
        pair.processes[1]._connection.close()
        threading.Event().wait()

    waiting = threading.Thread(target=pair.run, args=(fails_after(0), hangs_up), daemon=True)
    waiting.start()
    waiting.join(2)
    assert waiting.is_alive(), "process 0 waits until it is ended"
    assert len(pair.lost) >= 1
    pair.processes[0].close()
    assert received == []
