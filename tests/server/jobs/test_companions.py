"""Who is made together with the first in line, and how long it waits for others."""

import dataclasses

import pytest

from server.jobs.companions import Choice, Gains, choose
from server.jobs.job import Extended, Job
from server.jobs.worker import Worker
from server.settings import Settings
from wan_tpu.pipeline.alike import step_kind
from wan_tpu.request import VideoRequest

REQUEST = VideoRequest(
    prompt="x",
    negative_prompt="",
    width=64,
    height=64,
    num_frames=17,
    fps=8,
    num_inference_steps=20,
    seed=1,
    guidance_scale=5.0,
    flow_shift=1.0,
)
DIGEST = "sha256:" + 64 * "0"


def gains(kind=REQUEST, **seconds):
    measured = {name.removeprefix("n"): value for name, value in seconds.items()}
    return Gains([{"kind": list(step_kind(kind)), "seconds": measured}])


FAST = gains(n1=0.1, n2=0.11, n4=0.12)
SLOW = gains(n1=0.1, n2=0.19, n4=0.39)


def job(number, **changes):
    fields = {"owner": "", "attempts": 0, "extended": None}
    fields |= {name: changes.pop(name) for name in fields if name in changes}
    request = dataclasses.replace(REQUEST, prompt=f"p{number}", seed=number, **changes)
    return Job(id=f"video_{number:032x}", model="m", request=request, created_at=0.0, **fields)


def numbers(line, known=FAST, most=4, delay_seconds=10.0):
    chosen = choose(line, known, most=most, delay_seconds=delay_seconds)
    return [each.request.seed for each in chosen.jobs], chosen.may_wait


def test_those_directly_behind_the_first_are_made_with_it():
    assert numbers([job(1), job(2), job(3), job(4), job(5)]) == ([1, 2, 3, 4], False)
    assert numbers([job(1), job(2)]) == ([1, 2], True)
    assert numbers([job(1), job(2, owner="other"), job(3)]) == ([1, 2, 3], True)


def test_nobody_is_overtaken():
    longer = job(2, num_inference_steps=30)
    assert numbers([job(1), longer, job(3)]) == ([1], False)
    assert numbers([job(1), job(3), longer, job(4)]) == ([1, 3], False)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 96},
        {"num_frames": 5},
        {"guidance_scale": 4.0},
        {"flow_shift": 2.0},
        {"scheduler": "euler"},
        {"step_cache": "magcache:0.12"},
        {"adapters": ("fox.safetensors",)},
        {"image": DIGEST},
        {"attempts": 1},
        {"extended": Extended(video=DIGEST, num_frames=5)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_not_alike_or_has_run_before_is_made_alone(changes):
    assert numbers([job(1), job(2, **changes), job(3)]) == ([1], False)
    assert numbers([job(2, **changes), job(1), job(3)])[0] == [2]


def test_only_where_it_is_faster():
    assert numbers([job(1), job(2), job(3)], SLOW) == ([1], False)
    assert numbers([job(1), job(2)], Gains([])) == ([1], False)
    assert numbers([job(1), job(2)], gains(dataclasses.replace(REQUEST, width=96), n1=1, n2=1)) == (
        [1],
        False,
    )
    only_two = gains(n1=0.1, n2=0.11, n4=0.4)
    assert numbers([job(1), job(2), job(3), job(4)], only_two) == ([1, 2], False)


def test_three_take_the_batch_of_four():
    known = gains(n1=0.1, n2=0.15, n4=0.28)
    assert numbers([job(1), job(2), job(3), job(4)], known)[0] == [1, 2, 3, 4]
    assert numbers([job(1), job(2), job(3)], known)[0] == [1, 2], "a third of 0.28 is no gain"


def test_the_first_is_not_delayed_by_more_than_is_set():
    """20 steps: two together take 0.2 s more, four 0.4 s."""
    line = [job(1), job(2), job(3), job(4)]
    assert numbers(line, delay_seconds=0.5)[0] == [1, 2, 3, 4]
    assert numbers(line, delay_seconds=0.3)[0] == [1, 2]
    assert numbers(line, delay_seconds=0.1) == ([1], False)


def test_off_unless_it_is_set():
    assert Settings.model_fields["batch"].default == 1
    assert numbers([job(1), job(2)], most=1) == ([1], False)


@pytest.fixture
def worker(tmp_path):
    def make(**settings):
        found = Worker.__new__(Worker)
        found._settings = Settings(data_dir=tmp_path, **settings)
        found._first = ("", 0.0)
        return found

    return make


def test_the_first_waits_for_others_no_longer_than_is_set_in_all(worker):
    waiting = worker(batch=4, batch_wait_seconds=30)
    alone = Choice(jobs=[job(1)], may_wait=True)
    assert waiting._patience_of(alone, 100.0) == 30
    assert waiting._patience_of(Choice(jobs=[job(1), job(2)], may_wait=True), 120.0) == 10
    assert waiting._patience_of(alone, 130.0) <= 0
    assert waiting._patience_of(Choice(jobs=[job(1)], may_wait=False), 110.0) <= 0
    assert waiting._patience_of(Choice(jobs=[job(3)], may_wait=True), 140.0) == 30


def test_by_default_nobody_waits(worker):
    """Red when the first waits although nobody else is there."""
    assert worker(batch=4)._patience_of(Choice(jobs=[job(1)], may_wait=True), 100.0) <= 0
