"""A step of several videos, planned: on which layout, and what is said of it."""

import pytest

from wan_tpu.checkpoints.models import describe_model
from wan_tpu.planner import find_slice, make_job, plan_together
from wan_tpu.request import make_request
from wan_tpu.sharding.layout import parse_layout


@pytest.mark.slow
def test_four_videos_give_up_sp_for_dp():
    job = make_job(
        describe_model("wan-tiny"), make_request("p"), find_slice("v6e-4"), stages=("step",)
    )
    one, four = plan_together(job, parse_layout("sp4"), (1, 3))
    assert (one.samples, str(one.layout)) == (1, "sp4")
    assert (four.samples, str(four.layout)) == (4, "dp4")
    assert 0 < four.seconds / 4 < one.seconds
    assert 0 < four.sent_bytes < 4 * one.sent_bytes
    assert str(four).startswith("4 videos on dp4: a step ")
