"""Few steps, noise levels, step caches and adapters as requests have them, over real HTTP."""

import json

import pytest

from server.http.lists import read_lora
from tests.server.http.test_errors import check_shape

LEVELS = [1.0, 0.9375, 0.8333, 0.625]
PRESET = "wan-tiny-4"


def request_of(video):
    return video["metadata"]["request"]


def sent(server, **fields):
    return server.client.post("/v1/videos", json={"prompt": "x", **fields})


def form(server, *parts):
    files = [(name, (None, value)) for name, value in (("prompt", "x"), *parts)]
    return server.client.post("/v1/videos", files=files)


def test_noise_levels_come_as_a_list_text_or_parts_of_a_form(quick):
    """Red when a field of a form is not read: the video has the model's own steps."""
    text = ",".join(map(str, LEVELS))
    answers = [
        sent(quick, sigmas=LEVELS),
        sent(quick, sigmas=text),
        form(quick, ("sigmas", text)),
        form(quick, *(("sigmas[]", str(each)) for each in LEVELS)),
        form(quick, *(("sigmas", str(each)) for each in LEVELS)),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        request = request_of(answer.json())
        assert (request["sigmas"], request["num_inference_steps"]) == (LEVELS, 4)
        assert (request["scheduler"], request["flow_shift"]) == ("euler", None)
    renoise = sent(quick, sigmas=LEVELS, scheduler="renoise").json()
    assert request_of(renoise)["scheduler"] == "renoise"
    done = quick.finish(renoise)
    assert (done["status"], request_of(done)["sigmas"]) == ("completed", LEVELS)


@pytest.mark.parametrize("name", [True, PRESET])
def test_a_preset_decides(quick, name):
    for answer in (sent(quick, fast=name), form(quick, ("fast", json.dumps(name).strip('"')))):
        request = request_of(answer.json())
        assert (request["fast"], request["guidance_scale"]) == (PRESET, 1.0)
        assert (request["num_inference_steps"], request["scheduler"]) == (4, "euler")
        assert len(request["sigmas"]) == 4
        # What a video says of itself makes it again.
        again = sent(quick, **{**request, "flow_shift": None})
        assert request_of(again.json()) == request


def test_no_preset_is_none(quick):
    for value in (False, None, "", "false"):
        assert "fast" not in request_of(sent(quick, fast=value).json())


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"sigmas": [0.5, 1]}, "sigmas", "numbers that fall"),
        ({"sigmas": "1,a"}, "sigmas", "got '1,a'"),
        ({"sigmas": [True]}, "sigmas", "numbers that fall"),
        ({"sigmas": [[1]]}, "sigmas", "got a list in a list"),
        ({"sigmas": {"a": 1}}, "sigmas", "got an object"),
        ({"sigmas": [1] * 20_000}, "sigmas", "at most 32768 are taken"),
        ({"sigmas": LEVELS, "num_inference_steps": 9}, "num_inference_steps", "names 4 noise"),
        ({"sigmas": LEVELS, "flow_shift": 3}, "flow_shift", "names 4 noise"),
        ({"sigmas": LEVELS, "scheduler": "unipc"}, "scheduler", "names 4 noise"),
        ({"scheduler": "renoise"}, "scheduler", "give sigmas"),
        ({"fast": "lightx2v-a14b-4"}, "fast", "known: wan-tiny-4"),
        ({"fast": "../x"}, "fast", "true, false or the name of a preset"),
        ({"fast": 1}, "fast", "true, false or the name of a preset"),
        ({"fast": True, "num_inference_steps": 20}, "num_inference_steps", "wan-tiny-4 has 4"),
        ({"fast": True, "guidance_scale": 5}, "guidance_scale", "wan-tiny-4 has 1"),
        ({"fast": True, "sigmas": [1, 0.5]}, "sigmas", "wan-tiny-4 has 1,0.9375"),
        ({"step_cache": "magcache:/etc/passwd"}, "step_cache", "for example magcache:0.12"),
        ({"step_cache": "magcache:ratios.json"}, "step_cache", "for example magcache:0.12"),
        ({"step_cache": "magcache@ratios.json"}, "step_cache", "for example magcache:0.12"),
        ({"step_cache": "teacache:0.1"}, "step_cache", "known: magcache, easycache"),
        ({"step_cache": "magcache:9"}, "step_cache", "above 0 and be at most 1"),
        ({"step_cache": "easycache", "sigmas": LEVELS}, "step_cache", "leave one of them out"),
        ({"step_cache": "easycache", "fast": True}, "step_cache", "leave step_cache out"),
        ({"lora": [{"name": "a", "path": "/etc/passwd"}]}, "lora", "{name, strength, expert}"),
        ({"lora": [{"name": "a", "strength": 1, "scale": 1}]}, "lora", "at most 8 adapters"),
        ({"lora": [{"name": "a", "expert": "both"}]}, "lora", "at most 8 adapters"),
        ({"lora": [{"name": ["a"]}]}, "lora", "got a list in an object"),
        ({"lora": [["a"]]}, "lora", "got a list in a list"),
        ({"lora": "a:much"}, "lora", "at most 8 adapters"),
        ({"lora": "a:1e9"}, "lora", "from -100 to 100"),
        ({"lora": "a," * 20}, "lora", "at most 8 adapters"),
        ({"lora": "[" * 20_000}, "lora", "at most 8 adapters"),
    ],
)  # fmt: skip
def test_what_is_wrong_names_its_field(quick, fields, param, words):
    error = check_shape(sent(quick, **fields), 400, "invalid_value", param)
    assert words in error["message"]


