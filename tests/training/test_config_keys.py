"""The tables and keys of the file, and that docs/training.md says the same of each."""

import pathlib

import wan_tpu
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.config_file import toml_value
from wan_tpu.training.config_keys import KEYS, TABLES, in_use, nearest, tables_of

PAGE = pathlib.Path(wan_tpu.__file__).parents[1] / "docs" / "training.md"
BEGIN, END = "what stands here. -->\n", "<!-- end of the keys -->"


def documented_keys():
    """What docs/training.md has between its marks."""
    lines = []
    for table in TABLES:
        lines += ["", f"### [{table}]", "", "| key | default | what it is |", "|---|---|---|"]
        for key in KEYS[table].values():
            default = toml_value(key.default).replace("|", "\\|")
            lines.append(f"| `{key.name}` | `{default}` | {key.words} |")
    return "\n".join([*lines, "", ""])


def test_the_page_has_every_key_with_its_default_and_its_words():
    """Red when a key, a default or a docstring changes, and the page does not."""
    text = PAGE.read_text()
    there = text[text.index(BEGIN) + len(BEGIN) : text.index(END)]
    assert there == documented_keys()


def test_every_key_is_described():
    """Red when a docstring's `Attributes:` lacks a field, or is not read to its end."""
    keys = [key for table in KEYS.values() for key in table.values()]
    assert len(keys) > 50
    assert not [str(key) for key in keys if not key.words.endswith(".")]
    assert KEYS["machine"]["remat"].words.endswith("kept in the host's memory.")


def test_a_table_of_another_kind_of_training_is_not_in_use():
    assert {"lora", "embedding"}.isdisjoint(tables_of("full"))
    assert "lora" in tables_of("lora")
    assert "lora" not in tables_of("embedding")
    values = in_use(TrainingConfig())
    assert values["lora.rank"] == 32
    assert values["optimiser.betas"] == [0.9, 0.99]
    assert not [key for key in values if key.startswith("embedding.")]


def test_nearest():
    assert nearest("lerning_rate", KEYS["optimiser"]) == "nearest: learning_rate"
    assert nearest("qqq", ["a", "b"]) == "known: a, b"


if __name__ == "__main__":  # writes the page's part
    page = PAGE.read_text()
    head, tail = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    PAGE.write_text(head + documented_keys() + tail)
