"""Percent and seconds left."""

import dataclasses
import time

import pytest

from server.engine.messages import Progress
from server.jobs.estimate import Durations, work_of
from server.jobs.job import Job, make_id
from wan_tpu.request import VideoRequest

REQUEST = VideoRequest(
    prompt="x", width=64, height=64, num_frames=17, num_inference_steps=10, fps=8
)
JOB = Job(id=make_id(), owner="", model="m", request=REQUEST, created_at=time.time())


def at(stage, done, total, seconds=1.0):
    return Progress(job=JOB.id, stage=stage, done=done, total=total, seconds=seconds)


def test_percent_rises_to_99_and_never_falls():
    durations, running, seen = Durations(), None, []
    for progress in (
        at("text", 0, 1), at("text", 1, 1), at("compile step", 0, 1), at("denoise", 0, 10),
        at("denoise", 5, 10), at("denoise", 10, 10), at("compile vae", 0, 1), at("decode", 0, 17),
        at("decode", 17, 17),
    ):  # fmt: skip
        running = durations.running(JOB, progress, running)
        seen.append(running.percent)
    assert seen == [0, 0, 0, 2, 46, 90, 90, 90, 99]


def test_the_first_job_tells_from_its_own_steps():
    durations = Durations()
    assert durations.running(JOB, at("text", 0, 1), None).seconds_left is None
    assert durations.running(JOB, at("denoise", 0, 10), None).seconds_left is None
    assert durations.running(JOB, at("denoise", 4, 10, 2.0), None).seconds_left == 3.0
    assert durations.running(JOB, at("decode", 1, 5, 0.5), None).seconds_left == 2.0


def test_later_jobs_know_from_earlier_ones():
    durations = Durations()
    durations.observe(REQUEST, {"text": 1.0, "denoise": 10.0, "decode": 4.0})
    assert durations.total(REQUEST) == pytest.approx(14.0)
    assert durations.running(JOB, at("denoise", 5, 10, 6.0), None).seconds_left == pytest.approx(10)
    assert durations.running(JOB, at("decode", 0, 5, 0.0), None).seconds_left == pytest.approx(4)


def test_one_odd_job_does_not_move_it_far():
    durations = Durations()
    for _ in range(5):
        durations.observe(REQUEST, {"denoise": 10.0, "decode": 1.0})
    durations.observe(REQUEST, {"denoise": 100.0, "decode": 1.0})
    assert durations.total(REQUEST) < 40


def test_work():
    assert work_of(REQUEST) == 64 * 64 * 17 * 10


def test_few_steps_without_guidance_take_half_of_what_their_number_says():
    """Red when only steps are counted: a step of guidance is two evaluations."""
    guided = dataclasses.replace(REQUEST, guidance_scale=5.0)
    fast = dataclasses.replace(
        REQUEST, num_inference_steps=4, guidance_scale=1.0, sigmas=(1, 0.9, 0.8, 0.6)
    )
    durations = Durations()
    durations.observe(guided, {"denoise": 10.0, "decode": 1.0})
    assert durations.total(fast) == pytest.approx(10.0 * 4 / 10 / 2 + 1.0)


def test_what_a_step_cache_saves_is_learned_apart():
    cached = dataclasses.replace(REQUEST, step_cache="magcache:0.12")
    durations = Durations()
    durations.observe(REQUEST, {"denoise": 10.0, "decode": 1.0})
    assert durations.total(cached) == pytest.approx(11)
    durations.observe(cached, {"denoise": 5.0, "decode": 1.0})
    assert durations.total(cached) == pytest.approx(6)
    assert durations.total(REQUEST) == pytest.approx(11)
    for number in range(100):
        other = dataclasses.replace(REQUEST, step_cache=f"easycache:{(number + 1) / 1000}")
        durations.observe(other, {"denoise": 5.0, "decode": 1.0})
    assert durations.total(cached) == pytest.approx(11)  # forgotten
    assert durations.total(REQUEST) == pytest.approx(11)