def test_a_long_list_is_refused_before_it_is_read(quick):
    """Red when a list without end, or without its bracket, is parsed."""
    for body in (b'{"prompt": "x", "lora": [%s]}' % b",".join([b"{}"] * 20_000),
                 b'{"prompt": "x", "sigmas": [%s' % (b"1," * 20_000)):  # fmt: skip
        answer = quick.client.post(
            "/v1/videos", content=body, headers={"Content-Type": "application/json"}
        )
        assert "bytes, at most 32768 are taken" in answer.json()["error"]["message"]


def test_the_steps_of_a_preset_are_what_counts_as_work(quick):
    """The default of wan-tiny has 12 steps, and max_work is 8 times its work: 8.0 s at 8 fps."""
    assert sent(quick, num_frames=133, num_inference_steps=13).status_code == 400
    assert sent(quick, num_frames=133, fast=True).status_code == 200
    check_shape(sent(quick, num_frames=409, fast=True), 400, "too_much_work", "num_frames")
    many = [1 - step / 100 for step in range(100)]
    check_shape(sent(quick, sigmas=many), 400, "too_much_work", "sigmas")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("fox.safetensors", ("fox.safetensors:1",)),
        ("fox:0.8, bear:-2@high", ("fox:0.8", "bear:-2@high")),
        ("a@low", ("a:1@low",)),
        ('{"name": "a,b:c", "strength": 0.25}', ("a,b:c:0.25",)),
        ('["a", {"name": "b"}]', ("a:1", "b:1")),
        ({"name": "a", "scale": "0.123456789"}, ("a:0.123456789",)),
        ([{"name": "a", "expert": "low"}, "b:2", '{"name": "c"}'], ("a:1@low", "b:2", "c:1")),
        ([], None),
        ("", None),
        (None, None),
    ],
)
def test_adapters_are_read_as_clients_write_them(value, expected):
    assert read_lora(value) == expected


def test_a_form_does_not_guess_what_belongs_together(quick):
    """OpenAI's clients send all names of a list of objects, then all strengths."""
    names = [("lora[][name]", "a"), ("lora[][name]", "b")]
    error = check_shape(
        form(quick, *names, ("lora[][strength]", "1")), 400, "invalid_value", "lora"
    )
    assert "nobody knows what belongs together" in error["message"]


def test_without_a_folder_there_are_no_adapters(quick):
    check_shape(sent(quick, lora="fox.safetensors"), 400, "invalid_value", "lora")
    assert quick.client.get("/v1/models").json()["data"][0]["adapters"] == []
    assert "lora" not in request_of(sent(quick, lora=[]).json())
