"""`wan-tpu remote` against a fleet: its models, of which one is chosen, and its slices."""

import json

import pytest

from tests.server.shown_fleet import RunningFleet

TINY, TI2V = "wan-tiny", "wan-tiny-ti2v"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    server = RunningFleet(tmp_path_factory.mktemp("fleet") / "data")
    yield server.wait_ready()
    server.stop()


def test_all_models_are_listed_and_one_is_chosen(remote, fleet):
    fleet.show(("a", TINY, "busy"), ("b", TI2V, "ready"))
    code, out, err = remote("models", server=fleet.url)
    assert (code, [line for line in out.splitlines() if line[0] != " "]) == (0, [TINY, TI2V]), err
    code, out, err = remote(
        "generate", "a fox", "--model", TI2V, "--steps", "2", "--detach", server=fleet.url
    )
    assert code == 0, err
    assert fleet.retrieve({"id": out.strip()})["model"] == TI2V
    code, out, err = remote("generate", "a fox", "--model", "of-old", "--detach", server=fleet.url)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert f"known: {TINY}, {TI2V}" in err


def test_slices_are_listed_in_a_table(remote, fleet):
    fleet.show(("a", TINY, "busy"), ("slice-17", TI2V, "loading", "compile\x1b[31m 80x48"))
    code, out, err = remote("slices", server=fleet.url)
    assert code == 0, err
    assert out.splitlines() == [
        "a         busy     5 min  wan-tiny       sp=4 ring",
        "slice-17  loading  5 min  wan-tiny-ti2v  -          compile\ufffd[31m 80x48",
    ]
    code, out, _ = remote("slices", "--json", server=fleet.url)
    assert json.loads(out) == fleet.client.get("/v1/slices").json()["data"]


def test_a_fleet_without_slices_says_so(remote, fleet):
    fleet.show()
    said = {"models": "no slice serves a model now", "slices": "no slice is there"}
    for action, words in said.items():
        code, out, err = remote(action, server=fleet.url)
        assert (code, out, words in err) == (0, "", True), err


def test_a_server_with_its_own_slice_says_so(remote, service):
    code, out, err = remote("slices")
    assert (code, out) == (1, "")
    assert err == f"wan-tpu: {service.url} has its own slice; only a fleet's server lists slices\n"
