"""`python -m benchmarks service`, small and with a scripted engine: it measures what it says."""

import json

from benchmarks.__main__ import main
from tests.server.running import SCRIPTED


def test_it_counts_polls_and_takes_turns(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WAN_TPU_ENGINE", SCRIPTED)
    path = tmp_path / "out.json"
    arguments = ["--jobs", "20", "--clients", "5", "--repeats", "2", "--videos", "1"]
    assert main(["service", *arguments, "--json", str(path)]) == 0
    turns = json.loads(path.read_text())["turns"]
    order = ["alone", "null polled", "polled"]
    assert [turn["condition"] for turn in turns] == order + order[::-1]
    for turn in turns:
        assert len(turn["video_seconds"]) == 1
        assert turn["errors"] == []
        assert bool(turn["from_due"]) == (turn["condition"] != "alone")
        assert len(turn["from_due"]) == len(turn["from_sending"])
        assert (turn["load_share"] > 0) == (turn["condition"] != "alone")
    assert "20 jobs wait, 5 clients poll 10 times a second" in capsys.readouterr().out


def test_a_poll_that_is_refused_is_an_error(capsys, monkeypatch):
    monkeypatch.setenv("WAN_TPU_ENGINE", SCRIPTED)
    monkeypatch.setattr("benchmarks.service.LIST_PATH", "/v1/videos?limit=nothing")
    assert main(["service", "--jobs", "1", "--clients", "3", "--repeats", "1"]) == 1
    assert "HTTP/1.1 400" in capsys.readouterr().err
