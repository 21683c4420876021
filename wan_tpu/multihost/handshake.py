"""How two processes of a slice prove to each other that they know its secret. No sockets here.

    follower    wan-tpu-slice/1 hello PROCESS PROCESSES NONCE
    process 0   wan-tpu-slice/1 challenge NONCE
    follower    wan-tpu-slice/1 proof MAC
    process 0   wan-tpu-slice/1 proof MAC        or        wan-tpu-slice/1 denied

A proof is HMAC-SHA256, under a key made of the secret, over the role of who proves and all lines
before: both nonces, so a recorded proof is worth nothing, and the role, so one's own proof sent
back is neither. The follower proves itself first, because anybody can connect to process 0. Of the
same lines come two keys, one for each direction, with which every later line is signed and numbered
(`Signer`): nobody can put a line into an open connection, leave one out or say one again.

The lines are fixed text, so that no parser of ours is within a stranger's reach. They are not
encrypted, and neither is what follows: this keeps strangers out, not the network's own eyes.
"""

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

from wan_tpu.errors import MismatchError

PROTOCOL = b"wan-tpu-slice/1"
MAX_LINE_BYTES = 256
"""Of the four lines; the longest has 119."""

DENIED = PROTOCOL + b" denied\n"

_HEX = rb"([0-9a-f]{64})"
_HELLO = re.compile(PROTOCOL + rb" hello ([0-9]{1,6}) ([0-9]{1,6}) " + _HEX + rb"\n")
_CHALLENGE = re.compile(PROTOCOL + rb" challenge " + _HEX + rb"\n")
_PROOF = re.compile(PROTOCOL + rb" proof " + _HEX + rb"\n")


class Keys(NamedTuple):
    """Of one connection.

    Attributes:
        to_leader: signs what the follower says.
        to_follower: signs what process 0 says.
    """

    to_leader: bytes
    to_follower: bytes


class LeadersSide:
    """Process 0's side: it answers each line of whoever has connected.

    Attributes:
        process_id: which process the other one says it is; believed with its `Hello` only.
        keys: of the connection, once the other one has proved itself.
        is_denied: whether it tried to, with another secret.
    """

    def __init__(self, secret: str):
        self._secret = secret
        self._said = b""
        self.process_id = 0
        self.keys: Keys | None = None
        self.is_denied = False

    def answer(self, line: bytes) -> bytes:
        """What to say to the next line, which ends with a line break.

        Raises:
            ValueError: it is no line of a follower's.
        """
        if not self._said:
            self.process_id = int(_match(_HELLO, line)[1])
            challenge = b"%s challenge %s\n" % (PROTOCOL, _nonce())
            self._said = line + challenge
            return challenge
        proof = _match(_PROOF, line)[1]
        if not hmac.compare_digest(proof, _mac(self._secret, b"follower", self._said)):
            self.is_denied = True
            return DENIED
        self._said += line
        answer = _proof(self._secret, b"process 0", self._said)
        self.keys = _keys(self._secret, self._said + answer)
        return answer


class FollowersSide:
    """A follower's side: it begins with `hello`, and answers the challenge."""

    def __init__(self, secret: str, *, process_id: int, num_processes: int):
        self._secret = secret
        self.hello = b"%s hello %d %d %s\n" % (PROTOCOL, process_id, num_processes, _nonce())
        self._said = self.hello

    def prove(self, challenge: bytes) -> bytes:
        """What to answer to the challenge.

        Raises:
            ValueError: it is none.
        """
        _match(_CHALLENGE, challenge)
        self._said += challenge
        proof = _proof(self._secret, b"follower", self._said)
        self._said += proof
        return proof

    def check(self, line: bytes) -> Keys:
        """The keys of the connection, if the last line proves that process 0 said it.

        Raises:
            ValueError: it is no proof.
            MismatchError: one of the two has another secret.
        """
        if line == DENIED:
            raise MismatchError("it says that this process could not prove the slice's secret")
        proof = _match(_PROOF, line)[1]
        if not hmac.compare_digest(proof, _mac(self._secret, b"process 0", self._said)):
            raise MismatchError("it could not prove the slice's secret")
        return _keys(self._secret, self._said + line)


class Signer:
    """Signs the lines of one direction, or checks them; each has a number, which is not sent.

    With BLAKE2b under a key (RFC 7693), not HMAC: between two steps of a video all caches are cold,
    and there OpenSSL's HMAC takes 60 us where this takes 15.
    """

    def __init__(self, key: bytes):
        self._key = key
        self._number = 0

    def sign(self, line: bytes) -> bytes:
        """The next line with its MAC in front."""
        return b"%s %s" % (self._next_mac(line), line)

    def check(self, signed: bytes) -> bytes:
        """The next line, without its MAC.

        Raises:
            ValueError: it is not the line that was signed next.
        """
        mac, blank, line = signed.partition(b" ")
        if not blank or not hmac.compare_digest(mac, self._next_mac(line)):
            raise ValueError("a line that the other end has not signed, or not as the next one")
        return line

    def _next_mac(self, line: bytes) -> bytes:
        self._number += 1
        signed = self._number.to_bytes(8, "big") + line
        return hashlib.blake2b(signed, key=self._key, digest_size=32).hexdigest().encode()


def _match(pattern: re.Pattern[bytes], line: bytes) -> re.Match[bytes]:
    found = pattern.fullmatch(line)
    if found is None:
        raise ValueError(f"no line of ours: {line[:40]!r}")
    return found


def _nonce() -> bytes:
    return secrets.token_hex(32).encode()


def _proof(secret: str, role: bytes, said: bytes) -> bytes:
    return b"%s proof %s\n" % (PROTOCOL, _mac(secret, role, said))


def _mac(secret: str, role: bytes, said: bytes) -> bytes:
    return _derive(secret, b"proof of " + role, said).hex().encode()


def _keys(secret: str, said: bytes) -> Keys:
    return Keys(
        to_leader=_derive(secret, b"key to process 0", said),
        to_follower=_derive(secret, b"key to follower", said),
    )


def _derive(secret: str, purpose: bytes, said: bytes) -> bytes:
    """HKDF (RFC 5869) with SHA-256 in its shortest form: extract, then one block for a purpose."""
    key = hmac.digest(PROTOCOL, secret.encode(), "sha256")
    return hmac.digest(key, purpose + b"\n" + said + b"\x01", "sha256")
