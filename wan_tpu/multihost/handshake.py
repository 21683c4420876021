"""How two processes of a slice authenticate each other by its secret. No sockets here.

    follower    wan-tpu-slice/1 hello PROCESS PROCESSES NONCE
    process 0   wan-tpu-slice/1 challenge NONCE
    follower    wan-tpu-slice/1 proof MAC
    process 0   wan-tpu-slice/1 proof MAC        or        wan-tpu-slice/1 denied

A proof is HMAC-SHA256, under a key derived from the secret, over the role of its sender and the
transcript: both nonces, so a recorded proof is worthless, and the role, so one's own proof sent
back is, too. The follower authenticates itself first, because anybody can connect to process 0.
Two keys are derived from the same transcript, one for each direction, by which every later line is
signed and numbered (`Signer`): nobody can insert, drop or replay a line of an open connection.

The lines are fixed text, so that an unauthenticated client reaches no parser. They are not
encrypted, and neither is what follows: this keeps others out, not eavesdroppers on the network.
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

MAC_BYTES = 64
"""Of a signature in front of a line: 32 bytes in hexadecimal."""

DENIED = PROTOCOL + b" denied\n"

_HEX = rb"([0-9a-f]{64})"
_HELLO = re.compile(PROTOCOL + rb" hello ([0-9]{1,6}) ([0-9]{1,6}) " + _HEX + rb"\n")
_CHALLENGE = re.compile(PROTOCOL + rb" challenge " + _HEX + rb"\n")
_PROOF = re.compile(PROTOCOL + rb" proof " + _HEX + rb"\n")


class Keys(NamedTuple):
    """Signing keys of one connection.

    Attributes:
        to_leader: signs what the follower sends.
        to_follower: signs what process 0 sends.
    """

    to_leader: bytes
    to_follower: bytes


class LeaderHandshake:
    """Process 0's side: it answers each line of a client.

    Attributes:
        process_id: the rank that the client claims; believed with its `Hello` only.
        keys: of the connection, once the client has authenticated itself.
        is_denied: whether it tried to, with another secret.
    """

    def __init__(self, secret: str):
        self._secret = secret
        self._transcript = b""
        self.process_id = 0
        self.keys: Keys | None = None
        self.is_denied = False

    def answer(self, line: bytes) -> bytes:
        """The answer to the next line, which ends with a line break.

        Raises:
            ValueError: no follower sends such a line.
        """
        if not self._transcript:
            self.process_id = int(_match(_HELLO, line)[1])
            challenge = b"%s challenge %s\n" % (PROTOCOL, _nonce())
            self._transcript = line + challenge
            return challenge
        proof = _match(_PROOF, line)[1]
        if not hmac.compare_digest(proof, _mac(self._secret, b"follower", self._transcript)):
            self.is_denied = True
            return DENIED
        self._transcript += line
        answer = _proof(self._secret, b"process 0", self._transcript)
        self.keys = _keys(self._secret, self._transcript + answer)
        return answer


class FollowerHandshake:
    """A follower's side: it begins with `hello`, and answers the challenge."""

    def __init__(self, secret: str, *, process_id: int, num_processes: int):
        self._secret = secret
        self.hello = b"%s hello %d %d %s\n" % (PROTOCOL, process_id, num_processes, _nonce())
        self._transcript = self.hello

    def prove(self, challenge: bytes) -> bytes:
        """The answer to the challenge.

        Raises:
            ValueError: it is none.
        """
        _match(_CHALLENGE, challenge)
        self._transcript += challenge
        proof = _proof(self._secret, b"follower", self._transcript)
        self._transcript += proof
        return proof

    def check(self, line: bytes) -> Keys:
        """The keys of the connection, if the last line proves that process 0 sent it.

        Raises:
            ValueError: it is no proof.
            MismatchError: the two have different secrets.
        """
        if line == DENIED:
            raise MismatchError("it says that this process could not prove the slice's secret")
        proof = _match(_PROOF, line)[1]
        if not hmac.compare_digest(proof, _mac(self._secret, b"process 0", self._transcript)):
            raise MismatchError("it could not prove the slice's secret")
        return _keys(self._secret, self._transcript + line)


class Signer:
    """Signs the lines of one direction, or verifies them; each has a number, which is not sent.

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
            ValueError: it is not the next line that was signed.
        """
        mac, blank, line = signed.partition(b" ")
        if not blank or not hmac.compare_digest(mac, self._next_mac(line)):
            raise ValueError("a line that the other end has not signed, or not as its next one")
        return line

    def _next_mac(self, line: bytes) -> bytes:
        self._number += 1
        signed = self._number.to_bytes(8, "big") + line
        return (
            hashlib.blake2b(signed, key=self._key, digest_size=MAC_BYTES // 2).hexdigest().encode()
        )


def _match(pattern: re.Pattern[bytes], line: bytes) -> re.Match[bytes]:
    found = pattern.fullmatch(line)
    if found is None:
        raise ValueError(f"not a line of this protocol: {line[:40]!r}")
    return found


def _nonce() -> bytes:
    return secrets.token_hex(32).encode()


def _proof(secret: str, role: bytes, transcript: bytes) -> bytes:
    return b"%s proof %s\n" % (PROTOCOL, _mac(secret, role, transcript))


def _mac(secret: str, role: bytes, transcript: bytes) -> bytes:
    return _derive(secret, b"proof of " + role, transcript).hex().encode()


def _keys(secret: str, transcript: bytes) -> Keys:
    return Keys(
        to_leader=_derive(secret, b"key to process 0", transcript),
        to_follower=_derive(secret, b"key to follower", transcript),
    )


def _derive(secret: str, purpose: bytes, transcript: bytes) -> bytes:
    """HKDF (RFC 5869) with SHA-256 in its shortest form: extract, then one block for a purpose."""
    key = hmac.digest(PROTOCOL, secret.encode(), "sha256")
    return hmac.digest(key, purpose + b"\n" + transcript + b"\x01", "sha256")
