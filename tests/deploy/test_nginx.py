"""deploy/nginx.conf before the real service: nginx itself, over TLS, clients of every manner."""

import contextlib
import json
import pathlib
import shutil
import socket
import ssl
import subprocess

import httpx
import psutil
import pytest

from tests.deploy.conftest import ROOT
from tests.multihost.running import free_port
from tests.requirements import require
from tests.server.running import SCRIPTED, RunningServer, wait_for

SITE = ROOT / "deploy" / "nginx.conf"
NAME = "wan.example.com"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
MAIN = """
daemon off;
worker_processes 1;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 2000; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


class Proxy:
    """nginx with our site, on free ports of loopback, and a certificate of its own."""

    def __init__(self, folder: pathlib.Path, upstream: str):
        assert NGINX is not None
        self.http, self.https = free_port(), free_port()
        self.folder = folder
        folder.mkdir()
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        command = (
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
            f"-subj /CN={NAME} -addext subjectAltName=DNS:{NAME} -keyout {key} -out {certificate}"
        )
        subprocess.run(command.split(), check=True, capture_output=True)
        text = SITE.read_text()
        for ours, here in (
            ("    listen [::]:80;\n", ""),
            ("    listen [::]:443 ssl http2;\n", ""),
            ("listen 80;", f"listen 127.0.0.1:{self.http};"),
            ("listen 443 ssl", f"listen 127.0.0.1:{self.https} ssl"),
            (f"/etc/letsencrypt/live/{NAME}/fullchain.pem", str(certificate)),
            (f"/etc/letsencrypt/live/{NAME}/privkey.pem", str(key)),
            ("server 127.0.0.1:8000", f"server {upstream}"),
        ):
            assert ours in text, ours
            text = text.replace(ours, here)
        (folder / "site.conf").write_text(text)
        user = "user root;" if psutil.Process().uids().effective == 0 else ""
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))
        self.trust = ssl.create_default_context(cafile=str(certificate))
        self.process = subprocess.Popen(
            (NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")), stderr=subprocess.PIPE
        )
        wait_for(self.listens)

    def listens(self) -> bool:
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.https)) == 0

    def client(self, **options) -> httpx.Client:
        """One that trusts the certificate and takes this machine for the site."""
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.https}",
            verify=self.trust,
            headers={"Host": NAME},
            timeout=60,
            **options,
        )

    def request(self, client: httpx.Client, method: str, path: str, **options) -> httpx.Response:
        extensions = {"sni_hostname": NAME}
        return client.request(method, path, extensions=extensions, **options)

    def connect(self, *, room: int = 65536) -> ssl.SSLSocket:
        """A socket for clients that do as they please, with room for so much that is not read."""
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        plain.settimeout(60)
        plain.connect(("127.0.0.1", self.https))
        return self.trust.wrap_socket(plain, server_hostname=NAME)

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    server = RunningServer(
        folder / "data", engine=SCRIPTED, allowed_hosts=NAME, max_event_streams=64
    )
    server.wait_ready()
    yield server
    server.stop()


@pytest.fixture
def proxy(service, tmp_path):
    require(NGINX, "no nginx here: apt-get install nginx")
    proxy = Proxy(tmp_path / "nginx", service.url.removeprefix("http://"))
    yield proxy
    proxy.stop()


@pytest.fixture
def client(proxy):
    with proxy.client() as client:
        yield client


def error_of(response: httpx.Response) -> dict:
    assert response.headers["content-type"] == "application/json", response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_a_video_over_tls_from_its_making_to_a_part_of_its_file(proxy, client):
    made = proxy.request(client, "POST", "/v1/videos", json={"prompt": "a red circle"})
    assert made.status_code == 200, made.text
    path = f"/v1/videos/{made.json()['id']}"
    wait_for(lambda: proxy.request(client, "GET", path).json()["status"] == "completed")
    whole = proxy.request(client, "GET", f"{path}/content")
    part = proxy.request(client, "GET", f"{path}/content", headers={"Range": "bytes=4-99"})
    assert part.status_code == 206
    assert part.content == whole.content[4:100]
    assert whole.headers["strict-transport-security"]


def test_plain_http_is_sent_on(proxy):
    answer = httpx.get(f"http://127.0.0.1:{proxy.http}/v1/videos?limit=3", headers={"Host": NAME})
    assert answer.status_code == 301
    assert answer.headers["location"] == f"https://{NAME}/v1/videos?limit=3"


def test_events_come_as_they_happen(proxy, client):
    """That of a job that waits, while it waits; one that buffers shows it when much has come."""
    body = {"prompt": "slow", "num_inference_steps": 90}
    first, second = (
        f"/v1/videos/{proxy.request(client, 'POST', '/v1/videos', json=body).json()['id']}"
        for _ in range(2)
    )
    extensions = {"sni_hostname": NAME}
    with (
        proxy.client() as other,
        client.stream("GET", f"{second}/events", extensions=extensions) as stream,
    ):
        data = (line for line in stream.iter_lines() if line.startswith("data: "))
        assert json.loads(next(data).removeprefix("data: "))["status"] == "queued"
        assert proxy.request(other, "GET", second).json()["status"] == "queued"
        for path in (second, first):
            proxy.request(other, "POST", f"{path}/cancel")
        last = json.loads(list(data)[-1].removeprefix("data: "))
        assert last["error"]["code"] == "cancelled"


def connections(service) -> int:
    process = psutil.Process(service.process.pid)
    return sum(link.status == "ESTABLISHED" for link in process.net_connections("tcp"))


def test_slow_writers_are_not_the_services_business(proxy, service, client):
    """Ninety clients that never finish a head or a body: to the service they do not exist."""
    half = (
        f"GET / HTTP/1.1\r\nHost: {NAME}\r\n",
        f"POST /v1/videos HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/json\r\n"
        "Content-Length: 99\r\n\r\n{",
    )
    service.client.close()
    before = connections(service)
    with contextlib.ExitStack() as open_ones:
        for number in range(90):
            slow = open_ones.enter_context(proxy.connect())
            slow.sendall(half[number % 2].encode())
        assert proxy.request(client, "GET", "/livez").status_code == 200
        assert connections(service) <= before + 1


def test_a_slow_reader_is_not_the_services_business(tmp_path):
    """More than any buffer of the system takes goes to nginx, though its client reads nothing.

    The service is a socket here, which shows when its answer has been taken to the last byte.
    """
    require(NGINX, "no nginx here: apt-get install nginx")
    video = bytes(24 * 2**20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = Proxy(tmp_path / "nginx", f"127.0.0.1:{server.getsockname()[1]}")
        try:
            with proxy.connect(room=2048) as reader:
                reader.sendall(
                    f"GET /v1/videos/v/content HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
                )
                service, _ = server.accept()
                with service:
                    service.recv(4096)
                    service.settimeout(25)  # after 30 s nginx gives the client up, and the answer
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(video)}\r\n\r\n"
                    service.sendall(head.encode() + video)
        finally:
            proxy.stop()


def test_one_address_has_so_many_connections(proxy):
    """The 101st request at a time is refused; a request is one that nginx has read."""
    with contextlib.ExitStack() as open_ones:
        for _ in range(100):
            waiting = open_ones.enter_context(proxy.connect())
            waiting.sendall(
                f"POST /v1/videos HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 9\r\n\r\n".encode()
            )
        with proxy.client() as one_more:

            def refused():
                return (
                    answer
                    if (answer := proxy.request(one_more, "GET", "/livez")).status_code == 429
                    else None
                )

            answer = wait_for(refused)
    assert error_of(answer)["code"] == "rate_limited"
    assert answer.headers["retry-after"] == "1"


def test_one_address_has_so_many_streams(proxy, client):
    body = {"prompt": "slow", "num_inference_steps": 90}
    path = f"/v1/videos/{proxy.request(client, 'POST', '/v1/videos', json=body).json()['id']}"
    with contextlib.ExitStack() as open_ones:
        for _ in range(20):
            one = open_ones.enter_context(proxy.connect())
            one.sendall(f"GET {path}/events HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            assert b" 200 " in one.recv(4096).splitlines()[0]
        answer = proxy.request(client, "GET", f"{path}/events")
        assert (answer.status_code, error_of(answer)["code"]) == (429, "rate_limited")
        assert proxy.request(client, "GET", path).status_code == 200  # polling goes on
    proxy.request(client, "POST", f"{path}/cancel")


def test_refusals_of_nginx_have_the_services_shape(proxy, client):
    large = proxy.request(client, "POST", "/v1/videos", content=b"x" * (2**20 + 1))
    assert (large.status_code, error_of(large)["code"]) == (413, "body_too_large")
    outside = proxy.request(client, "GET", "/metrics")
    assert (outside.status_code, error_of(outside)["code"]) == (404, "not_found")


def test_a_foreign_name_is_refused_by_the_service(proxy):
    with proxy.client() as client:
        client.headers["Host"] = "evil.example.com"
        assert 400 <= proxy.request(client, "GET", "/v1/videos").status_code < 500


def test_an_upgrade_that_is_offered_is_not_passed_on(proxy, client):
    """Java's client offers h2c with every request."""
    offer = {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAMAAABk",
    }
    body = {"prompt": "a red circle"}
    answer = proxy.request(client, "POST", "/v1/videos", json=body, headers=offer)
    assert answer.status_code == 200, answer.text


