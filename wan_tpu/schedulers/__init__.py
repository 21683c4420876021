"""Noise schedules and the solvers that walk along them; `make_schedule` builds one by name."""

from wan_tpu.schedulers.api import make_schedule
from wan_tpu.schedulers.base import Schedule

__all__ = ["Schedule", "make_schedule"]
