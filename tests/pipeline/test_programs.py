"""Which programs are compiled, when, and how many stay."""

import gc
import subprocess
import sys
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

from wan_tpu.pipeline.programs import Programs
from wan_tpu.pipeline.progress import Watch
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import make_mesh, named
from wan_tpu.stage import Stage, abstract


@pytest.fixture(scope="module")
def mesh(devices):
    return make_mesh(Layout(), devices[:1])


def stage_of(mesh, length, *, name="double", size="its length", function=None):
    return Stage(
        name=name,
        function=function or (lambda x: x * 2),
        arguments=(abstract((length,), jnp.float32, named(mesh)),),
        mesh=mesh,
        size=length if size == "its length" else size,
    )


def test_a_program_is_compiled_once(mesh):
    programs, stages = Programs(), []
    watch = Watch(on_progress=lambda progress: stages.append(progress.stage))
    first = programs.get(stage_of(mesh, 3), watch)
    assert programs.get(stage_of(mesh, 3), watch) is first
    assert stages == ["compile double", "compile double"], "told once: begun and ended"
    np.testing.assert_array_equal(first(jnp.arange(3.0)), [0, 2, 4])


def test_a_server_of_many_sizes_keeps_a_few(mesh):
    """Red when programs are kept in a dictionary without bound."""
    programs = Programs(most_sizes=3)
    alive = []
    for length in range(1, 21):
        program = programs.get(stage_of(mesh, length), Watch())
        alive.append(weakref.ref(program))
        del program
    gc.collect()
    assert len(programs) == 3
    assert [reference() is not None for reference in alive] == [False] * 17 + [True] * 3


def test_what_is_used_stays_and_what_was_not_goes(mesh):
    programs = Programs(most_sizes=2)
    first = programs.get(stage_of(mesh, 1), Watch())
    programs.get(stage_of(mesh, 2), Watch())
    assert programs.get(stage_of(mesh, 1), Watch()) is first  # used again
    programs.get(stage_of(mesh, 3), Watch())  # 2 goes
    assert programs.get(stage_of(mesh, 1), Watch()) is first
    said = []
    programs.get(stage_of(mesh, 2), Watch(on_progress=lambda p: said.append(p.done)))
    assert said == [0, 1], "it had to be compiled anew, and that is said"


def test_all_programs_of_a_size_go_together(mesh):
    programs = Programs(most_sizes=1)
    for size in ("a", "b"):
        for name in ("step", "start"):
            programs.get(stage_of(mesh, 4, name=name, size=size), Watch())
    assert len(programs) == 2


def test_prepared_sizes_and_programs_of_every_size_stay(mesh):
    programs = Programs(most_sizes=1)
    programs.prepare([stage_of(mesh, 1)])
    prepared = programs.get(stage_of(mesh, 1), Watch())
    text = programs.get(stage_of(mesh, 7, name="text", size=None), Watch())
    for length in range(10, 15):
        programs.get(stage_of(mesh, length), Watch())
    assert programs.get(stage_of(mesh, 1), Watch()) is prepared
    assert programs.get(stage_of(mesh, 7, name="text", size=None), Watch()) is text


def test_the_first_use_is_reported_alike_whether_it_was_prepared_or_not(mesh):
    """Processes in lock-step count these reports; one of them may have compiled sooner."""
    counts = []
    for prepares in (True, False):
        programs, reports = Programs(), []
        if prepares:
            programs.prepare([stage_of(mesh, 5)])
        watch = Watch(on_progress=reports.append)
        for _ in range(2):
            programs.get(stage_of(mesh, 5), watch)
        counts.append([(report.stage, report.done) for report in reports])
    assert counts[0] == counts[1]


def test_a_failure_in_the_background_reaches_the_one_who_asks(mesh):
    attempts = []

    def fails_once(x):
        attempts.append(x)
        if len(attempts) == 1:
            raise ValueError("cannot be traced")
        return x

    programs = Programs()
    programs.prepare([stage_of(mesh, 6, function=fails_once)])
    with pytest.raises(ValueError, match="cannot be traced"):
        programs.get(stage_of(mesh, 6, function=fails_once), Watch())
    again = programs.get(stage_of(mesh, 6, function=fails_once), Watch())
    assert again(jnp.zeros(6)).shape == (6,), "a failure is not kept"


def test_many_compile_at_once(mesh):
    programs = Programs()
    stages = [stage_of(mesh, length) for length in range(1, 9)]
    programs.prepare(stages)
    for length, stage in enumerate(stages, start=1):
        assert programs.get(stage, Watch())(jnp.ones(length)).sum() == 2 * length


SCRIPT = """
import time

import jax
import jax.numpy as jnp

jax.config.update("jax_platforms", "cpu")
from wan_tpu.pipeline.programs import Programs
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import make_mesh, named
from wan_tpu.stage import Stage, abstract

mesh = make_mesh(Layout(), jax.devices()[:1])


def slow(x):
    for _ in range(600):  # some seconds in XLA
        x = jnp.sin(x @ x.T) @ x
    return x


def stage(size):
    arguments = (abstract((size, size), jnp.float32, named(mesh)),)
    return Stage(name="slow", function=slow, arguments=arguments, mesh=mesh, size=size)


programs = Programs()
programs.prepare([stage(size) for size in range(8, 14)])
time.sleep(1.5)  # one is traced by then, and in XLA
raise ValueError("something else")
"""


def test_a_script_that_fails_while_programs_compile_ends_with_its_own_error():
    """Red when the interpreter ends under XLA's threads: terminate called, core dumped."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "ValueError: something else" in done.stderr
    assert "terminate" not in done.stderr
