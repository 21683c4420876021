"""Tickets: a cookie that reads the files of one video, for a while, and nothing else."""

import time

import pytest
from starlette.requests import Request

from server.http.tickets import COOKIE, SECONDS, Tickets
from server.keys import add_key, hash_key, remove_key
from tests.server.http.test_errors import check_shape
from tests.server.running import wait_for

VIDEO = "video_" + 32 * "0"
KEY = "wt-a-key"


def request(path=f"/v1/videos/{VIDEO}/content", cookie=None, method="GET"):
    headers = [(b"host", b"here")]
    if cookie is not None:
        headers.append((b"cookie", f"{COOKIE}={cookie}".encode()))
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "scheme": "http"}
    return Request({**scope, "server": ("here", 80), "query_string": b""})


def given(tickets, video_id=VIDEO):
    header = tickets.give(request(method="POST"), video_id, KEY).headers["set-cookie"]
    return header.partition("=")[2].partition(";")[0]


def test_a_ticket_reads_the_files_of_its_video_until_it_ends(monkeypatch):
    tickets = Tickets()
    ticket = given(tickets)
    assert KEY not in ticket
    for method in ("GET", "HEAD"):
        assert tickets.key_hash(request(cookie=ticket, method=method)) == hash_key(KEY)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + SECONDS + 1)
    assert tickets.key_hash(request(cookie=ticket)) is None


def test_a_ticket_is_good_for_nothing_else():
    tickets = Tickets()
    ticket = given(tickets)
    until, owner, signature = ticket.split(".")
    other = "video_" + 32 * "1"
    refused = [
        request(),
        request(cookie=""),
        request(cookie=given(Tickets())),  # of another process
        request(cookie=f"{int(until) + 1}.{owner}.{signature}"),
        request(cookie=f"{until}.{hash_key('another')}.{signature}"),
        request(cookie=f"{until}.{owner}.{64 * '0'}"),
        request(cookie=ticket, path=f"/v1/videos/{other}/content"),
        request(cookie=ticket, path=f"/v1/videos/{VIDEO}"),
        request(cookie=ticket, path=f"/v1/videos/{VIDEO}/content/more"),
        request(cookie=ticket, method="DELETE"),
    ]
    assert [tickets.key_hash(each) for each in refused] == [None] * len(refused)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_script_and_no_other_site_can_use_the_cookie(scheme):
    asked = request(method="POST")
    asked.scope["scheme"] = scheme
    response = Tickets().give(asked, VIDEO, KEY)
    assert response.status_code == 204
    _, *attributes = response.headers["set-cookie"].split("; ")
    expected = {"HttpOnly", "SameSite=strict", f"Max-Age={SECONDS}"}
    assert set(attributes) == expected | ({"Secure"} if scheme == "https" else set())


def test_over_http_with_ranges_until_the_key_is_taken_out(start_server, tmp_path):
    path = tmp_path / "keys"
    bearer = {name: {"Authorization": f"Bearer {add_key(path, name)}"} for name in ("ada", "bob")}
    server = start_server(api_keys_file=path)
    client = server.client
    body = {"prompt": "x", "num_inference_steps": 1}
    video = client.post("/v1/videos", json=body, headers=bearer["ada"]).json()
    url = f"/v1/videos/{video['id']}"
    wait_for(lambda: client.get(f"{url}/content", headers=bearer["ada"]).status_code == 200)
    check_shape(client.post(f"{url}/ticket"), 401, "missing_api_key")
    check_shape(client.post(f"{url}/ticket", headers=bearer["bob"]), 404, "not_found", "video_id")
    assert not client.cookies
    assert client.post(f"{url}/ticket", headers=bearer["ada"]).status_code == 204
    assert client.cookies  # httpx sends it below the video's address alone, as browsers do
    part = client.get(f"{url}/content", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert client.get(f"{url}/content?variant=thumbnail").status_code == 200
    for method, other in (("GET", url), ("DELETE", url), ("POST", f"{url}/cancel"),
                          ("GET", f"{url}/events"), ("GET", "/v1/videos")):  # fmt: skip
        check_shape(client.request(method, other), 401, "missing_api_key")
    check_shape(client.get(f"{url}/content", headers=bearer["bob"]), 404, "not_found", "video_id")
    remove_key(path, "ada")
    wait_for(lambda: client.get(f"{url}/content").status_code == 401)
