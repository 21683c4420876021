"""The handshake and the signed lines; no sockets."""

import pytest

from wan_tpu.errors import MismatchError
from wan_tpu.multihost.handshake import (
    DENIED,
    MAX_LINE_BYTES,
    FollowerHandshake,
    LeaderHandshake,
    Signer,
)

SECRET, OTHER = "s" * 32, "o" * 32


def follower(secret=SECRET, process_id=1):
    return FollowerHandshake(secret, process_id=process_id, num_processes=2)


def shake(leader, follows):
    """The lines of both in turn, and the follower's keys."""
    challenge = leader.answer(follows.hello)
    proof = follows.prove(challenge)
    answer = leader.answer(proof)
    return (follows.hello, challenge, proof, answer), follows.check(answer)


def test_both_know_the_secret_and_have_the_same_keys():
    leader = LeaderHandshake(SECRET)
    lines, keys = shake(leader, follower())
    assert leader.keys == keys
    assert keys.to_leader != keys.to_follower
    assert leader.process_id == 1
    assert max(map(len, lines)) <= MAX_LINE_BYTES
    assert all(SECRET.encode() not in line for line in lines)


def test_no_two_connections_have_the_same_keys():
    keys = [shake(LeaderHandshake(SECRET), follower())[1] for _ in range(2)]
    assert len({key for pair in keys for key in pair}) == 4


@pytest.mark.parametrize(("ours", "theirs"), [(SECRET, OTHER), (SECRET, ""), ("", SECRET)])
def test_another_secret_is_denied(ours, theirs):
    leader, follows = LeaderHandshake(ours), follower(theirs)
    denied = leader.answer(follows.prove(leader.answer(follows.hello)))
    assert denied == DENIED
    assert leader.is_denied
    assert leader.keys is None
    with pytest.raises(MismatchError, match="this process could not prove"):
        follows.check(denied)


def test_a_recorded_proof_is_worth_nothing():
    """Of the follower's lines, to process 0; and of process 0's, to a follower."""
    (hello, challenge, proof, answer), _ = shake(LeaderHandshake(SECRET), follower())
    leader = LeaderHandshake(SECRET)
    leader.answer(hello)
    assert leader.answer(proof) == DENIED
    follows = follower()
    follows.prove(challenge)
    with pytest.raises(MismatchError, match="it could not prove"):
        follows.check(answer)


def test_one_s_own_lines_sent_back_prove_nothing():
    follows = follower()
    challenge = LeaderHandshake(SECRET).answer(follows.hello)
    proof = follows.prove(challenge)
    with pytest.raises(MismatchError, match="it could not prove"):
        follows.check(proof)
    nonce = follows.hello.split()[-1]
    follows = follower()
    proof = follows.prove(b"wan-tpu-slice/1 challenge " + nonce + b"\n")
    with pytest.raises(MismatchError):
        follows.check(proof)


def test_a_proof_is_of_one_process():
    leader, follows = LeaderHandshake(SECRET), follower(process_id=1)
    challenge = leader.answer(follows.hello.replace(b"hello 1 2", b"hello 2 2"))
    assert leader.answer(follows.prove(challenge)) == DENIED


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"wan-tpu-slice/1 hello 1 2\n",
        b"wan-tpu-slice/1 hello -1 2 " + b"a" * 64 + b"\n",
        b"wan-tpu-slice/1 hello 1 2 " + b"A" * 64 + b"\n",
        b"wan-tpu-slice/1 hello 1 2 " + b"a" * 64 + b"\r\n",
        b"wan-tpu-slice/2 hello 1 2 " + b"a" * 64 + b"\n",
        b"wan-tpu-slice/1 proof " + b"a" * 64 + b"\n",
        b'{"kind": "Hello", "process_id": 1, "num_processes": 2, "machine": "vm"}\n',
        b"[" * 200 + b"\n",
    ],
)
def test_what_is_no_hello(line):
    with pytest.raises(ValueError, match="not a line of this protocol"):
        LeaderHandshake(SECRET).answer(line)


def test_a_proof_must_follow_the_challenge():
    leader, follows = LeaderHandshake(SECRET), follower()
    leader.answer(follows.hello)
    with pytest.raises(ValueError, match="not a line of this protocol"):
        leader.answer(follows.hello)
    with pytest.raises(ValueError, match="not a line of this protocol"):
        follows.prove(DENIED)


LINES = [b'{"kind": "Continue"}\n', b'{"kind": "Continue"}\n', b'{"kind": "Cancel"}\n']


def signed():
    signer = Signer(b"k" * 32)
    return [signer.sign(line) for line in LINES]


def test_signed_lines_in_their_order_are_taken():
    checks = Signer(b"k" * 32)
    assert [checks.check(line) for line in signed()] == LINES


@pytest.mark.parametrize(
    "order", [(1,), (0, 0), (0, 2), (0, 1, 0)], ids=["first lost", "twice", "one lost", "again"]
)
def test_in_another_order_they_are_not(order):
    checks, lines = Signer(b"k" * 32), signed()
    *before, last = order
    for number in before:
        checks.check(lines[number])
    with pytest.raises(ValueError, match="has not signed"):
        checks.check(lines[last])


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b'{"kind": "Stop"}\n',
        b"0" * 64 + b' {"kind": "Stop"}\n',
        b"\xff" * 64 + b' {"kind": "Stop"}\n',
        signed()[0].replace(b"Continue", b"Cancel  "),
        signed()[0].upper(),
        Signer(b"other" * 8).sign(LINES[0]),
    ],
)
def test_what_is_not_signed(line):
    with pytest.raises(ValueError, match="has not signed"):
        Signer(b"k" * 32).check(line)
