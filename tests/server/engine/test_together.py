"""Several jobs in the engine's process: measured by the real model, each with its own files."""

import dataclasses

import pytest

from server.engine.messages import Done, Failed, Generate, Progress
from server.engine.pipeline import MEASURED_STEPS, PipelineEngine
from server.engine.recorder import Recorder
from server.engine.together import make_together
from server.jobs.companions import Gains
from server.settings import Settings
from tests.checkpoint_factory import PROMPT
from wan_tpu.errors import Cancelled
from wan_tpu.pipeline.alike import step_kind
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.video_file import read_frames
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import parse_layout


@pytest.fixture(scope="module")
def engine(devices):
    """The real one, on one device, that has been warmed up and measured."""
    found = PipelineEngine(Settings(batch=2))
    found._pipeline = VideoPipeline.from_pretrained(
        "wan-tiny", layout=parse_layout("single"), devices=devices[:1]
    )
    request = VideoRequest(prompt=PROMPT, num_frames=5, num_inference_steps=4)
    found._warm_up_requests = [check_request(found._pipeline.model.description, request)[0]]
    found.warm_up(lambda _: None)
    return found


class Service:
    """The other end: what it was told, and which jobs it wants stopped."""

    def __init__(self):
        self.said = []
        self.forgotten = []
        self.cancelled = set()
        self.recorder = Recorder(self.said.append)

    def send(self, message):
        self.said.append(message)

    def is_cancelled(self, job):
        return job in self.cancelled

    def forget(self, job):
        self.forgotten.append(job)

    def ends(self):
        return {m.job: m for m in self.said if isinstance(m, Done | Failed)}


def works_in(folder, engine, count):
    works = []
    for i in range(count):
        request = dataclasses.replace(engine._warm_up_requests[0], seed=i)
        (folder / f"job{i}").mkdir()
        works.append(
            Generate(
                job=f"job{i}",
                request=dataclasses.asdict(request),
                folder=str(folder / f"job{i}"),
                uploads=str(folder),
            )
        )
    return works


def test_a_step_is_measured_by_the_size_of_the_batch(engine):
    compiled = len(engine._loaded._executor.programs)
    seen = []
    engine.measure(lambda progress: seen.append((progress.stage, progress.done)), lambda: False)
    assert len(engine._loaded._executor.programs) == compiled, "all was compiled before"
    assert seen.count(("denoise", MEASURED_STEPS)) == 2 * 2, "twice alone, twice by two"
    (measured,) = engine.describe()["together"]
    assert tuple(measured["kind"]) == step_kind(engine._warm_up_requests[0])
    assert list(measured["seconds"]) == ["1", "2"]
    assert all(seconds > 0 for seconds in measured["seconds"].values())
    assert str(Gains([measured])).startswith("64x64, 5 frames (1: ")


def test_nothing_is_compiled_or_measured_unless_it_is_set():
    engine = PipelineEngine(Settings())
    engine._warm_up_requests = [VideoRequest(prompt=PROMPT)]
    engine.measure(lambda _: None, lambda: False)
    assert engine._measured_requests == []


def test_each_has_files_of_its_own(engine, tmp_path):
    service = Service()
    works = works_in(tmp_path, engine, 2)
    make_together(engine, service, works)
    assert service.forgotten == ["job0", "job1"]
    videos = []
    for work in works:
        end = service.ends()[work.job]
        assert isinstance(end, Done), end
        assert end.metadata["made_together"] == 2
        assert end.metadata["spritesheet"]["frames"] == 5
        videos.append(read_frames(tmp_path / work.job / "video.mp4"))
        steps = [m.done for m in service.said if isinstance(m, Progress) and m.job == work.job]
        assert steps[-1] == 5
    assert videos[0].shape == (5, 64, 64, 3)
    assert (videos[0] != videos[1]).any()
    first_end = service.said.index(service.ends()["job0"])
    later = [m for m in service.said[first_end:] if isinstance(m, Progress)]
    assert {m.job for m in later} == {"job1"}, "the first is done while others decode"


def test_files_that_cannot_be_written_end_their_own_job_alone(engine, tmp_path):
    service = Service()
    works = works_in(tmp_path, engine, 2)
    (tmp_path / "job1").rmdir()
    make_together(engine, service, works)
    codes = {job: getattr(end, "code", "made") for job, end in service.ends().items()}
    assert codes == {"job0": "made", "job1": "engine_error"}


def test_who_is_cancelled_ends_alone(engine, tmp_path):
    service = Service()
    service.cancelled = {"job1"}
    make_together(engine, service, works_in(tmp_path, engine, 2))
    codes = {job: getattr(end, "code", "made") for job, end in service.ends().items()}
    assert codes == {"job0": "made", "job1": "cancelled"}


def test_what_ends_the_run_ends_all_that_had_not_ended(engine, tmp_path, monkeypatch):
    service = Service()

    def breaks(requests, calls):
        calls.on_end(0, Cancelled("the generation was cancelled"))
        raise MemoryError

    monkeypatch.setattr(engine, "generate_together", breaks)
    make_together(engine, service, works_in(tmp_path, engine, 3))
    codes = {job: end.code for job, end in service.ends().items()}
    assert codes == {"job0": "cancelled", "job1": "out_of_memory", "job2": "out_of_memory"}
