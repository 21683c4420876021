"""Every refusal has the one shape and names the field; nothing becomes a 5xx."""

import json

import pytest

from server.http.bodies import EXPECTED, VideoCreate, VideoEdit, VideoExtend, VideoRemix
from server.http.schemas import EXPECTED_PARAMETERS

PROMPT = "a red circle moving right on a black background"
NO_VIDEO = "/v1/videos/video_" + "0" * 32


def check_shape(response, status, code=None, param=None):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    assert "Traceback" not in response.text
    if code is not None:
        assert error["code"] == code, error
    assert error["param"] == param, error
    return error


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "param"),
    [
        ("GET", "/nothing", 404, "not_found", None),
        ("GET", "/v1/nothing", 404, "not_found", None),
        ("POST", "/v1/videos/remix", 405, "method_not_allowed", None),
        ("POST", "/v1/videos/edits", 415, "unsupported_media_type", None),
        ("POST", "/v1/videos/extensions", 415, "unsupported_media_type", None),
        ("POST", "/v1/videos/characters", 501, "not_supported", None),
        ("GET", "/v1/videos/characters/one", 501, "not_supported", None),
        ("POST", NO_VIDEO + "/remix", 415, "unsupported_media_type", None),
        ("GET", NO_VIDEO + "/inputs/image", 404, "not_found", "video_id"),
        ("GET", "/v1/models/wan-huge", 404, "model_not_found", "model_id"),
        ("GET", "/v1/models/owner/wan-huge", 404, "model_not_found", "model_id"),
        ("GET", "/videos", 404, "not_found", None),
        ("GET", "/web/nothing.js", 404, "not_found", None),
        ("GET", "/web/../settings.py", 404, "not_found", None),
        ("GET", "/web/%2e%2e/settings.py", 404, "not_found", None),
        ("GET", "/v1/videos/edits", 405, "method_not_allowed", None),
        ("DELETE", "/v1/videos/extensions", 405, "method_not_allowed", None),
        ("GET", NO_VIDEO + "/remix", 405, "method_not_allowed", None),
        ("PUT", "/v1/videos", 405, "method_not_allowed", None),
        ("DELETE", "/v1/videos", 405, "method_not_allowed", None),
        ("OPTIONS", "/v1/videos", 405, "method_not_allowed", None),
        ("POST", "/readyz", 405, "method_not_allowed", None),
        ("POST", "/", 405, "method_not_allowed", None),
        ("POST", "/web/main.js", 405, "method_not_allowed", None),
        ("GET", NO_VIDEO, 404, "not_found", "video_id"),
        ("DELETE", NO_VIDEO, 404, "not_found", "video_id"),
        ("POST", NO_VIDEO + "/cancel", 404, "not_found", "video_id"),
        ("GET", NO_VIDEO + "/content", 404, "not_found", "video_id"),
        ("GET", NO_VIDEO + "/events", 404, "not_found", "video_id"),
        ("GET", "/v1/videos/..%2f..%2fjobs.sqlite", 404, "not_found", None),
        ("GET", "/v1/videos/%00", 404, "not_found", "video_id"),
        ("GET", "/v1/videos?limit=0", 400, "invalid_value", "limit"),
        ("GET", "/v1/videos?limit=101", 400, "invalid_value", "limit"),
        ("GET", "/v1/videos?limit=ten", 400, "invalid_value", "limit"),
        ("GET", "/v1/videos?limit=%D9%A3", 400, "invalid_value", "limit"),
        ("GET", "/v1/videos?order=up", 400, "invalid_value", "order"),
        ("GET", "/v1/videos?after=video_1", 400, "invalid_value", "after"),
    ],
)
def test_routes(quick, method, path, status, code, param):
    response = quick.client.request(method, path)
    check_shape(response, status, code, param)
    if status == 405:
        assert "GET" in response.headers["allow"] or "POST" in response.headers["allow"]


