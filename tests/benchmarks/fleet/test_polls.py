"""The table of polls, of turns whose times are known."""

from benchmarks.fleet import polls


def turn(**changed):
    given = {
        "hertz": 500,
        "is_null": False,
        "seconds": 10.0,
        "from_due": tuple(number / 1000 for number in range(1, 101)),
        "errors": (),
        "counts": {"temporal DescribeWorkflowExecution": 4.0, "temporal Other": 2.5, "s3 LIST": 1},
        "cpu": {"APIs": 0.25, "Temporal": 0.5},
        "busy": 0.75,
    }
    return polls.Polled(**(given | changed))


def test_a_line_says_what_polls_waited_and_what_temporal_was_asked():
    header, line = polls.report([turn()], 500, 2)[1:3]
    columns = dict(zip(header.replace(" ms", "_ms").split(), line.split(), strict=True))
    assert columns == {
        "polls/s": "500", "polls": "100", "errors": "0", "p50_ms": "51.0", "p99_ms": "100.0",
        "max_ms": "100.0", "Temporal/s": "6.5", "looks/s": "4.0", "commits/s": "0.0", "S3/s": "1.0",
        "APIs": "25%", "busy": "75%",
    }  # fmt: skip


def test_a_turn_without_polls_has_none_and_the_null_server_says_so():
    quiet, null = turn(hertz=0, from_due=()), turn(is_null=True, errors=("lost",))
    lines = polls.report([quiet, null], 500, 2)[2:4]
    assert lines[0].split()[:6] == ["0", "0", "0", "-", "-", "-"]
    assert lines[1].split()[:4] == ["500", "null", "100", "1"]
