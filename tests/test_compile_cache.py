"""Whatever is wrong with the folder of compiled programs, it costs compiling and no more."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from wan_tpu import runtime
from wan_tpu.compile_cache import ONE_HOUR, SUFFIX, CompileCache, use_folder

PROGRAM = """
import logging, pathlib, sys
logging.basicConfig(format="%(message)s")
from wan_tpu import runtime
runtime.start(cache_folder=pathlib.Path(sys.argv[1]) if sys.argv[1:] else
              runtime.default_cache_folder())
import jax
from jax import monitoring
hits = []
monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
for power in (2, 3):
    assert jax.jit(lambda x: x ** power + jax.numpy.sin(x))(2.0) > power
print(sum(hits))
"""
"""Runs two programs, and prints how many of all it compiled came from the folder."""


def start(*arguments, limit_bytes=None, **environment):
    keep = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    for name in [name for name, value in environment.items() if value is None]:
        keep.pop(name, None)
        del environment[name]

    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes},) * 2)\n"
    program = PROGRAM if limit_bytes is None else limit + PROGRAM
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=keep | environment,
    )


def run(*arguments, **kwargs):
    """How many programs were found, and what was said."""
    process = start(*arguments, **kwargs)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "warnings.warn" not in err
    return int(out), err


def entries(folder):
    return sorted(folder.glob(f"*{SUFFIX}"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder that one run filled: entries by name, and the hits of a run that finds them."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == (0, "")
    hits, said = run(folder)
    assert hits >= 2
    assert said == ""
    return {path.name: path.read_bytes() for path in entries(folder)}, hits


def cut(size):
    return lambda content: content[:size]


def garbage_in_the_middle(content):
    half = len(content) // 2
    return content[:half] + bytes(byte ^ 0xA5 for byte in content[half : half + 64]) + content[
        half + 64 :
    ]  # fmt: skip


DAMAGES = {
    "empty": cut(0),
    "inside the header": cut(30),
    "header alone": cut(51),
    "half": lambda content: content[: len(content) // 2],
    "last byte lost": cut(-1),
    "garbage in the middle": garbage_in_the_middle,
    "zeros, as after a power cut": lambda content: bytes(len(content)),
    "something after the end": lambda content: content + b"x",
    "JAX's own": lambda content: content[51:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_not_there_and_can_be_replaced(damage, tmp_path, caplog):
    cache = CompileCache(tmp_path)
    program = bytes(range(256)) * 40
    cache.put("key", program)
    (path,) = entries(tmp_path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    for _ in range(2):
        assert cache.get("key") is None
    assert [record.getMessage() for record in caplog.records] == [
        f"compiled programs in {tmp_path} are damaged (key{SUFFIX}); they are made again"
    ]
    cache.put("key", program)
    assert cache.get("key") == program


def test_damaged_entries_are_made_again(whole, tmp_path):
    """One cut short, one in the form that JAX itself gives it; the others are found."""
    contents, hits = whole
    damages = [DAMAGES["half"], DAMAGES["JAX's own"], *[bytes] * (len(contents) - 2)]
    for (name, content), damage in zip(contents.items(), damages, strict=True):
        (tmp_path / name).write_bytes(damage(content))
    found, said = run(tmp_path)
    assert found == hits - 2
    assert said.count("\n") == 1
    assert f"compiled programs in {tmp_path} are damaged" in said
    assert run(tmp_path) == (hits, "")
    assert {path.name for path in entries(tmp_path)} == contents.keys()


def test_a_folder_in_an_entrys_place(tmp_path, caplog):
    cache = CompileCache(tmp_path)
    (tmp_path / f"key{SUFFIX}").mkdir()
    assert cache.get("key") is None
    cache.put("key", b"program")
    assert [message.split(" compiled")[0] for message in caplog.messages] == [
        "cannot read",
        "cannot keep",
    ]
    assert [path.name for path in tmp_path.iterdir()] == [f"key{SUFFIX}"]


@pytest.mark.parametrize("place", ["/proc/nope/deep", "/etc/hostname", "/etc/hostname/deep"])
def test_a_folder_that_cannot_be_made(place, caplog):
    use_folder(pathlib.Path(place))
    assert caplog.messages[0].startswith(f"cannot keep compiled programs in {place} (")
    assert len(caplog.messages) == 1


def test_a_folder_that_cannot_be_written():
    """Nobody can make a file in /proc, root neither."""
    found, said = run("/proc/self")
    assert found == 0
    assert said == (
        "cannot keep compiled programs in /proc/self (No such file or directory); "
        "going on without\n"
    )


@pytest.mark.parametrize("home", ["/proc/nope", "/etc/hostname"])
def test_a_home_that_cannot_be_used(home):
    found, said = run(HOME=home, XDG_CACHE_HOME=None)
    assert found == 0
    assert said.startswith(f"cannot keep compiled programs in {home}/.cache/wan-tpu/compiled (")


def test_a_user_without_a_home(monkeypatch, caplog):
    """As a container that runs under a number that nobody has."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert runtime.default_cache_folder() is None
    assert "no home folder; set XDG_CACHE_HOME" in caplog.text


def test_a_disk_that_is_full_in_the_middle_of_a_run(tmp_path, whole):
    """Red when half an entry is left: the next run would trip over it."""
    _, hits = whole
    found, said = run(tmp_path, limit_bytes=200)
    assert found == 0
    assert "(File too large); going on without" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert run(tmp_path) == (0, "")
    assert run(tmp_path) == (hits, "")


def test_processes_that_share_a_folder(tmp_path, whole):
    _, hits = whole
    together = [start(tmp_path) for _ in range(3)]
    for process in together:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    assert entries(tmp_path) == sorted(tmp_path.iterdir())
    assert run(tmp_path) == (hits, "")


def test_what_a_dead_process_began_is_removed_and_what_a_live_one_does_is_not(tmp_path):
    cache = CompileCache(tmp_path)
    cache.put("kept", b"program")
    old, young = tmp_path / ".1-abcd.part", tmp_path / ".2-abcd.part"
    for path in (old, young):
        path.write_bytes(b"half")
    past = time.time() - 2 * ONE_HOUR
    os.utime(old, (past, past))
    cache = CompileCache(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"kept{SUFFIX}", young.name}
    assert cache.get("kept") == b"program"
    assert cache.get("never") is None


def test_put_replaces_what_was_there(tmp_path):
    cache = CompileCache(pathlib.Path(tmp_path))
    cache.put("key", b"one")
    cache.put("key", b"another")
    assert cache.get("key") == b"another"
