"""Noise schedules and the solvers that walk along them; `make_schedule` builds one by name.

`make_given_schedule` builds one over noise levels that are given.
"""

from wan_tpu.schedulers.api import make_given_schedule, make_schedule
from wan_tpu.schedulers.base import Schedule

__all__ = ["Schedule", "make_given_schedule", "make_schedule"]
