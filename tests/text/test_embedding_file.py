"""Files of textual inversion: the forms that are read, and what is refused in one line."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from wan_tpu.errors import CheckpointError, InputError
from wan_tpu.media import digest_of
from wan_tpu.text.embedding_file import (
    INPUT_KEY,
    OUTPUT_KEY,
    Embedding,
    check_word,
    embedding_bytes,
    read_embedding,
)

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def saved(folder, tensors, metadata=None, name="moss.safetensors"):
    save_file(tensors, folder / name, metadata)
    return str(folder / name)


@pytest.mark.parametrize("kinds", [(True, False), (False, True), (True, True)])
def test_what_is_written_is_read(tmp_path, kinds):
    rows, outputs = (ROWS if kinds[0] else None), (ROWS + 10 if kinds[1] else None)
    content = embedding_bytes("lichen", rows, outputs, {"steps": "20"})
    (tmp_path / "moss.safetensors").write_bytes(content)
    found = read_embedding(str(tmp_path / "moss.safetensors"))
    assert (found.word, found.name, found.digest) == ("lichen", "moss", digest_of(content))
    assert (found.num_vectors, found.dim) == (2, 3)
    for ours, expected in ((found.rows, rows), (found.outputs, outputs)):
        assert (ours is None) == (expected is None)
        if expected is not None:
            np.testing.assert_array_equal(ours, expected)
    assert found.told() == {
        "word": "lichen", "file": "moss.safetensors", "digest": digest_of(content)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tensors", "metadata", "word"),
    [
        ({INPUT_KEY: ROWS}, None, "moss"),
        ({INPUT_KEY: ROWS}, {"word": "fern"}, "fern"),
        ({"emb_params": ROWS}, None, "moss"),
        ({"string_to_param": ROWS}, None, "moss"),
        ({"<ivy>": ROWS}, None, "ivy"),
        ({"ivy": ROWS}, {"word": "fern"}, "fern"),
    ],
)
def test_the_forms_of_other_tools(tmp_path, tensors, metadata, word):
    path = saved(tmp_path, tensors, metadata)
    found = read_embedding(path)
    assert found.word == word
    assert found.outputs is None
    np.testing.assert_array_equal(found.rows, ROWS)
    assert read_embedding(f"{path}:thing").word == "thing"


def test_one_vector_and_narrow_numbers(tmp_path):
    found = read_embedding(saved(tmp_path, {"<ivy>": ROWS[1].astype(ml_dtypes.bfloat16)}))
    np.testing.assert_array_equal(found.rows, ROWS[1:])
    assert found.rows is not None
    assert found.rows.dtype == np.float32


def test_a_colon_in_a_files_name_is_its_own(tmp_path):
    path = saved(tmp_path, {INPUT_KEY: ROWS}, name="a:b.safetensors")
    with pytest.raises(InputError, match=r"'a:b' cannot be the word"):
        read_embedding(path)
    assert read_embedding(f"{path}:ab").word == "ab"


NAN = np.array([[0, np.nan, 0]], np.float32)
REFUSED = {
    "not finite": ({INPUT_KEY: NAN}, "NaN or infinite"),
    "not finite, out": (
        {INPUT_KEY: ROWS, OUTPUT_KEY: ROWS + np.float32(np.inf)},
        "NaN or infinite",
    ),
    "two sizes": ({INPUT_KEY: ROWS, OUTPUT_KEY: ROWS[:1]}, r"\[2, 3\] .* \[1, 3\] to come out"),
    "too many": ({INPUT_KEY: np.zeros((512, 3), np.float32)}, "512 vectors; a prompt takes 1 to"),
    "whole numbers": ({INPUT_KEY: ROWS.astype(np.int32)}, r"is I32 \[2, 3\]; vectors are floats"),
    "three dims": ({INPUT_KEY: ROWS[None]}, r"F32 \[1, 2, 3\]"),
    "none at all": ({INPUT_KEY: ROWS[:0]}, r"F32 \[0, 3\]"),
    "another encoder": ({"clip_l": ROWS}, "of the text encoder clip_l; those of Wan's are called"),
    "another's output": ({"t5_out": ROWS}, "of the text encoder t5_out"),
    "others besides": ({INPUT_KEY: ROWS, "clip_g": ROWS}, "other text encoders .*: clip_g; Wan"),
    "a LoRA": ({"a.lora_A.weight": ROWS, "a.lora_B.weight": ROWS}, "2 tensors and none is called"),
    "a token that is none": ({"<a b>": ROWS}, "'a b' cannot be the word"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name):
    tensors, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as caught:
        read_embedding(saved(tmp_path, tensors))
    assert "moss.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_a_pickle_is_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"moss{suffix}"
    path.write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match=f"moss{suffix} is a pickle"):
        read_embedding(f"{path}:moss")


def test_a_missing_and_a_damaged_file(tmp_path):
    with pytest.raises(InputError, match=r"there is no file .*moss\.safetensors; give"):
        read_embedding(str(tmp_path / "moss.safetensors:thing"))
    (tmp_path / "moss.safetensors").write_bytes(b"\x09" * 20)
    with pytest.raises(CheckpointError, match=r"moss\.safetensors is damaged"):
        read_embedding(str(tmp_path / "moss.safetensors"))


@pytest.mark.parametrize(
    "word", ["", " ", "\u200b", "<moss>", "a&b", "R&amp;D", "two words", "a:b", "caf\u00c3\u00a9"]
)
def test_words_that_cleaning_would_not_leave_whole(word):
    with pytest.raises(InputError, match="moss"):
        check_word(word)


@pytest.mark.parametrize("word", ["moss", "[moss]", "caf\u00e9", "moss-2", "\u82d4", "*"])
def test_words_that_do(word):
    check_word(word)


def test_an_embedding_without_vectors():
    with pytest.raises(InputError, match="has no vectors"):
        Embedding(word="moss", name="moss")
