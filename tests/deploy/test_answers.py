"""What gcloud answers in other ways than it should, and streams that do not take what is said."""

import json
import subprocess

import pytest

from tests.deploy.conftest import WHERE, node

NOTICES = "Updates are available.\n[INFO] see {this}\n"


@pytest.mark.parametrize("answer", [NOTICES + "{}", "{}\n" + NOTICES, "  {}\n"])
def test_lines_around_its_json_are_passed_over(cloud, answer):
    cloud.answer("tpu-vm list", out=answer.replace("{}", json.dumps([node()], indent=2)))
    cloud.answer("-- status", out="unit=active/running\nreadyz={}\n")
    done = cloud.run("status", "wan", *WHERE)
    assert "wan/3  active/running" in done.stdout, done.stderr


@pytest.mark.parametrize("answer", ["Updates are available.\n", '{"name": "x"}', "[1]", '["x"]'])
def test_another_answer_than_a_list_is_said_in_words(cloud, answer):
    cloud.answer("tpu-vm list", out=answer)
    done = cloud.run("status", "wan", *WHERE)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "tpu-vm list" in done.stderr


def test_fields_that_are_null_or_of_an_unknown_type(cloud):
    """What others made in the same project is in the list, too, and ours must be deletable."""
    ours = node(kind="v9x-4", schedulingConfig=None, networkEndpoints=None)
    cloud.answer("tpu-vm list", out=json.dumps([ours, {"name": "a/b", "labels": None}]), times=1)
    cloud.slices()
    others = [{"name": "q", "state": None, "tpu": None}, {"name": "r", "tpu": {"nodeSpec": [{}]}}]
    cloud.answer("queued-resources list", out=json.dumps(others))
    cloud.answer("delete")
    done = cloud.run("delete", "wan", *WHERE, "--yes")
    assert done.returncode == 0, done.stderr
    assert "an amount that is not known here" in done.stdout


def test_what_is_not_utf_8_is_shown_all_the_same(cloud):
    cloud.tool("gcloud", r"printf 'ERROR: caf\xe9\n' >&2; exit 1")
    done = cloud.run("status", "wan", *WHERE)
    assert done.returncode == 1
    assert "ERROR: caf" in done.stderr


def test_a_terminal_of_ascii(cloud):
    cloud.environment["PYTHONIOENCODING"] = "ascii"
    cloud.answer("tpu-vm list", err="ERROR: \u6a21\u578b\n", exit=1)
    done = cloud.run("status", "wan", *WHERE)
    assert done.returncode == 1
    assert "ERROR: \\u6a21\\u578b" in done.stderr


def shell(cloud, redirection):
    """The last line of what `status` says on standard error, and its exit code."""
    cloud.slices(node())
    cloud.answer("-- status", out="unit=active/running\n")
    line = " ".join(("status", "wan", *WHERE))
    pipe = subprocess.PIPE
    process = cloud.start(*line.split(), shell_redirection=redirection, stdout=pipe, stderr=pipe)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_standard_output_is_full(cloud):
    returncode, err = shell(cloud, "> /dev/full")
    assert returncode == 1
    assert err == "wan-tpu-deploy: standard output: No space left on device\n"


def test_standard_output_is_closed(cloud):
    returncode, err = shell(cloud, ">&-")
    assert (returncode, err) == (1, "")  # nothing answers /readyz


def test_a_reader_that_leaves(cloud):
    returncode, err = shell(cloud, "| true")
    assert (returncode, err) == (0, "")  # of the pipe's last


def test_nobody_types_the_name(cloud):
    """Ctrl-D at the question."""
    import os
    import pty

    cloud.slices(node())
    cloud.answer("queued-resources list", out="[]")
    ours, theirs = pty.openpty()
    pipe = subprocess.PIPE
    process = cloud.start("delete", "wan", *WHERE, stdin=theirs, stdout=pipe, stderr=pipe)
    os.write(ours, b"\x04")
    _, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 1
    assert err == "wan-tpu-deploy: not deleted: the answer was not the name\n"
