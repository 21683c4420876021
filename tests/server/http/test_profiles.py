"""Profiles over HTTP: of the real engine's steps, beside its jobs; who may, and how many."""

import io
import os
import signal
import tarfile

import jax
import pytest

from server.keys import add_key
from tests.server.http.test_access import bearer
from tests.server.http.test_errors import check_shape
from tests.server.running import wait_for

CPU = {"JAX_PLATFORMS": "cpu"}
"""A scripted engine starts JAX for the profile alone."""


def begin(server, **wanted):
    response = server.client.post("/v1/profiles", json=wanted)
    assert response.status_code == 202, response.text
    profile = response.json()
    assert (profile["object"], profile["status"]) == ("profile", "in_progress")
    return profile["id"]


def show(server, profile_id):
    response = server.client.get(f"/v1/profiles/{profile_id}")
    assert response.status_code == 200, response.text
    return response.json()


def finish(server, profile_id):
    def ended():
        profile = show(server, profile_id)
        return profile["status"] != "in_progress" and profile

    return wait_for(ended)


def names_in(server, profile_id, folder):
    """Names of the stages and steps in a downloaded profile."""
    response = server.client.get(f"/v1/profiles/{profile_id}/content")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/gzip"
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        archive.extractall(folder, filter="data")
    (file,) = (folder / profile_id / "trace-1").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    found = {event.name for plane in planes for line in plane.lines for event in line.events}
    return {name for name in found if name.startswith(("text", "denoise", "decode"))}


def test_steps_of_a_running_job_are_recorded_and_it_goes_on(tiny, tmp_path):
    video = tiny.wait_step(tiny.create(num_inference_steps=60), 1)
    profile_id = begin(tiny, steps=2)
    assert tiny.finish(video)["status"] == "completed"
    profile = finish(tiny, profile_id)
    assert (profile["status"], profile["error"]) == ("completed", None), profile
    names = sorted(names_in(tiny, profile_id, tmp_path))
    first, second = (int(name.removeprefix("denoise ")) for name in names)
    assert second == first + 1
    assert first > 1
    listed = tiny.client.get("/v1/profiles").json()["data"]
    assert profile in listed
    part = tiny.client.get(f"/v1/profiles/{profile_id}/content", headers={"Range": "bytes=0-9"})
    assert (part.status_code, len(part.content)) == (206, 10)
    assert tiny.client.delete(f"/v1/profiles/{profile_id}").json()["deleted"] is True
    check_shape(tiny.client.get(f"/v1/profiles/{profile_id}"), 404, "not_found", "profile_id")
    assert list((tiny.data_dir / "profiles").iterdir()) == []


def test_the_next_job_is_recorded_where_none_runs_and_to_its_end(tiny, tmp_path):
    profile_id = begin(tiny)  # three steps
    with_two = tiny.create(num_inference_steps=2)
    assert tiny.finish(with_two)["status"] == "completed"
    assert finish(tiny, profile_id)["status"] == "completed"
    assert names_in(tiny, profile_id, tmp_path) == {"denoise 2"}
    tiny.client.delete(f"/v1/profiles/{profile_id}")


def test_seconds_take_whatever_runs(tiny, tmp_path):
    profile_id = begin(tiny, seconds=2)
    response = tiny.client.post("/v1/profiles")
    check_shape(response, 409, "profile_running")
    check_shape(tiny.client.get(f"/v1/profiles/{profile_id}/content"), 409, "profile_not_ready")
    assert tiny.finish(tiny.create(num_inference_steps=2))["status"] == "completed"
    assert finish(tiny, profile_id)["status"] == "completed"
    assert {"text 1", "denoise 1", "denoise 2"} <= names_in(tiny, profile_id, tmp_path)
    tiny.client.delete(f"/v1/profiles/{profile_id}")


def test_one_that_waits_is_deleted_and_the_next_begins(tiny):
    for _ in range(2):
        profile_id = begin(tiny, steps=1)
        assert tiny.client.delete(f"/v1/profiles/{profile_id}").status_code == 200
    assert tiny.client.get("/v1/profiles").json()["data"] == []
    assert list((tiny.data_dir / "profiles").iterdir()) == []


def test_a_job_that_fails_ends_the_profile_with_what_there_is(start_server, tmp_path):
    server = start_server(environment=CPU).wait_ready()
    assert finish(server, begin(server, seconds=0.1))["status"] == "completed"  # JAX is loaded
    profile_id = begin(server, steps=10)
    video = server.create("slow boom", num_inference_steps=20)
    assert server.finish(video)["error"]["code"] == "engine_error"
    profile = finish(server, profile_id)
    assert profile["status"] == "completed", profile
    assert names_in(server, profile_id, tmp_path) == {"denoise 2"}


