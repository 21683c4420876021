"""When an engine counts as hung; no process is needed, for it knows no clock."""

from server.engine.patience import Patience

SIZE = (832, 480, 81)


def patience(**options):
    return Patience(**{"stall_seconds": 60, "compile_seconds": 1800, **options})


def seconds_until_wrong(judge, *, most=100_000):
    """How long the engine is at the same thing before it is ended; it does speak."""
    for second in range(1, most):
        judge.heard()
        if judge.tick():
            return second
    return None


def work(judge, stage, total, seconds):
    """A stage whose units take so long each."""
    judge.moved(stage, 0, total)
    for done in range(1, total + 1):
        for _ in range(seconds):
            judge.heard()
            assert not judge.tick()
        judge.moved(stage, done, total)


def test_silence_is_a_fault_also_without_work():
    judge = patience()
    ticks = [judge.tick() for _ in range(61)]
    assert ticks[:60] == [""] * 60
    assert ticks[60] == "has said nothing for 61 s"


def test_quick_steps_have_the_least_patience():
    judge = patience()
    judge.begin(SIZE, 3600)
    work(judge, "denoise", 3, 2)
    judge.moved("decode", 0, 81)
    judge.moved("decode", 1, 81)
    judge.moved("denoise", 1, 50)
    assert seconds_until_wrong(judge) == 61


def test_slow_steps_have_five_of_the_longest():
    judge = patience()
    judge.begin(SIZE, 36_000)
    judge.moved("denoise", 0, 50)
    for _ in range(200):
        judge.heard()
        assert not judge.tick()
    judge.moved("denoise", 1, 50)
    assert seconds_until_wrong(judge) == 1001


def test_what_a_first_step_may_take_follows_from_the_time_of_the_job():
    """One that takes longer than five shares of it cannot end in time anyway."""
    judge = patience()
    judge.begin(SIZE, 3600)
    judge.moved("denoise", 0, 50)
    assert seconds_until_wrong(judge) == 361


def test_what_a_first_step_may_take_is_known_from_the_last_job_of_its_size():
    judge = patience()
    for size, expected in ((SIZE, 61), ((64, 64, 17), 361)):
        judge.begin(SIZE, 3600)
        work(judge, "denoise", 50, 2)
        judge.end()
        judge.begin(size, 3600)
        judge.moved("denoise", 0, 50)
        assert seconds_until_wrong(judge) == expected


def test_the_compiler_has_a_bound_of_its_own():
    judge = patience()
    judge.begin(SIZE, 3600)
    judge.moved("compile step", 0, 1)
    assert seconds_until_wrong(judge) == 1801


def test_between_stages_too():
    """The last files are written when all frames are decoded."""
    judge = patience()
    judge.begin(SIZE, 100)
    work(judge, "decode", 2, 2)
    assert seconds_until_wrong(judge) == 501


def test_without_work_nothing_stands_still():
    judge = patience()
    judge.begin(SIZE, 3600)
    judge.moved("denoise", 0, 50)
    judge.end()
    assert seconds_until_wrong(judge) is None


def test_over_several_processes_only_silence_is_judged():
    judge = patience(knows_steps=False)
    judge.begin(SIZE, 3600)
    judge.moved("denoise", 0, 50)
    assert seconds_until_wrong(judge) is None
    assert [judge.tick() for _ in range(61)][-1]


def test_what_is_remembered_is_bounded():
    judge = patience()
    for width in range(16, 16 * 3000, 16):
        judge.begin((width, 16, 1), 3600)
        judge.moved("denoise", 0, 2)
        judge.moved("denoise", 1, 2)
    assert len(judge._longest) == 1000
