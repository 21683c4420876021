"""Which process of how many: from options, from Kubernetes, from a TPU VM's metadata."""

import contextlib
import http.server
import threading

import pytest

from wan_tpu.errors import InputError, WanTpuError
from wan_tpu.multihost import group
from wan_tpu.multihost.group import ALONE, DEFAULT_PORT, ProcessGroup, find_group, split_address


def test_nothing_said_on_an_ordinary_machine_is_one_process():
    assert find_group() == ALONE
    assert find_group(num_processes=1) == ALONE
    assert ALONE.leads


SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def secret_file(tmp_path):
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    return file


def group_at(host, port=DEFAULT_PORT, **numbers):
    return ProcessGroup(host=host, port=port, secret=SECRET, **numbers)


def test_all_three_said(secret_file):
    found = find_group("10.0.0.2:8490", 4, 3, secret_file)
    assert found == group_at("10.0.0.2", 8490, num_processes=4, process_id=3)
    assert SECRET not in repr(found)
    assert not found.leads
    assert find_group("[::1]:99", 2, 0).coordinator == "[::1]:99"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (("10.0.0.2:8490", 4, None), "all of coordinator HOST:PORT, processes N and process-id I"),
        ((None, 4, 1), "got None, 4 and 1"),
        (("10.0.0.2:8490", 4, 4), "process 4 is none of 0 to 3"),
        (("10.0.0.2", 4, 1), "HOST:PORT, for example 10.0.0.2:8490, got '10.0.0.2'"),
        (("10.0.0.2:0", 4, 1), "HOST:PORT"),
        (("10.0.0.2:65536", 4, 1), "HOST:PORT"),
    ],
)
def test_what_is_said_by_half_or_wrongly(said, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        find_group(*said)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "[::1]", "localhost"])
def test_on_loopback_no_secret_is_needed(host):
    assert find_group(f"{host}:8490", 2, 1).secret == ""


@pytest.mark.parametrize(
    "host", ["10.0.0.2", "0.0.0.0", "[::]", "[fe80::1]", "localhost.example", "128.0.0.1", "vm"]
)
def test_elsewhere_one_is(host, secret_file):
    with pytest.raises(InputError, match="openssl rand -hex 32"):
        find_group(f"{host}:8490", 2, 1)
    assert find_group(f"{host}:8490", 2, 1, secret_file).secret == SECRET


def test_a_process_on_its_own_looks_at_no_secret(tmp_path):
    assert find_group(num_processes=1, secret_file=tmp_path / "nowhere") == ALONE


def test_addresses():
    assert split_address("host:1") == ("host", 1)
    assert split_address("[fe80::1]:8490") == ("fe80::1", 8490)


@contextlib.contextmanager
def metadata(values, monkeypatch):
    """Google's metadata server with these attributes; None answers 503."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            key = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
            value = values.get(key, "")
            self.send_response(503 if value is None else 200 if key in values else 404)
            self.end_headers()
            self.wfile.write((value or "").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
        yield
        server.shutdown()


@pytest.mark.parametrize(
    "endpoints",
    ["unknown:0:10.0.0.2,unknown:1:10.0.0.3,unknown:2:10.0.0.4", "10.0.0.2,10.0.0.3,10.0.0.4"],
)
def test_a_worker_of_a_slice(monkeypatch, endpoints, secret_file):
    values = {"agent-worker-number": "2", "worker-network-endpoints": endpoints}
    with metadata(values, monkeypatch):
        found = group.from_tpu_metadata(secret_file)
        with pytest.raises(InputError, match="the slice has no secret"):
            group.from_tpu_metadata()
    assert found == group_at("10.0.0.2", num_processes=3, process_id=2)


def test_a_slice_of_one_worker(monkeypatch):
    values = {"agent-worker-number": "0", "worker-network-endpoints": "unknown:0:10.0.0.2"}
    with metadata(values, monkeypatch):
        assert group.from_tpu_metadata() == ALONE


def test_a_machine_of_google_without_tpu(monkeypatch):
    with metadata({}, monkeypatch):
        assert group.from_tpu_metadata() is None


def test_nobody_answers_elsewhere(monkeypatch):
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")
    assert group.from_tpu_metadata() is None


def test_metadata_that_fails_is_no_single_machine(monkeypatch):
    """Red when it is taken for one: the TPU runtime would then wait for the others for ever."""
    monkeypatch.setattr(group, "METADATA_TRIES", 2)
    with (
        metadata({"agent-worker-number": None}, monkeypatch),
        pytest.raises(WanTpuError, match="does not tell agent-worker-number"),
    ):
        group.from_tpu_metadata()


def test_a_pod_of_kubernetes(secret_file):
    names = {"TPU_WORKER_HOSTNAMES": "a-0.a,a-1.a", "TPU_WORKER_ID": "1"}
    found = group.from_kubernetes(names, secret_file)
    assert found == group_at("a-0.a", num_processes=2, process_id=1)
    with pytest.raises(InputError, match="the slice has no secret"):
        group.from_kubernetes(names)
    assert group.from_kubernetes({"TPU_WORKER_HOSTNAMES": "x", "TPU_WORKER_ID": "0"}) == ALONE
    addresses = {"TPU_PROCESS_ADDRESSES": "a-0.a:8476,a-1.a:8476", "TPU_WORKER_ID": "0"}
    assert group.from_kubernetes(addresses, secret_file).host == "a-0.a"
    assert group.from_kubernetes({}) is None
