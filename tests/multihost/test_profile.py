"""A profile of several processes: each writes its own part, and they stay in step."""

from tests.cli.test_profile import names
from tests.multihost.test_generate import LAYOUT, command  # noqa: F401  # the fixture


def test_each_process_records_its_own_part(command):  # noqa: F811
    made = command("-o", "out.npy", "--steps", "4", "--profile", "profiles", *LAYOUT)
    assert made.ends() == {0: (0, "out.npy\n"), 1: (0, "")}, made.log(0)
    for number in (0, 1):
        trace = f"trace-1-process-{number}"
        assert f"wan-tpu: 3 steps are in profiles/{trace} (" in made.log(number)
        assert names(made.folder / "profiles" / trace) == ["denoise 2", "denoise 3", "denoise 4"]
