"""Draws of hypothesis: in `make test` the same each time, whatever ran before."""

import importlib
import sys

from hypothesis import given, settings
from hypothesis import strategies as st


def draw() -> list[int]:
    """What a property would be tried on."""
    seen = []

    @settings(settings.get_profile("fixed"), max_examples=300)
    @given(st.integers())
    def note(number: int) -> None:
        seen.append(number)

    note()
    return seen


def test_a_module_more_changes_no_draw(tmp_path, monkeypatch):
    """Red when hypothesis draws the constants of the modules that are imported at the time."""
    before = draw()
    numbers = [10**9 + 7 * n for n in range(50)]
    (tmp_path / "full_of_numbers.py").write_text(f"NUMBERS = {numbers}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "full_of_numbers", importlib.import_module("full_of_numbers"))
    after = draw()
    assert after == before
    assert not set(after) & set(numbers)
