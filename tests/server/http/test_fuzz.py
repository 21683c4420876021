"""Input that no person would think of: hypothesis on every field, schemathesis on every route.

Never a 5xx, never a traceback; what is taken is taken as it was sent, what is not is named.
"""

import json
import math
import re
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.http.bodies import VideoCreate
from server.http.schemas import ErrorBody, Video
from tests.server.running import SCRIPTED, RunningServer
from wan_tpu.request import MAX_SEED

FIELDS = tuple(VideoCreate.model_fields)
SIZES = st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)).map("{0[0]}x{0[1]}".format)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=())),  # with halves of surrogate pairs and NUL
    st.sampled_from(
        ["", "0", "-0", "-1", "1e400", "nan", "inf", "64x64", "64X64", "64*64", "true", "null"]
    ),
    st.integers().map(str),
    st.floats().map(str),
    SIZES,
)
NUMBERS = st.one_of(
    st.integers(-10, 300), st.integers(), st.integers(-(10**400), 10**400), st.floats()
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(TEXTS, inner)),
    max_leaves=10,
)
FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
MANY = settings(FEW, max_examples=1500)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Takes as many jobs as come; they are short of work, whatever was asked for."""
    server = RunningServer(
        tmp_path_factory.mktemp("fuzz"),
        engine=SCRIPTED,
        max_queued_jobs=1_000_000,
        max_queued_jobs_per_key=1_000_000,
    )
    yield server.wait_ready()
    server.stop()


def check_field(server, field, value):
    """One field is anything; the request is taken with just that, or refused by its name."""
    body = json.dumps({"prompt": "a fox", field: value}).encode()
    response = server.client.post(
        "/v1/videos", content=body, headers={"Content-Type": "application/json"}
    )
    if response.status_code == 200:
        check_taken(response, field, value)
        return
    check_refused(response, allowed={400, 404} if field == "model" else {400})
    is_json = not (isinstance(value, float) and not math.isfinite(value)) and "NaN" not in str(body)
    error = response.json()["error"]
    assert error["param"] == field or (error["code"] == "invalid_json") or not is_json, error


def check_taken(response, field, value):
    video = response.json()
    Video.model_validate(video)
    if value is None or field == "seconds":  # the default, or the nearest number of frames
        return
    if field in VideoCreate.FILES or (field == "seed" and float(value) == -1):  # as if left out
        return
    if value in ("", [], "false") or value is False:  # what a form has of an empty input
        assert field in {"sigmas", "fast", "step_cache", "lora"}
        assert field not in video["metadata"]["request"]
        return
    if field == "n":
        assert len(video.get("videos", [video])) == value
        return
    taken = video["metadata"]["request"].get(field, video.get(field))
    if field == "fast":
        assert taken == ("wan-tiny-4" if value in (True, "true") else value)
        return
    if field == "sigmas":
        given = value.split(",") if isinstance(value, str) else value
        assert taken == [float(each) for each in given]
        return
    if isinstance(taken, str):
        assert taken == (re.sub("[X*×]", "x", value) if field == "size" else value)
    else:
        assert taken == float(value)


def check_refused(response, allowed):
    assert response.status_code in allowed, response.text
    ErrorBody.model_validate(response.json())
    assert "Traceback" not in response.text
    assert 'File "' not in response.text


@pytest.mark.parametrize("field", FIELDS)
@FEW
@given(value=VALUES)
def test_any_value_in_any_field(server, field, value):
    check_field(server, field, value)


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
@MANY
@given(value=VALUES)
def test_any_value_in_any_field_at_length(server, field, value):
    check_field(server, field, value)


PARTS = st.lists(st.tuples(st.sampled_from(FIELDS) | st.text(), st.binary() | TEXTS), max_size=6)
HEADERS = st.sampled_from(
    [
        "multipart/form-data; boundary=b",
        "multipart/form-data; boundary=b; charset=utf-16",
        "multipart/form-data; boundary=c",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'Multipart/Form-Data; x=1; boundary="b"',
        "application/json",
        "application/json; charset=latin-1",
        "text/plain",
        "",
    ]
)


def as_form(parts):
    lines = []
    for name, value in parts:
        data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        quoted = name.encode("utf-8", "surrogatepass").replace(b'"', b"%22")
        lines.append(
            b'--b\r\nContent-Disposition: form-data; name="'
            + quoted
            + b'"\r\n\r\n'
            + data
            + b"\r\n"
        )
    return b"".join(lines) + b"--b--\r\n"


BODIES = st.one_of(PARTS.map(as_form), st.binary(), VALUES.map(lambda v: json.dumps(v).encode()))


def check_body(server, content_type, body, cut):
    response = server.client.post(
        "/v1/videos", content=body[: len(body) - cut], headers={"Content-Type": content_type}
    )
    if response.status_code == 200:
        Video.model_validate(response.json())
        return
    check_refused(response, allowed={400, 404, 415})


@settings(FEW, max_examples=300)
@given(content_type=HEADERS, body=BODIES, cut=st.integers(0, 9))
def test_any_body_of_any_type(server, content_type, body, cut):
    check_body(server, content_type, body, cut)


@pytest.mark.slow
@settings(MANY, max_examples=10_000)
@given(content_type=HEADERS, body=BODIES, cut=st.integers(0, 9))
def test_any_body_of_any_type_at_length(server, content_type, body, cut):
    check_body(server, content_type, body, cut)


def run_schemathesis(server, phases, max_examples, folder, *options):
    # What the schema cannot say, as sizes that the model divides, is refused with a sentence:
    # that all it allows be accepted is not asked for.
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
        *("--phases", phases, "--max-examples", str(max_examples), "--request-timeout", "60"),
        *("--exclude-checks", "positive_data_acceptance", "--warnings", "off", "--no-color"),
        *options,
    ]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    assert "Traceback" not in server.log()


def test_schemathesis(server, tmp_path):
    run_schemathesis(server, "examples,coverage,fuzzing", 5, tmp_path, "--seed", "20261126")


@pytest.mark.slow
def test_schemathesis_at_length(server, tmp_path):
    run_schemathesis(server, "examples,coverage,fuzzing,stateful", 200, tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"fps": 1, "flow_shift": 0.001, "seed": 0},
        {"fps": 240, "flow_shift": 100, "seed": MAX_SEED},
        {"prompt": "\u202e\U0001f98a\u0301 \x7f\ufffe" * 400, "guidance_scale": 100},
        {"prompt": ".", "negative_prompt": "x" * 4000, "scheduler": "euler"},
    ],
    ids=["least", "most", "odd text", "short text"],
)
def test_what_is_taken_at_the_edges_can_be_made(tiny, fields):
    video = tiny.create(**{"num_inference_steps": 1, **fields})
    done = tiny.finish(video)
    assert done["status"] == "completed", done["error"]
    assert tiny.client.get(f"/v1/videos/{video['id']}/content").content[4:8] == b"ftyp"
