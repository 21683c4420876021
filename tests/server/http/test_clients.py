"""What clients do that are in use: old ones, proxies, browsers, other people's tools."""

import json
import os
import re
import subprocess

import numpy as np
import pytest

from tests.cli.conftest import COMMAND
from tests.server.http.test_errors import check_shape
from tests.server.http.test_wire import connect, post, read_response, request, send
from tests.server.running import wait_for
from wan_tpu.pipeline.video_file import read_frames


def test_the_command_line_makes_the_same_frames_there_as_here(tiny, tmp_path):
    """Red when a field of the request is lost on the way, or the server's programs differ."""
    drop = ("XLA_FLAGS", "JAX_PLATFORMS")
    environment = {name: value for name, value in os.environ.items() if name not in drop}
    prompt = "a red circle moving right on a black background"
    request = ("generate", prompt, "--seed", "3", "--sigmas", "1,0.75,0.5")  # compiled already
    frames = {}
    for name, words in (("there", ("remote",)), ("here", ())):
        path = tmp_path / f"{name}.mp4"
        server = ("--server", tiny.url) if words else ()
        done = subprocess.run(
            [*COMMAND, *words, *request, *server, "-o", str(path)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        frames[name] = read_frames(path)
    assert frames["there"].shape == (17, 64, 64, 3)
    np.testing.assert_array_equal(frames["there"], frames["here"])


def read_all(connection):
    answer = b""
    while chunk := connection.recv(65536):
        answer += chunk
    return answer


OFFERS = {
    "h2c": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
    "websocket": (
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ),
    "anything": (b"Connection: keep-alive, upgrade", b"Upgrade: foo/2"),
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_an_offer_to_speak_something_else_is_ignored(quick, offer):
    """Also where the body comes after the head, and for the request after it."""
    data = post(b'{"prompt": "x", "num_inference_steps": 1}', *offer)
    head, end, body = data.partition(b"\r\n\r\n")
    with connect(quick) as connection:
        for parts in ((data,), (head + end, body), (data,)):
            for part in parts:
                connection.sendall(part)
            status, _, answer = read_response(connection)
            assert (status, json.loads(answer)["prompt"]) == (200, "x")
        connection.sendall(request(b"GET", b"/livez", *offer))
        assert read_response(connection)[0] == 200
    assert "Unsupported upgrade" not in quick.log()


def test_events_for_http_1_0_are_not_cut_into_chunks(quick):
    video = quick.create("slow", num_inference_steps=3)
    with connect(quick) as connection:
        path = f"/v1/videos/{video['id']}/events".encode()
        connection.sendall(b"GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n" % path)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"event: video\n")
    data = [line for line in body.split(b"\n") if line.startswith(b"data: ")]
    assert json.loads(data[-1].removeprefix(b"data: "))["status"] == "completed"


def test_http_1_0_without_a_host_is_told_why(quick):
    with connect(quick) as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert b'"code": "invalid_host"' in read_all(connection)


def test_head_everywhere_where_get_is(quick):
    video = quick.finish(quick.create(num_inference_steps=1))
    paths = [path.replace("{video_id}", video["id"]).replace("{model_id}", "wan-tiny")
             for path, methods in quick.client.get("/openapi.json").json()["paths"].items()
             if "get" in methods]  # fmt: skip
    assert len(paths) >= 8
    for path in (*paths, "/", "/docs", "/openapi.json", "/health", "/web/main.js"):
        got, head = quick.client.get(path), quick.client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]
        if path not in ("/metrics", f"/v1/videos/{video['id']}/events"):
            assert head.headers["content-length"] == str(len(got.content)), path
    head = quick.client.head("/v1/videos/video_" + "0" * 32)
    assert (head.status_code, head.content) == (404, b"")


def test_head_of_events_ends_at_once(quick):
    video = quick.create("slow", num_inference_steps=90)
    head = quick.client.head(f"/v1/videos/{video['id']}/events")
    assert head.headers["content-type"].startswith("text/event-stream")
    assert quick.retrieve(video)["status"] != "completed"
    quick.client.delete(f"/v1/videos/{video['id']}")


def test_a_slash_at_the_end(quick):
    response = quick.client.post("/v1/videos/", json={"prompt": "x", "num_inference_steps": 1})
    assert response.status_code == 200
    assert quick.client.get(f"/v1/videos/{response.json()['id']}/").status_code == 200
    for path in ("/v1/videos/", "/v1/models/", "/v1/models/wan-tiny/", "/livez/", "/health/"):
        assert quick.client.get(path).status_code == 200, path
    assert quick.client.get("/v1/videos//").status_code == 200


def test_a_base_url_without_v1_is_told_what_is_wrong(quick):
    error = check_shape(quick.client.post("/videos", json={"prompt": "x"}), 404, "not_found")
    assert "ends in /v1" in error["message"]


def test_health_is_readiness(start_server):
    server = start_server()
    statuses = [server.client.get("/health").status_code]
    wait_for(
        lambda: statuses.append(server.client.get("/health").status_code) or statuses[-1] == 200
    )
    assert set(statuses) == {200, 503}


def test_one_model_whose_name_has_a_slash(start_server):
    server = start_server(served_model_name="Wan-AI/Wan2.1-T2V-14B")
    model = server.client.get("/v1/models/Wan-AI/Wan2.1-T2V-14B").json()
    assert model == server.client.get("/v1/models").json()["data"][0]
    assert model["id"] == "Wan-AI/Wan2.1-T2V-14B"
    assert server.client.get("/v1/models/Wan-AI%2FWan2.1-T2V-14B").json() == model
    assert server.create(model="Wan-AI/Wan2.1-T2V-14B")["model"] == "Wan-AI/Wan2.1-T2V-14B"
    check_shape(server.client.get("/v1/models/Wan-AI"), 404, "model_not_found", "model_id")


def test_a_model_name_is_not_echoed_whole(quick):
    body = {"prompt": "x", "model": "m" * 100_000}
    response = quick.client.post("/v1/videos", json=body)
    check_shape(response, 404, "model_not_found", "model")
    assert len(response.content) < 400


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    """A server that pages of one other origin may use."""
    from tests.server.running import SCRIPTED, RunningServer

    folder = tmp_path_factory.mktemp("crossed")
    server = RunningServer(folder, engine=SCRIPTED, cors_origins="https://app.example.com")
    yield server.wait_ready()
    server.stop()


PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
}