def test_allow_names_every_method_of_the_path(quick):
    assert quick.client.put("/v1/videos").headers["allow"] == "GET, HEAD, POST"
    assert quick.client.put(NO_VIDEO).headers["allow"] == "DELETE, GET, HEAD"


BAD_FIELDS = [
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "  \n"}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": "x" * 4001}, "prompt"),
    ({"prompt": "null \0 character"}, "prompt"),
    ({"prompt": "half \ud83d pair"}, "prompt"),
    ({"negative_prompt": "x" * 4001}, "negative_prompt"),
    ({"negative_prompt": ["blue"]}, "negative_prompt"),
    ({"model": "wan-huge"}, "model"),
    ({"size": "64"}, "size"),
    ({"size": "64-64"}, "size"),
    ({"size": "0x64"}, "size"),
    ({"size": "60x64"}, "size"),
    ({"size": "-64x64"}, "size"),
    ({"size": "4096x64"}, "size"),
    ({"size": "9999999999x64"}, "size"),
    ({"size": 64}, "size"),
    ({"num_frames": 16}, "num_frames"),
    ({"num_frames": 0}, "num_frames"),
    ({"num_frames": -3}, "num_frames"),
    ({"num_frames": 17.5}, "num_frames"),
    ({"num_frames": "many"}, "num_frames"),
    ({"num_frames": 4 * 10**9 + 1}, "num_frames"),
    ({"num_frames": 10**400 + 1}, "num_frames"),
    ({"seconds": 0}, "seconds"),
    ({"seconds": "-1"}, "seconds"),
    ({"seconds": "4s"}, "seconds"),
    ({"seconds": 1e300}, "seconds"),
    ({"seconds": 3600, "fps": 240}, "seconds"),
    ({"seconds": "2", "num_frames": 21}, "seconds"),
    ({"fps": 0}, "fps"),
    ({"fps": 241}, "fps"),
    ({"fps": True}, "fps"),
    ({"num_inference_steps": 0}, "num_inference_steps"),
    ({"num_inference_steps": 1001}, "num_inference_steps"),
    ({"num_inference_steps": 1000}, "num_inference_steps"),
    ({"num_frames": 401}, "num_frames"),
    ({"seconds": 60}, "seconds"),
    ({"size": "512x512"}, "size"),
    ({"size": "96x96", "num_inference_steps": 97}, "num_inference_steps"),
    ({"size": "512x512", "num_inference_steps": 13}, "size"),
    ({"guidance_scale": -1}, "guidance_scale"),
    ({"guidance_scale": 101}, "guidance_scale"),
    ({"guidance_scale": "nan"}, "guidance_scale"),
    ({"flow_shift": 0}, "flow_shift"),
    ({"flow_shift": {"a": 1}}, "flow_shift"),
    ({"seed": -2}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": False}, "seed"),
    ({"scheduler": "ddim"}, "scheduler"),
    ({"scheduler": ["unipc"]}, "scheduler"),
    ({"steps": 5}, "steps"),
    ({"": 5}, ""),
    ({"input_reference": "a.png"}, "input_reference"),
    ({"last_image": "a.png"}, "last_image"),
    ({"last_image": {"image_url": "https://example.com/a.png"}}, "last_image"),
    ({"strength": 0}, "strength"),
    ({"strength": 1.01}, "strength"),
    ({"strength": "nan"}, "strength"),
    ({"strength": 0.5}, "strength"),
    ({"guidance_scale_2": 3}, "guidance_scale_2"),
    ({"guidance_scale_2": -1}, "guidance_scale_2"),
    ({"video": {"id": "x"}}, "video"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS, ids=lambda x: ascii(x)[:40])
def test_fields(quick, fields, param):
    body = json.dumps({"prompt": PROMPT, **fields})
    response = quick.client.post(
        "/v1/videos", content=body, headers={"Content-Type": "application/json"}
    )
    check_shape(response, 404 if "model" in fields else 400, None, param)


def test_messages_are_for_people(quick):
    """Red when a field of a body has no words, or pydantic's own come through."""
    bodies = (VideoCreate, VideoRemix, VideoEdit, VideoExtend)
    assert EXPECTED.keys() == set().union(*(body.model_fields for body in bodies))
    for fields, words in (
        ({"seed": "a lot"}, "seed must be a whole number between 0 and 9223372036854775807"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number between 1 and"),
        ({"scheduler": "ddim"}, "scheduler must be unipc, euler or renoise, got 'ddim'"),
        ({"sigmas": [1, 1]}, "sigmas must be numbers that fall, each above 0 and at most 1"),
        ({"lora": 3}, "lora must be at most 8 adapters, each {name, strength, expert} or text"),
        ({"n": 11}, "n must be a whole number between 1 and 10, got 11"),
    ):
        response = quick.client.post("/v1/videos", json={"prompt": PROMPT, **fields})
        assert response.json()["error"]["message"].startswith(words)


def test_parameters_have_words_too(quick):
    """Red when a route takes a query or header that no message could describe."""
    document = quick.client.get("/openapi.json").json()
    names = {
        parameter["name"]
        for operations in document["paths"].values()
        for operation in operations.values()
        for parameter in operation.get("parameters", ())
        if parameter["in"] in ("query", "header") and parameter["name"] != "Last-Event-ID"
    }
    assert names == EXPECTED_PARAMETERS.keys()


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("application/json", b"", 400, "invalid_json"),
        ("application/json", b"{", 400, "invalid_json"),
        ("application/json", b"[]", 400, "invalid_json"),
        ("application/json", b'"text"', 400, "invalid_json"),
        ("application/json", b'{"prompt": "\xff"}', 400, "invalid_json"),
        ("application/json", b'{"seed": NaN, "prompt": "x"}', 400, "invalid_json"),
        ("application/json", b'{"seed": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
        ("application/json", b"[" * 100_000, 400, "invalid_json"),
        ("application/json; charset=utf-8", b"{}", 400, "missing_field"),
        ("text/plain", b"a fox", 415, "unsupported_media_type"),
        ("application/x-www-form-urlencoded", b"prompt=x", 415, "unsupported_media_type"),
        ("", b"{}", 415, "unsupported_media_type"),
        ("multipart/form-data", b"", 400, "invalid_form"),
        ("multipart/form-data; boundary=x", b"nonsense", 400, "invalid_form"),
        ("multipart/form-data; boundary=x", b"--x--\r\n", 400, "missing_field"),
    ],
)
def test_bodies(quick, content_type, body, status, code):
    headers = {"Content-Type": content_type}
    response = quick.client.post("/v1/videos", content=body, headers=headers)
    check_shape(response, status, code, "prompt" if code == "missing_field" else None)


@pytest.mark.parametrize("charset", ["punycode", "undefined", "idna", "rot13", "base64", "x" * 300])
def test_charsets_of_forms(quick, charset):
    body = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\xfe\r\n--x--\r\n'
    content_type = f"multipart/form-data; boundary=x; charset={charset}"
    response = quick.client.post("/v1/videos", content=body, headers={"Content-Type": content_type})
    assert response.status_code in (200, 400), response.text


def test_a_field_twice(quick):
    files = [("prompt", (None, "one")), ("prompt", (None, "two"))]
    check_shape(quick.client.post("/v1/videos", files=files), 400, "invalid_value", "prompt")


def test_a_file_where_text_belongs(quick):
    files = {"prompt": ("prompt.txt", b"a fox")}
    check_shape(quick.client.post("/v1/videos", files=files), 400, "unknown_field", "prompt")


def test_an_unknown_variant(quick):
    video = quick.create(num_inference_steps=1)
    response = quick.client.get(f"/v1/videos/{video['id']}/content?variant=../jobs")
    check_shape(response, 400, "invalid_value", "variant")


def test_the_content_of_a_failed_job(quick):
    video = quick.finish(quick.create("boom"))
    response = quick.client.get(f"/v1/videos/{video['id']}/content")
    error = check_shape(response, 409, "video_failed")
    assert "the engine failed" in error["message"]
