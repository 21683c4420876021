"""A folder of adapters over real HTTP: what is listed, what a request may name, what is watched."""

import json
import pathlib

import openai
import pytest

import wan_tpu
from tests.server.http.test_errors import check_shape
from tests.server.running import SCRIPTED, RunningServer, wait_for

FITTING = pathlib.Path(wan_tpu.__file__).parent / "demo" / "wan-tiny-4.safetensors"
FEW = {"num_inference_steps": 2}


def put(path, **header):
    """An adapter of wan-tiny, whose file says these texts of itself."""
    data = FITTING.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    said = {f"modelspec.{name}": text for name, text in header.items()}
    head = json.dumps(json.loads(data[8:end]) | {"__metadata__": said}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[end:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a good adapter, a bad one, one that lies outside, and a secret beside it."""
    root = tmp_path_factory.mktemp("adapters")
    folder = root / "shared"
    folder.mkdir()
    put(folder / "fox.safetensors", trigger_phrase="f0x", description="a\nfox  of paper")
    put(root / "secret.safetensors")
    (folder / "bad.safetensors").write_bytes(b"no tensors at all")
    (folder / "out.safetensors").symlink_to(root / "secret.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, folder):
    found = RunningServer(
        tmp_path_factory.mktemp("adapted") / "data", engine=SCRIPTED, adapters=folder
    )
    yield found.wait_ready()
    found.stop()


def listed(server):
    (model,) = server.client.get("/v1/models").json()["data"]
    return {each["name"]: each for each in model["adapters"]}


def sent(server, lora, **fields):
    return server.client.post("/v1/videos", json={"prompt": "x", **FEW, "lora": lora, **fields})


def test_the_list_says_what_each_is_and_what_is_wrong(server):
    found = listed(server)
    assert found.keys() == {"fox.safetensors", "bad.safetensors", "out.safetensors"}
    fox = found["fox.safetensors"]
    assert (fox["trigger"], fox["description"]) == ("f0x", "a fox of paper")
    assert "rank" in fox["summary"]
    assert (fox["fault"], fox["expert"]) == (None, None)
    assert found["out.safetensors"]["fault"] == (
        "out.safetensors is a link that leads out of the folder"
    )
    assert found["bad.safetensors"]["fault"]
    assert str(server.environment["WAN_TPU_ADAPTERS"]) not in str(found)


def test_presets_and_caches_are_listed_and_the_client_of_openai_still_lists_models(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        (model,) = client.models.list().data
        assert client.models.retrieve(model.id) == model
    (preset,) = [each for each in model.model_extra["presets"] if each["own"]]
    assert (preset["name"], preset["needs_lora"]) == ("wan-tiny-4", False)
    assert len(preset["sigmas"]) == len(preset["timesteps"]) == 4
    names = [each["name"] for each in model.model_extra["step_caches"]]
    assert [name.partition(":")[0] for name in names] == ["magcache", "easycache"]
    for name in names:
        answer = server.client.post("/v1/videos", json={"prompt": "x", "step_cache": name})
        assert answer.json()["metadata"]["request"]["step_cache"] == name


def test_what_is_used_is_said_by_the_video(server):
    objects = [
        {"name": "fox.safetensors", "strength": 0.5},
        {"name": "fox.safetensors", "strength": -1.0},
    ]
    video = sent(server, objects).json()
    assert video["metadata"]["request"]["lora"] == objects
    form = [("prompt", (None, "x")), ("num_inference_steps", (None, "2"))]
    for parts in (
        [("lora", "fox.safetensors:0.5,fox.safetensors:-1")],
        [("lora", "fox.safetensors:0.5"), ("lora", "fox.safetensors:-1")],
        [("lora[][name]", "fox.safetensors")] * 2
        + [("lora[][strength]", "0.5"), ("lora[][strength]", "-1")],
    ):
        files = [*form, *((name, (None, value)) for name, value in parts)]
        same = server.client.post("/v1/videos", files=files).json()
        assert same["metadata"]["request"]["lora"] == objects
    done = server.finish(video)
    assert done["metadata"]["request"]["lora"] == objects
    again = sent(server, done["metadata"]["request"]["lora"]).json()
    assert again["metadata"]["request"]["lora"] == objects


@pytest.mark.parametrize(
    "name",
    [
        "secret.safetensors",
        "../secret.safetensors",
        "../shared/fox.safetensors",
        "./fox.safetensors",
        "sub/../fox.safetensors",
        "..",
        ".",
        "/etc/passwd",
        "%2e%2e%2fsecret.safetensors",
        "..%2fsecret.safetensors",
        "..\\secret.safetensors",
        "out.safetensors",
        "fox.safetensors\0",
        "owner/name",
        "~",
    ],
)
def test_nothing_outside_of_the_folder_can_be_named(server, folder, name):
    """Red when a path is joined to the folder as it comes."""
    given = [name, str(folder / name)] if name.startswith(".") else [name]
    for each in given:
        for lora in ([{"name": each}], [each], each):
            error = check_shape(sent(server, lora), 400, "invalid_value", "lora")
            assert "Traceback" not in error["message"]


def test_the_ones_that_can_be_used_are_named(server):
    error = check_shape(sent(server, "foxx"), 400, "invalid_value", "lora")
    assert error["message"] == "unknown adapter 'foxx'; known: fox.safetensors"
    error = check_shape(sent(server, "bad.safetensors"), 400, "invalid_value", "lora")
    assert error["message"].startswith("the adapter bad.safetensors cannot be used: ")
    error = check_shape(sent(server, "fox.safetensors@high"), 400, "invalid_value", "lora")
    assert "this one has one; leave it out" in error["message"]


def test_what_is_put_there_is_there_at_once_and_what_is_bad_is_said_once(server, folder):
    put(folder / "new.safetensors")
    assert sent(server, "new.safetensors").status_code == 200
    assert listed(server)["new.safetensors"]["fault"] is None
    (folder / "new.safetensors").write_bytes(b"overwritten")
    wait_for(lambda: "the adapter new.safetensors cannot be used" in server.log())
    for _ in range(3):
        assert listed(server)["new.safetensors"]["fault"]
    check_shape(sent(server, "new.safetensors"), 400, "invalid_value", "lora")
    assert server.log().count("the adapter new.safetensors cannot be used") == 1
    (folder / "new.safetensors").unlink()
    assert "new.safetensors" not in listed(server)
    assert server.log().count("the adapter bad.safetensors cannot be used") == 1


def test_a_remix_of_what_is_gone_says_so(server, folder):
    put(folder / "gone.safetensors")
    source = server.finish(sent(server, "gone.safetensors:0.5", num_frames=5).json())
    remix = {"prompt": "y", **FEW}
    path = f"/v1/videos/{source['id']}/remix"
    held = server.client.post(path, json=remix).json()["metadata"]["request"]["lora"]
    assert held == [{"name": "gone.safetensors", "strength": 0.5}]
    (folder / "gone.safetensors").unlink()
    error = check_shape(server.client.post(path, json=remix), 400, "invalid_value", "lora")
    assert f"lora is as for {source['id']}" in error["message"]
    for none in (None, "", []):
        made = server.client.post(path, json={**remix, "lora": none}).json()
        assert "lora" not in made["metadata"]["request"]
