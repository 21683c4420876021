"""What is known of a request afterwards: its id, its line in the log, its figures."""

import asyncio
import os
import re
import subprocess
import sys

import httpx

from server.http.app import make_app
from server.keys import add_key
from server.service import open_service
from server.settings import Settings
from tests.server.http.test_access import bearer
from tests.server.http.test_errors import NO_VIDEO, check_shape
from tests.server.http.test_wire import connect, read_response
from tests.server.running import ROOT, SCRIPTED, wait_for


def lines_of(server, *words):
    return [line for line in server.log().splitlines() if all(word in line for word in words)]


def test_every_answer_carries_an_id_that_the_log_knows(quick):
    for response in (
        quick.client.get("/livez"),
        quick.client.get("/nothing"),
        quick.client.get(NO_VIDEO),
        quick.client.post("/v1/videos", json={}),
        quick.client.get("/v1/models", headers={"Host": "evil.example"}),
        quick.client.get("/web/main.js"),
    ):
        identity = response.headers["x-request-id"]
        assert re.fullmatch("req_[0-9a-f]{16}", identity)
        if response.status_code >= 400:
            wait_for(lambda identity=identity: lines_of(quick, f"request={identity}"))


def test_the_id_of_a_proxy_is_kept_and_no_other_text(quick):
    given = {"X-Request-Id": "0af7651916cd43dd8448eb211c80319c"}
    assert (
        quick.client.get("/livez", headers=given).headers["x-request-id"] == given["X-Request-Id"]
    )
    for text in ("short", "x" * 65, 'a" level=error b="', "two words here"):
        answer = quick.client.get("/livez", headers={"X-Request-Id": text})
        assert answer.headers["x-request-id"].startswith("req_")


def test_what_never_became_a_request_is_noted_too(quick):
    meter = 'wan_tpu_http_request_seconds_count{method="other",route="none",status="400"}'
    before = quick.metric(meter)
    with connect(quick) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        status, head, _ = read_response(connection)
    assert status == 400
    identity = re.search("x-request-id: (req_[0-9a-f]+)", head)[1]
    wait_for(lambda: lines_of(quick, f"request={identity}", "status=400"))
    assert quick.metric(meter) == before + 1


def test_a_fault_of_ours_is_an_answer_like_any_other(tmp_path, caplog):
    """A server of its own, whose application has got one more route."""
    service = open_service(Settings(data_dir=tmp_path / "data"))
    app = make_app(service)

    @app.get("/v1/broken")
    async def broken() -> None:
        raise ZeroDivisionError("our own mistake")

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/v1/broken")

    with caplog.at_level("INFO"):
        response = asyncio.run(ask())
    service.jobs.store.close()
    error = check_shape(response, 500, "internal_error")
    identity = response.headers["x-request-id"]
    assert identity in error["message"]
    assert response.headers["connection"] == "close"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    assert "our own mistake" not in response.text
    labels = {"method": "GET", "status": "500", "route": "/v1/broken"}
    registry = service.metrics.registry
    assert registry.get_sample_value("wan_tpu_http_request_seconds_count", labels) == 1
    assert any("our own mistake" in (record.exc_text or "") for record in caplog.records)
    assert any(getattr(record, "status", None) == 500 for record in caplog.records)


def test_figures_are_told_apart_by_route(quick):
    quick.client.get(NO_VIDEO)
    quick.client.get("/some/where/" + "x" * 50)
    for route, method in (("/v1/videos/{video_id}", "GET"), ("other", "GET")):
        labels = f'{{method="{method}",route="{route}",status="404"}}'
        assert quick.metric(f"wan_tpu_http_request_seconds_count{labels}") >= 1
    assert "/some/where" not in quick.client.get("/metrics").text


def test_who_created_cancelled_and_deleted(start_server, tmp_path):
    path = tmp_path / "keys"
    key = add_key(path, "ada")
    server = start_server(api_keys_file=path)
    headers = bearer(key)
    made = server.client.post("/v1/videos", json={"prompt": "slow"}, headers=headers)
    job = made.json()["id"]
    cancelled = server.client.post(f"/v1/videos/{job}/cancel", headers=headers)
    deleted = server.client.delete(f"/v1/videos/{job}", headers=headers)
    for what, response in (("accepted", made), ("cancelled", cancelled), ("deleted", deleted)):
        words = (f'"job {what}"', f"job={job}", "owner=ada")
        words += (f"request={response.headers['x-request-id']}",)
        wait_for(lambda words=words: lines_of(server, *words))
    assert key not in server.log()


def test_how_long_jobs_wait(start_server):
    server = start_server().wait_ready()
    running = server.create("slow", num_inference_steps=40)
    server.wait_step(running, 1)
    server.create("slow", num_inference_steps=1)
    wait_for(lambda: server.metric("wan_tpu_oldest_waiting_seconds") > 0.5)
    server.client.delete(f"/v1/videos/{running['id']}")
    wait_for(lambda: server.metric("wan_tpu_waiting_seconds_count") == 2)
    assert server.metric("wan_tpu_oldest_waiting_seconds") == 0
    assert server.metric("wan_tpu_engine_restarts_total") == 0


def test_readyz_says_when_to_ask_again_and_its_503s_fill_no_log(start_server):
    server = start_server()
    response = server.client.get("/readyz")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) == response.json()["retry_seconds"] >= 1
    assert str(server.data_dir) not in response.text
    server.wait_ready()
    assert not lines_of(server, "path=/readyz")


def test_refusals_of_one_client_do_not_fill_the_log(start_server):
    server = start_server()
    for _ in range(200):
        server.client.get("/nothing")
    wait_for(lambda: lines_of(server, "path=/nothing"))
    assert len(lines_of(server, "path=/nothing")) < 100
    wait_for(lambda: server.client.get("/nothing") and lines_of(server, "unlogged="))


def test_a_stalled_reader_of_the_log_stops_nothing(tmp_path):
    """Its pipe is full after some hundred lines; the server serves, counts, and says so later."""
    read, write = os.pipe()
    environment = {
        **os.environ,
        "WAN_TPU_PORT": "0",
        "WAN_TPU_DATA_DIR": str(tmp_path / "data"),
        "WAN_TPU_ENGINE": SCRIPTED,
        "WAN_TPU_LOG_LEVEL": "info",
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "server"], cwd=ROOT, env=environment, stderr=write
    )
    os.close(write)
    try:
        said = b""
        while not (match := re.search(rb"running on (http://[\w.:]+)", said)):
            said += os.read(read, 65536)
        with httpx.Client(base_url=match[1].decode(), timeout=10) as client:
            while client.get("/metrics").text.find("log_lines_dropped 0.0") >= 0:
                client.post("/v1/videos", json={"prompt": "x" * 100, "num_inference_steps": 1})
            assert client.get("/livez").status_code == 200
            while b"lines were lost" not in said:
                said = said[-100:] + os.read(read, 65536)
        process.terminate()
        os.set_blocking(read, False)
        process.wait(60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        os.close(read)


def test_every_503_says_when_to_come_again(start_server, tmp_path):
    path = tmp_path / "keys"
    key = add_key(path, "ada")
    server = start_server(api_keys_file=path)
    path.rename(tmp_path / "away")
    wait_for(lambda: server.client.get("/v1/models", headers=bearer(key)).status_code == 503)
    for response in (server.client.get("/readyz"), server.client.get("/v1/models")):
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
