"""What processes of `test_processes` do; imported by each of them, so that it imports little."""

import os
import signal
import time


def double(number: int) -> int:
    return 2 * number


def end_at_three(number: int) -> int:
    """As a decoder ends that reads where it should not."""
    if number == 3:
        os._exit(134)
    time.sleep(0.1)  # others are being worked on when it ends
    return 2 * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ZeroDivisionError("three")
    return 2 * number


def hears_ctrl_c(number: int) -> bool:
    return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def wait(number: int) -> int:
    time.sleep(60 if number else 0)
    return number
