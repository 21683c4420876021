"""Who may come in: keys, hosts, origins, rates, and how much a connection may send how slowly."""

import http.client
import json
import socket

import httpx
import pytest

from server.keys import add_key, remove_key
from tests.server.http.test_errors import check_shape
from tests.server.running import wait_for


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def raw(server, data, *, read=True):
    """Sends bytes and returns everything that comes back until the server closes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(data)
        answer = b""
        while read and (chunk := connection.recv(65536)):
            answer += chunk
    return answer


def raw_error(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.fixture
def keyed(start_server, tmp_path):
    """A server with two keys."""
    path = tmp_path / "keys"
    keys = {name: add_key(path, name) for name in ("ada", "bob")}
    server = start_server(api_keys_file=path, max_queued_jobs_per_key=2)
    return server, keys


def test_without_a_key_nothing_is_told(keyed):
    server, _ = keyed
    for path in ("/v1/videos", "/v1/models", "/v1/nothing"):
        check_shape(server.client.get(path), 401, "missing_api_key")
        check_shape(server.client.get(path, headers=bearer("wt-no")), 401, "invalid_api_key")
        response = server.client.get(path, headers={"Authorization": "Basic YTpi"})
        check_shape(response, 401, "missing_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/livez", "/readyz", "/metrics", "/", "/openapi.json"):
        assert server.client.get(path).status_code in (200, 503)


def test_any_host_will_do_where_keys_are_asked_for(keyed):
    server, keys = keyed
    server.kill()
    server.environment["WAN_TPU_ALLOWED_HOSTS"] = "*"
    server.start()
    for host in ("anything.example", "[", "a b", "@"):
        headers = {**bearer(keys["ada"]), "Host": host}
        check_shape(server.client.get("/v1/nothing", headers=headers), 404, "not_found")


def test_each_key_sees_its_own_jobs(keyed):
    server, keys = keyed
    video = server.client.post(
        "/v1/videos", json={"prompt": "x", "num_inference_steps": 1}, headers=bearer(keys["ada"])
    ).json()
    url = f"/v1/videos/{video['id']}"
    assert server.client.get(url, headers=bearer(keys["ada"])).status_code == 200
    bob = bearer(keys["bob"])
    for method, path in (("GET", url), ("DELETE", url), ("POST", url + "/cancel"),
                         ("GET", url + "/content"), ("GET", url + "/events")):  # fmt: skip
        response = server.client.request(method, path, headers=bob)
        check_shape(response, 404, "not_found", "video_id")
    assert server.client.get("/v1/videos", headers=bob).json()["data"] == []
    assert len(server.client.get("/v1/videos", headers=bearer(keys["ada"])).json()["data"]) == 1
    assert server.client.delete(url, headers=bearer(keys["ada"])).status_code == 200


def test_an_idempotency_key_is_the_callers_own(keyed):
    server, keys = keyed
    ids = [
        server.client.post(
            "/v1/videos",
            json={"prompt": name, "num_inference_steps": 1},
            headers={**bearer(keys[name]), "Idempotency-Key": "one"},
        ).json()["id"]
        for name in ("ada", "bob")
    ]
    assert len(set(ids)) == 2


def test_one_key_cannot_fill_the_queue_and_keys_take_turns(keyed):
    server, keys = keyed

    def post(name, prompt):
        return server.client.post(
            "/v1/videos",
            json={"prompt": prompt, "num_inference_steps": 90},
            headers=bearer(keys[name]),
        )

    def position(name, response):
        url = f"/v1/videos/{response.json()['id']}"
        return server.client.get(url, headers=bearer(keys[name])).json()["queue_position"]

    running = post("ada", "slow").json()
    wait_for(lambda: server.metric("wan_tpu_queue_length") == 0)
    ada = [post("ada", "slow"), post("ada", "slow")]
    check_shape(post("ada", "slow"), 429, "queue_full")
    bob = post("bob", "slow")
    assert [position("ada", r) for r in ada] == [2, 3]
    assert position("bob", bob) == 1, running


def test_a_removed_key_is_out_within_seconds(keyed):
    server, keys = keyed
    assert server.client.get("/v1/videos", headers=bearer(keys["ada"])).status_code == 200
    remove_key(server.data_dir.parent / "keys", "ada")
    wait_for(
        lambda: server.client.get("/v1/videos", headers=bearer(keys["ada"])).status_code == 401
    )
    assert server.client.get("/v1/videos", headers=bearer(keys["bob"])).status_code == 200


def test_a_key_is_rotated_while_the_server_runs(keyed):
    server, keys = keyed
    path = server.data_dir.parent / "keys"
    fields = {"prompt": "x", "num_inference_steps": 1}
    made = server.client.post("/v1/videos", json=fields, headers=bearer(keys["ada"])).json()
    new = add_key(path, "ada", second=True)
    url = f"/v1/videos/{made['id']}"
    wait_for(lambda: server.client.get(url, headers=bearer(new)).status_code == 200)
    assert server.client.get(url, headers=bearer(keys["ada"])).status_code == 200
    remove_key(path, "ada", older=True)
    wait_for(lambda: server.client.get(url, headers=bearer(keys["ada"])).status_code == 401)
    assert server.client.get(url, headers=bearer(new)).status_code == 200


@pytest.mark.parametrize("how", ["gone", "nonsense"])
def test_keys_that_cannot_be_read_open_nothing(keyed, how):
    """Whoever took a key out by hand may have done it so; and it is told, without the path."""
    server, keys = keyed
    path = server.data_dir.parent / "keys"
    away = path.rename(path.with_name("away"))
    if how == "nonsense":
        path.write_text("ada\n")
    headers = bearer(keys["ada"])
    wait_for(lambda: server.client.get("/v1/videos", headers=headers).status_code == 503)
    response = server.client.post("/v1/videos", json={"prompt": "x"}, headers=headers)
    check_shape(response, 503, "keys_unavailable")
    assert int(response.headers["retry-after"]) >= 1
    ready = server.client.get("/readyz")
    assert "the API keys cannot be read" in ready.json()["missing"]
    assert str(path) not in ready.text
    assert str(path) in server.log()
    away.rename(path)
    wait_for(lambda: server.client.get("/v1/videos", headers=headers).status_code == 200)


def test_a_stream_ends_with_its_key(keyed):
    server, keys = keyed
    server.wait_ready()
    fields = {"prompt": "slow", "num_inference_steps": 90}
    videos = {
        name: server.client.post("/v1/videos", json=fields, headers=bearer(key)).json()["id"]
        for name, key in keys.items()
    }

    def follow(name):
        url = f"/v1/videos/{videos[name]}/events"
        return server.client.stream("GET", url, headers=bearer(keys[name]))

    with follow("ada") as adas, follow("bob") as bobs:
        assert adas.status_code == bobs.status_code == 200
        remove_key(server.data_dir.parent / "keys", "ada")
        seen = [line for line in adas.iter_lines() if line.startswith("data: ")]
        assert json.loads(seen[-1].removeprefix("data: "))["status"] in ("queued", "in_progress")
        assert next(bobs.iter_lines())


def test_readiness_tells_no_particulars_to_strangers(keyed):
    server, keys = keyed
    strangers = server.client.get("/readyz")
    ours = server.client.get("/readyz", headers=bearer(keys["ada"]))
    assert strangers.status_code == ours.status_code == 503
    assert strangers.json()["missing"] == ["the engine is not ready"]
    assert ours.json()["missing"][0].startswith("the engine is not ready: ")
    assert strangers.json()["error"]["message"] == "the engine is not ready"


def test_subdomains_by_a_star(start_server):
    server = start_server(allowed_hosts="*.c.example.com, d.example.com.")
    for host in ("a.c.example.com", "A.b.C.example.com:8443", "d.example.com", "D.example.com."):
        assert server.client.get("/livez", headers={"Host": host}).status_code == 200, host
    for host in ("c.example.com", "evilc.example.com", "a.c.example.com.evil", "x.d.example.com"):
        check_shape(server.client.get("/livez", headers={"Host": host}), 400, "invalid_host")


def test_too_many_requests(start_server):
    server = start_server(max_requests_per_second=2)
    responses = [server.client.get("/v1/models") for _ in range(6)]
    refused = [r for r in responses if r.status_code != 200]
    assert refused
    check_shape(refused[0], 429, "rate_limited")
    assert int(refused[0].headers["Retry-After"]) >= 1
    assert server.client.get("/livez").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil"])
def test_a_foreign_host_is_refused(quick, host):
    response = quick.client.get("/v1/videos", headers={"Host": host})
    check_shape(response, 400, "invalid_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:8000"])
def test_our_own_hosts_are_taken(quick, host):
    assert quick.client.get("/v1/videos", headers={"Host": host}).status_code == 200


def test_a_page_of_another_site_cannot_act(quick):
    evil = {"Origin": "https://evil.example"}
    form = {"prompt": (None, "x")}
    check_shape(quick.client.post("/v1/videos", files=form, headers=evil), 403, "cross_origin")
    for origin in ("null", "", "http://[", f"{quick.url}.evil.example", f"{quick.url}@evil"):
        response = quick.client.post("/v1/videos", files=form, headers={"Origin": origin})
        check_shape(response, 403, "cross_origin")
    ours = {"Origin": quick.url}
    fields = {"prompt": "x", "num_inference_steps": 1}
    assert quick.client.post("/v1/videos", json=fields, headers=ours).status_code == 200


def test_large_bodies_are_refused(start_server):
    server = start_server(max_body_bytes=1000, max_upload_bytes=300)
    headers = {"Content-Type": "application/json"}
    # Two pictures in base64 may come with a prompt; with a remix none.
    for path, characters in (("/v1/videos", 2000), (f"/v1/videos/{'x' * 38}/remix", 1000)):
        body = json.dumps({"prompt": "x" * characters})
        response = server.client.post(path, content=body, headers=headers)
        check_shape(response, 413, "body_too_large")

    def chunks():
        yield b'{"prompt": "'
        for _ in range(10):
            yield b"x" * 200

    response = httpx.post(f"{server.url}/v1/videos", content=chunks(), headers=headers)
    check_shape(response, 413, "body_too_large")


def test_slow_bodies_and_heads_are_cut_off(start_server):
    server = start_server(body_timeout_seconds=0.5)
    head = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert raw_error(raw(server, head + b"Content-Length: 100\r\n\r\n{")) == (408, "body_too_slow")
    stopped = head + b"Content-Length: 9000000\r\n\r\n" + b"x" * 300_000  # in the midst of a file
    assert raw_error(raw(server, stopped)) == (408, "body_too_slow")
    assert raw_error(raw(server, head)) == (408, "head_too_slow")
    assert raw_error(raw(server, b"")) == (408, "head_too_slow")


def test_a_slow_second_request_on_a_connection_is_cut_off(start_server):
    server = start_server(body_timeout_seconds=0.5)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"live"}'):
            answer += connection.recv(65536)
        connection.sendall(b"GET /livez HT")
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        assert raw_error(answer) == (408, "head_too_slow")


def test_large_heads_are_refused(quick):
    head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
    assert raw_error(raw(quick, head + b"X: " + b"x" * 100_000)) == (431, "head_too_large")


def test_what_is_not_http_is_refused_in_our_shape(quick):
    assert raw_error(raw(quick, b"\x16\x03\x01 hello\r\n\r\n")) == (400, "invalid_http")


def test_a_request_without_a_host(quick):
    answer = raw(quick, b"GET /v1/videos HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert raw_error(answer) == (400, "invalid_host")


def test_keep_alive_connections_go_on_working(quick):
    host, port = quick.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    for _ in range(50):
        connection.request("GET", "/v1/models", headers={"X-Padding": "x" * 4000})
        response = connection.getresponse()
        assert response.status == 200
        response.read()
    connection.close()
