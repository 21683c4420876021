"""`python -m benchmarks layouts`: plans like `wan-tpu plan`, measures with --run."""

import json
import types

import pytest

from benchmarks.__main__ import main
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.pipeline import video_pipeline


class FakePipeline:
    """Takes a second to compile by its own clock, and ever less for a video."""

    def __init__(self, layout, clock):
        self._layout, self._clock, self._runs = layout, clock, 0
        self.model = types.SimpleNamespace(description=describe_model("wan-tiny"))

    def warm_up(self, request):
        self._clock.now += 1.0

    def __call__(self, request, *, media):
        assert request.num_inference_steps == 4
        assert len(media.only(request.media)) == len(request.media)
        self._runs += 1
        self._clock.now += 0.5 if self._runs == 1 else 0.1 * self._layout.tp + 0.01 * self._runs
        metadata = {
            "model": "wan-tiny", "dtype": "float32", "attention": "chunked", "device_kind": "cpu",
            "num_devices": 8, "num_processes": 1, "versions": {},
            "request": {"num_inference_steps": 4}, "steps": {"transformer": 4},
            "seconds": {"denoise": 0.04 * self._runs},
        }  # fmt: skip
        return types.SimpleNamespace(metadata=metadata)


@pytest.fixture
def clock(monkeypatch, devices):
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr("benchmarks.layouts.time.perf_counter", lambda: clock.now)
    monkeypatch.setattr("wan_tpu.runtime.start", lambda **_: None)

    def from_pretrained(name, *, layout, **_):
        assert name == "wan-tiny"
        return FakePipeline(layout, clock)

    monkeypatch.setattr(video_pipeline.VideoPipeline, "from_pretrained", from_pretrained)
    return clock


ONE_WAY = ("--sequence-parallel", "ulysses", "--weights", "sharded")


@pytest.mark.usefixtures("clock")
def test_compile_first_run_and_steady_state_are_apart(capsys, tmp_path):
    path = tmp_path / "out.json"
    arguments = ["--run", "--layouts", "tp8,dp2-sp4", "--steps", "4", "--json", str(path), *ONE_WAY]
    assert main(["layouts", *arguments]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[-1] == "use: dp2-sp4"
    report = json.loads(path.read_text())
    assert [row["layout"] for row in report["layouts"]] == ["dp2-sp4", "tp8"], "fastest first"
    row = report["layouts"][0]
    assert row["compile_seconds"] == pytest.approx(1.0)
    assert row["first_seconds"] == pytest.approx(0.5)
    assert row["all_video_seconds"] == pytest.approx([0.12, 0.13, 0.14, 0.15, 0.16])
    assert row["video_seconds"] == pytest.approx(0.14)
    assert row["all_step_seconds"] == pytest.approx([0.02, 0.03, 0.04, 0.05, 0.06])
    assert row["peak_bytes"] is None, "a CPU does not tell"
    assert "0.0400" in table[3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--topology v6e-8"),
        (("--run", "--topology", "v6e-8"), "--topology is for planning"),
        (("--run", "--repeats", "2"), "at least 5"),
        (("--run", "--layouts", "tp4"), "dp2-tp4"),
        (("--run", "--dtype", "int4"), "bfloat16"),
        (("--topology", "v6e-5"), "v6e-4"),
    ],
)
@pytest.mark.usefixtures("clock")
def test_wrong_input_is_one_line(capsys, arguments, words):
    assert main(["layouts", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


@pytest.mark.slow
@pytest.mark.parametrize("made_from", [(), ("--inputs", "video")], ids=["text", "video"])
def test_a_real_run(capsys, devices, monkeypatch, made_from):
    monkeypatch.setattr("wan_tpu.runtime.start", lambda **_: None)
    arguments = ["--run", "--layouts", "dp2-sp4", "--steps", "2", *made_from, *ONE_WAY]
    assert main(["layouts", *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "use: dp2-sp4"