def test_pages_of_a_named_origin_may_use_the_api(crossed):
    ours = {"Origin": "https://app.example.com"}
    answer = crossed.client.options("/v1/videos", headers={**ours, **PREFLIGHT})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "POST" in answer.headers["access-control-allow-methods"]
    fields = {"prompt": "x", "num_inference_steps": 1}
    made = crossed.client.post("/v1/videos", json=fields, headers=ours)
    assert made.status_code == 200
    assert made.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "X-Request-Id" in made.headers["access-control-expose-headers"]
    refused = crossed.client.post("/v1/videos", json={}, headers=ours)
    check_shape(refused, 400, "missing_field", "prompt")
    assert refused.headers["access-control-allow-origin"] == "https://app.example.com"


def test_pages_of_other_origins_may_not(crossed, quick):
    evil = {"Origin": "https://evil.example"}
    preflight = crossed.client.options("/v1/videos", headers={**evil, **PREFLIGHT})
    assert "access-control-allow-origin" not in preflight.headers
    check_shape(crossed.client.post("/v1/videos", json={}, headers=evil), 403, "cross_origin")
    preflight = quick.client.options("/v1/videos", headers={**evil, **PREFLIGHT})
    check_shape(preflight, 405, "method_not_allowed")


def stream_lines(server, video, **headers):
    path = f"/v1/videos/{video['id']}/events"
    with server.client.stream("GET", path, headers=headers) as response:
        return response.status_code, list(response.iter_lines())


def test_a_browsers_stream_comes_to_an_end(quick):
    """A browser connects again when a stream ends; 204 tells it not to."""
    video = quick.create("slow", num_inference_steps=5)
    status, lines = stream_lines(quick, video)
    assert status == 200
    ids = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
    assert ids[-1] == "completed"
    assert any(re.fullmatch(r"retry: \d+", line) for line in lines)
    assert stream_lines(quick, video, **{"Last-Event-ID": ids[-1]}) == (204, [])
    # One that broke before the end is told of it.
    status, lines = stream_lines(quick, video, **{"Last-Event-ID": "in_progress"})
    assert (status, sum(line.startswith("data: ") for line in lines)) == (200, 1)


def test_any_seed_is_also_minus_one(quick):
    for seed in (-1, "-1"):
        chosen = quick.create(seed=seed, num_inference_steps=1)["metadata"]["request"]["seed"]
        assert chosen >= 0
    headers = {"Idempotency-Key": "any-seed"}
    ids = {
        quick.client.post("/v1/videos", json={"prompt": "x", **fields}, headers=headers).json()[
            "id"
        ]
        for fields in ({}, {"seed": -1}, {"seed": None})
    }
    assert len(ids) == 1


@pytest.mark.parametrize("size", ["96X64", "96*64", "96×64", "96x64"])
def test_sizes_as_people_write_them(quick, size):
    assert quick.create(size=size, num_inference_steps=1)["size"] == "96x64"


def test_an_input_reference_that_is_none(quick):
    assert quick.create(input_reference=None, num_inference_steps=1)["object"] == "video"
    for empty in ((None, ""), ("", b"")):
        form = {"prompt": (None, "x"), "num_inference_steps": (None, "1"), "input_reference": empty}
        response = quick.client.post("/v1/videos", files=form)
        assert response.status_code == 200, response.text


def test_the_docs_load_nothing_from_elsewhere(quick):
    page = quick.client.get("/docs")
    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert not re.findall(r"https?://", page.text)
    names = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(names) == 4
    for name in names:
        response = quick.client.get(name)
        assert response.status_code == 200, name
        assert re.match(r"text/(javascript|css)|image/", response.headers["content-type"]), name


@pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")
def test_what_no_model_here_can_do_is_said_once(quick):
    import openai

    with openai.OpenAI(base_url=f"{quick.url}/v1", api_key="none", max_retries=3) as client:
        with pytest.raises(openai.InternalServerError, match="a character is not") as error:
            client.videos.get_character("char_1")
        assert (error.value.status_code, error.value.code) == (501, "not_supported")
        assert client.models.retrieve("wan-tiny").id == "wan-tiny"


def test_no_more_is_sent_after_an_early_answer(quick):
    """Its body is still to come: what follows on the connection would be taken for a request."""
    head = post(b"x" * 5000, b"Origin: https://evil.example").partition(b"\r\n\r\n")[0]
    status, headers, _ = send(quick, head + b"\r\n\r\n")
    assert status == 403
    assert "connection: close" in headers
