"""What a process makes while another one is at the same folder; the encoder is a stand-in."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.dataset.test_cache import MADE
from tests.dataset.test_claims import HOLD
from wan_tpu.dataset.cache import TEXT, TEXTS, Cache, key_of
from wan_tpu.dataset.claims import Claims
from wan_tpu.dataset.work import Work
from wan_tpu.pipeline.progress import Watch

CAPTIONS = {key_of(MADE.text(caption)): caption for caption in ("a", "b", "c")}
HELD = key_of(MADE.text("a"))


class StandIn:
    """Embeddings that say nothing."""

    def text(self, caption, watch):
        return np.full((2, 4), len(caption))


@pytest.mark.parametrize("made_by_the_other", [False, True])
def test_what_another_process_makes_is_waited_for_and_taken_over_if_it_ends(
    tmp_path, made_by_the_other
):
    cache = Cache(tmp_path)
    cache.make_folders()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), HELD],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with other, Claims(tmp_path) as claims:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        work = Work(cache, claims, Watch())
        stand_in: object = StandIn()
        working = threading.Thread(target=work.captions, args=(CAPTIONS, MADE, lambda: stand_in))
        working.start()
        while work.num_made < 2:
            time.sleep(0.01)
        time.sleep(0.5)  # it has looked again by now
        assert working.is_alive()
        assert not cache.has(TEXTS, HELD)
        assert work.num_made == 2
        if made_by_the_other:
            cache.write(TEXTS, MADE.text("a"), {TEXT: np.zeros((1, 4))})
        other.kill()
        working.join(timeout=30)
        assert not working.is_alive()
    assert all(cache.has(TEXTS, key) for key in CAPTIONS)
    assert work.num_made == (2 if made_by_the_other else 3)