def test_http_2(proxy):
    """As a browser speaks it, and `curl --http2`: a body arrives whole."""
    command = (
        f"curl --silent --http2 --resolve {NAME}:{proxy.https}:127.0.0.1 "
        f"--cacert {proxy.folder}/certificate.pem --json @- "
        f"--write-out %{{stderr}}%{{http_version}} https://{NAME}:{proxy.https}/v1/videos"
    )
    body = json.dumps({"prompt": "a red circle"})
    done = subprocess.run(command.split(), input=body, capture_output=True, text=True, check=True)
    assert done.stderr == "2"
    assert json.loads(done.stdout)["status"] in ("queued", "in_progress", "completed")


def test_a_service_that_is_away(tmp_path):
    require(NGINX, "no nginx here: apt-get install nginx")
    proxy = Proxy(tmp_path / "nginx", f"127.0.0.1:{free_port()}")
    try:
        with proxy.client() as client:
            answer = proxy.request(client, "POST", "/v1/videos", json={"prompt": "x"})
    finally:
        proxy.stop()
    assert (answer.status_code, error_of(answer)["code"]) == (503, "not_ready")
    assert answer.headers["retry-after"] == "5"
    assert error_of(answer)["type"] == "server_error"


def test_before_a_unix_socket(tmp_path):
    """The other line of the upstream, as the file has it, with something that answers behind it."""
    require(NGINX, "no nginx here: apt-get install nginx")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "http.sock"))
        server.listen()
        line = "server unix:/run/wan-tpu/http.sock max_conns=800 max_fails=0;"
        assert f"    # {line}\n" in SITE.read_text()
        proxy = Proxy(tmp_path / "nginx", f"unix:{tmp_path}/http.sock")
        try:
            with proxy.connect() as client:
                client.sendall(f"GET /livez HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
                service, _ = server.accept()
                with service:
                    head = service.recv(4096).decode()
                    service.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        finally:
            proxy.stop()
    assert head.startswith("GET /livez HTTP/1.1\r\n")
    assert f"\r\nHost: {NAME}\r\n" in head
