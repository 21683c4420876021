"""Which server, and with which key: what is wrong is one line, and no key is ever shown."""

import os
import socket
import subprocess
import sys
import threading

import pytest

from tests.server.running import SCRIPTED, RunningServer
from wan_tpu.cli.remote.options import read_address


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """A service that asks for keys, and one of them."""
    folder = tmp_path_factory.mktemp("keyed")
    file = folder / "keys"
    words = [sys.executable, "-m", "server", "keys", "add", "ada", "--file", file]
    key = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    server = RunningServer(folder / "data", engine=SCRIPTED, api_keys_file=file)
    yield server, key
    server.stop()


def test_the_key_comes_from_the_environment_or_a_file(run_here, keyed, monkeypatch, tmp_path):
    server, key = keyed
    words = ("remote", "list", "--server", server.url)
    monkeypatch.setenv("WAN_TPU_API_KEY", key)
    assert run_here(*words)[0] == 0
    monkeypatch.delenv("WAN_TPU_API_KEY")
    (tmp_path / "key").write_text(f"{key}\n")
    assert run_here(*words, "--api-key-file", "key")[0] == 0


@pytest.mark.parametrize("given", ["wt-wrong", "", "two words", "ключ", "wt-\x1b"])
def test_a_wrong_key_is_refused_and_not_shown(run_here, keyed, monkeypatch, given):
    server, _ = keyed
    monkeypatch.setenv("WAN_TPU_API_KEY", given)
    code, out, err = run_here("remote", "generate", "x", "--server", server.url)
    is_none = given in ("wt-wrong", "")
    assert (code, out, err.count("\n")) == (1 if is_none else 2, "", 1), err
    assert "WAN_TPU_API_KEY" in err
    assert not given or given not in err


def test_a_file_of_a_key_that_is_not_there(run_here, tmp_path):
    (tmp_path / "empty").touch()
    for name, words in (("none", "cannot be read"), ("empty", "is empty")):
        code, _, err = run_here("remote", "list", "--api-key-file", name)
        assert (code, words in err) == (2, True), err


ADDRESSES = {
    "http://host:8000": "http://host:8000",
    "http://host:8000/": "http://host:8000",
    "https://host/v1": "https://host",
    " https://host/videos/v1/ ": "https://host/videos",
}


@pytest.mark.parametrize("given", ADDRESSES)
def test_an_address_as_other_clients_want_it(given):
    assert read_address(given) == ADDRESSES[given]


@pytest.mark.parametrize(
    ("address", "code", "words"),
    [
        ("localhost:8000", 2, "must begin with http:// or https://"),
        ("http://", 2, "must begin with http:// or https://"),
        ("http://host:port", 2, "write for example http://127.0.0.1:8000"),
        ("http://ada:secret@host", 2, "holds a name or password"),
        ("http://host?x=1", 2, "ends before ?"),
        ("http://127.0.0.1:1", 1, "cannot be reached: Connection refused"),
        ("http://no-such-host.invalid", 1, "cannot be reached: "),
    ],
)
def test_a_wrong_address_is_one_line_at_once(run_here, address, code, words):
    found, out, err = run_here("remote", "list", "--server", address)
    assert (found, out, err.count("\n")) == (code, "", 1), err
    assert words in err
    assert "secret" not in err


def test_what_is_no_service_of_videos(run_here):
    """A page, something that is no HTTP, and a server that sends its callers elsewhere."""

    def answer_with(data):
        listener = socket.create_server(("127.0.0.1", 0))

        def serve():
            line, _ = listener.accept()
            with line, listener:
                line.recv(65536)
                line.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    head = "HTTP/1.1 %s\r\nContent-Length: 6\r\nConnection: close\r\n%s\r\n<html>"
    for data, words in (
        (head % ("200 OK", ""), "something else than JSON"),
        (head % ("404 Not Found", ""), "no service of videos"),
        (head % ("307 Moved", "Location: https://other/v1/videos\r\n"), "https://other/v1/videos"),
        ("SSH-2.0-OpenSSH_9.6\r\n", "cannot be reached"),
    ):
        code, out, err = run_here("remote", "list", "--server", answer_with(data.encode()))
        assert (code, out, err.count("\n"), words in err) == (1, "", 1, True), err


def test_without_an_address_it_is_the_one_of_make_serve(run_here):
    assert "WAN_TPU_SERVER" not in os.environ
    _, out, _ = run_here("remote", "list", "--help")
    assert "WAN_TPU_SERVER, else http://127.0.0.1:8000" in " ".join(out.split())