def test_an_engine_that_dies_ends_the_profile_with_an_error(start_server):
    server = start_server(environment=CPU).wait_ready()
    profile_id = begin(server, steps=20)
    (pid,) = server.engine_pids()
    os.kill(pid, signal.SIGKILL)
    profile = finish(server, profile_id)
    assert profile["status"] == "failed"
    assert profile["error"]["code"] == "profile_failed"
    assert "ended by SIGKILL" in profile["error"]["message"]
    check_shape(server.client.get(f"/v1/profiles/{profile_id}/content"), 409, "profile_not_ready")
    server.wait_ready()
    assert server.client.delete(f"/v1/profiles/{profile_id}").status_code == 200
    assert finish(server, begin(server, seconds=0.1))["status"] == "completed"


def test_what_is_kept_is_bounded_and_outlives_the_server(start_server):
    server = start_server(environment=CPU).wait_ready()
    profile_id = begin(server, seconds=0.1)
    assert finish(server, profile_id)["status"] == "completed"
    server.kill()
    folder = server.data_dir / "profiles"
    (folder / f"profile_{'a' * 16}").mkdir()  # as a server leaves it that was killed
    (folder / "mine").mkdir()
    for number in range(15):
        (folder / f"profile_{number:016x}.tar.gz").write_bytes(b"x")
    server.start()
    server.wait_ready()
    assert (folder / "mine").is_dir()
    assert not (folder / f"profile_{'a' * 16}").exists()
    assert profile_id in {each["id"] for each in server.client.get("/v1/profiles").json()["data"]}
    response = server.client.post("/v1/profiles")
    check_shape(response, 429, "quota_exceeded")
    assert response.headers["retry-after"]
    assert server.client.delete(f"/v1/profiles/{profile_id}").status_code == 200
    begin(server, seconds=0.1)


def test_before_the_engine_is_ready_nothing_is_begun(start_server):
    server = start_server(environment={**CPU, "SCRIPTED_ENGINE_CANNOT_START": "no"})
    response = server.client.post("/v1/profiles")
    check_shape(response, 503, "not_ready")
    assert response.headers["retry-after"]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ('{"steps": 0}', 400, "invalid_value", "steps"),
        ('{"steps": 21}', 400, "invalid_value", "steps"),
        ('{"steps": true}', 400, "invalid_value", "steps"),
        ('{"steps": 1.5}', 400, "invalid_value", "steps"),
        ('{"steps": [1]}', 400, "invalid_value", "steps"),
        ('{"seconds": 61}', 400, "invalid_value", "seconds"),
        ('{"seconds": NaN}', 400, "invalid_value", "seconds"),
        ('{"steps": 1, "seconds": 1}', 400, "conflict", "seconds"),
        ('{"folder": "/tmp"}', 400, "unknown_field", "folder"),
        ("[1]", 400, "invalid_json", None),
        ("{", 400, "invalid_json", None),
        ("[" * 100_000, 400, "invalid_json", None),
        ("\xff", 400, "invalid_json", None),
    ],
)
def test_bodies_that_are_refused(quick, body, status, code, param):
    response = quick.client.post(
        "/v1/profiles",
        content=body.encode("latin-1"),
        headers={"Content-Type": "application/json"},
    )
    check_shape(response, status, code, param)
    check_shape(
        quick.client.post("/v1/profiles", content=b"steps=1"), 415, "unsupported_media_type"
    )


def test_with_keys_one_is_needed_and_operators_are_those_that_are_named(start_server, tmp_path):
    keys = {name: add_key(tmp_path / "keys", name) for name in ("ada", "bob")}
    settings = {"api_keys_file": tmp_path / "keys", "environment": CPU}
    server = start_server(**settings)
    paths = [
        ("POST", "/v1/profiles"),
        ("GET", "/v1/profiles"),
        ("GET", "/v1/profiles/profile_0"),
        ("DELETE", "/v1/profiles/profile_0"),
        ("GET", "/v1/profiles/profile_0/content"),
    ]
    for method, path in paths:
        check_shape(server.client.request(method, path), 401, "missing_api_key")
    for name in keys:
        assert server.client.get("/v1/profiles", headers=bearer(keys[name])).status_code == 200
    server.kill()
    server.environment["WAN_TPU_OPERATORS"] = "ada"
    server.start()
    for method, path in paths:
        response = server.client.request(method, path, headers=bearer(keys["bob"]))
        check_shape(response, 403, "not_operator")
    assert server.client.get("/v1/profiles", headers=bearer(keys["ada"])).status_code == 200
