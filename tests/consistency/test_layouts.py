"""Every layout gives the video of one device with the reference attention, within rounding.

Errors that must turn this red, each made once in the code (2026-11-21) and seen to; the latents'
relative difference and the frames' PSNR of the case named, where 1e-4 and 50 dB are the limits:

* padding attended, `num_keys` not passed on by `sharded_attend`: 2.5e-2, 62 dB (sp2-tp4 ulysses,
  flash, 8 heads, many frames);
* softmax statistics merged wrongly, `ring.merge` with the larger logsumexp instead of their sum:
  4.4e-2, 50 dB (sp4-tp2 ring, reference, 5 heads, one frame);
* positions not offset by the sp shard, the first shard's RoPE tables in each: 1.2, 33 dB (sp8 ring,
  flash, 8 heads, one frame);
* heads in the wrong order after the all-to-all, `ungroup_heads` in reverse: 2.1e-2, 52 dB (sp8
  ulysses, splash, 12 heads, one frame).
"""

import pytest

from tests.consistency.cases import (
    Case,
    all_cases,
    all_layouts,
    covering_cases,
)
from wan_tpu.pipeline.consistency import compare
from wan_tpu.sharding.layout import parse_layout


@pytest.mark.parametrize("case", covering_cases(), ids=str)
def test_every_pair_of_choices(case: Case, compared_runs):
    assert_consistent(case, compared_runs)


@pytest.mark.parametrize(
    ("layout", "attention", "model", "guidance"),
    [
        ("sp8 ulysses4", "reference", "12 heads", "guided"),
        pytest.param("dp2-sp4 ulysses2", "splash", "5 heads", "guided", marks=pytest.mark.slow),
        pytest.param("sp4-tp2 ulysses2", "flash", "8 heads", "unguided", marks=pytest.mark.slow),
        pytest.param("sp8 ulysses2", "flash", "5 heads", "guided", marks=pytest.mark.slow),
    ],
)
def test_heads_traded_among_a_part_of_the_shards(layout, attention, model, guidance, compared_runs):
    """12 heads over eight shards: without guidance the default of a v6e-8."""
    case = Case(
        layout=parse_layout(layout),
        attention=attention,
        model=model,
        frames="one frame",
        guidance=guidance,
    )
    assert_consistent(case, compared_runs)


@pytest.mark.slow
@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_everything(case: Case, compared_runs):
    """All 2,736 cases."""
    assert_consistent(case, compared_runs)


def assert_consistent(case: Case, compared_runs) -> None:
    comparison = compare(*compared_runs(case))
    assert comparison.consistent, comparison


def test_the_cover_is_one():
    """Red when a pair of choices is left out, or when the choice is another one each time."""
    chosen = covering_cases()
    covered = set().union(*(case.pairs() for case in chosen))
    assert covered == set().union(*(case.pairs() for case in all_cases()))
    assert chosen == covering_cases()
    assert len(chosen) <= 24


def test_all_cases_are_all():
    """20 shapes: 10 with sp in three modes, and those with dp or sp with weights both ways."""
    layouts = all_layouts()
    assert len({layout.shape for layout in layouts}) == 20
    assert len(layouts) == len(set(layouts)) == 76
    assert len(list(all_cases())) == 76 * 3 * 3 * 2 * 2
