"""What some tests need beyond Python: without it they are skipped, or fail where all must be."""

import os

import pytest


def require(condition: object, how_to_install: str) -> None:
    """Skips the test unless `condition`; fails it instead under WAN_TPU_REQUIRE_ALL=1."""
    if condition:
        return
    if os.environ.get("WAN_TPU_REQUIRE_ALL") == "1":
        pytest.fail(how_to_install, pytrace=False)
    pytest.skip(how_to_install)
