"""New words in prompts: their ids are nobody's, and the text around gives the tokens it gives."""

import json
import logging

import numpy as np
import pytest
import sentencepiece
import tokenizers

from tests.checkpoint_factory import save_umt5_tokenizer
from wan_tpu.demo import WAN_TINY_PATH
from wan_tpu.errors import InputError, PromptError
from wan_tpu.text.embedding_file import Embedding
from wan_tpu.text.new_words import NO_WORDS, NewWords, WordTokenizer, check_widths
from wan_tpu.text.prompt import clean_prompt, tokenize
from wan_tpu.text.tokenizer import load_tokenizer

TABLE = 500
"""Rows of the text encoder; more than any tokenizer here has tokens, as UMT5's."""

WORD = "fox"
"""A piece of its own in both subword vocabularies: what stands around it does not depend on it."""


def embedding(word, count=3, *, name=None, kinds=(True, False), dim=4):
    vectors = np.full((count, dim), len(word), np.float32)
    return Embedding(
        word=word,
        name=name or word,
        rows=vectors if kinds[0] else None,
        outputs=vectors + 0.5 if kinds[1] else None,
    )


@pytest.fixture(scope="module", params=["json", "spiece"])
def tokenizer(request, tmp_path_factory):
    """UMT5's form in both files, with a piece for the word."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "json":
        save_umt5_tokenizer(folder)
        path = folder / "tokenizer.json"
        data = json.loads(path.read_text())
        data["model"]["vocab"] += [["▁fox", -2.0], ["fox", -2.0], ["▁red", -2.0], [",▁", -1.0]]
        path.write_text(json.dumps(data))
        tokenizers.Tokenizer.from_file(str(path))
        return load_tokenizer(folder)
    (folder / "text").write_text("a red fox runs, through snow\nfox (fox) a blue fox's\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "spiece"), vocab_size=330,
        byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>",
        hard_vocab_limit=False, minloglevel=2, user_defined_symbols=["▁fox", "fox"],
    )  # fmt: skip
    return load_tokenizer(folder)


AROUND = (
    "a red fox runs",
    "fox",
    "fox runs",
    "a red fox",
    "fox, a red fox; fox fox.",
    "(fox) (a fox) [fox]",
    "the fox's den, \u8d64\u3044 fox \U0001f431",
    "\uff41 fox \uff0c",
)


@pytest.mark.parametrize("text", AROUND)
def test_the_text_around_a_word_gives_its_own_tokens(tokenizer, text):
    """The word's own pieces out of the tokenizer's ids, the new ones in: nothing else differs."""
    new = WordTokenizer(tokenizer, NewWords([embedding(WORD)], TABLE))
    words = {tuple(tokenizer.encode(form)[:-1]) for form in ("fox", "red fox", ",fox")}
    singles = {ids[-1] for ids in words}  # with a blank before it and without
    expected = []
    for token in tokenizer.encode(text):
        expected += [TABLE, TABLE + 1, TABLE + 2] if token in singles else [token]
    assert new.encode(text) == expected
    assert expected.count(TABLE) == text.count("fox")


def test_beside_whole_words():
    """wan-tiny's tokenizer drops signs, and every word that it does not know is the same one."""
    tiny = load_tokenizer(WAN_TINY_PATH / "tokenizer")
    new = WordTokenizer(tiny, NewWords([embedding("moss", 2)], TABLE))
    red, unknown, end = *tiny.encode("red")[:1], *tiny.encode("zork")
    assert new.encode("zork, (moss) moss; red moss\U0001f431zork") == [
        unknown, 500, 501, 500, 501, red, 500, 501, unknown, end
    ]  # fmt: skip


def test_without_its_word_a_text_is_as_ever(tokenizer):
    new = WordTokenizer(tokenizer, NewWords([embedding("moss")], TABLE))
    for text in ("", "a red fox", "mossy", "Amos's", "a_moss", "moss2", "embedding: moss"):
        if text != "embedding: moss":
            assert new.encode(text) == tokenizer.encode(text), text
    assert WordTokenizer(tokenizer, NO_WORDS).encode("a moss") == tokenizer.encode("a moss")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    save_umt5_tokenizer(folder)
    return load_tokenizer(folder)


def test_ids_are_above_the_table_and_padded(plain):
    """Red when they follow the tokenizer's last: rows of the table that no text names."""
    words = NewWords([embedding("moss", 3), embedding("fern", 14)], TABLE)
    assert plain.num_tokens < TABLE
    assert words.ids_of(0) == [500, 501, 502]
    assert words.ids_of(1) == [*range(503, 517)]
    assert words.vectors is not None
    assert words.vectors.shape == (32, 4)
    np.testing.assert_array_equal(words.vectors[:3], 4)
    np.testing.assert_array_equal(words.vectors[17:], 0)


FORMS = {
    "moss": 1,
    "Moss, MOSS": 2,
    "<moss> &lt;moss&gt; &amp;lt;moss&amp;gt;": 3,
    "embedding:moss": 1,
    "(embedding:moss), embedding:moss.safetensors": 2,
    "embedding:green": 1,  # the file's name
    "moss-green moss's \u201cmoss\u201d": 3,
    "caf\u00c3\u00a9 moss \u00e2\u20ac\u0153moss\u00e2\u20ac\u009d &amp;moss;": 3,
    "mossy moss1 amoss _moss moss_": 0,
    "mo ss": 0,
}


@pytest.mark.parametrize("text", FORMS)
def test_where_a_word_counts(plain, text):
    """Cleaning leaves it whole: entities, mojibake, curly quotes."""
    words = NewWords([embedding("moss", name="green")], TABLE)
    ids, mask = tokenize(WordTokenizer(plain, words), [text])
    assert np.count_nonzero(ids == TABLE) == FORMS[text]
    assert mask.sum() == len(WordTokenizer(plain, words).encode(clean_prompt(text)))


def test_the_longest_word_wins_and_signs_are_letters_too(plain):
    words = NewWords([embedding("[moss]", 1), embedding("moss", 1), embedding("moss-2", 1)], TABLE)
    assert words.split("a moss-2 of [moss] and moss") == ["a ", 2, " of ", 0, " and ", 1]
    assert words.used(["moss-2", "[moss]"]) == {0, 2}


def test_an_embedding_that_is_not_there(plain):
    words = NewWords([embedding("moss")], TABLE)
    with pytest.raises(PromptError, match="embedding 'fern' and there is none; known: moss"):
        words.split("a moss, embedding:fern")
    with pytest.raises(PromptError, match="embedding 'mossy' and there is none"):
        words.split("embedding:mossy")
    with pytest.raises(PromptError, match="there is none; give its file"):
        WordTokenizer(plain, NO_WORDS).encode("embedding:fern")


def test_vectors_count_among_the_512(plain, caplog):
    """The end token stays, and the warning shows the word that was cut through."""
    words = WordTokenizer(plain, NewWords([embedding("moss", 20)], TABLE))
    text = "a " * 250 + "moss tail"
    with caplog.at_level(logging.WARNING):
        ids, mask = tokenize(words, [text])
    assert mask.all()
    assert ids[0, 500:511].tolist() == [*range(500, 511)]
    assert ids[0, 511] == 1
    (record,) = caplog.records
    assert record.getMessage() == (
        "the prompt has 14 tokens more than the 512 the model reads; dropped: 'moss tail'"
    )


def test_what_goes_in_keeps_the_encoders_answer(plain):
    words = WordTokenizer(plain, NewWords([embedding("moss", 2)], TABLE))
    ids, mask = tokenize(words, ["moss a", "a"], max_length=8)
    new_ids, new_mask, vectors, slots = words.inputs(ids, mask)
    np.testing.assert_array_equal(new_ids, ids)
    np.testing.assert_array_equal(new_mask, mask)
    np.testing.assert_array_equal(slots, -1)
    assert vectors.shape == (16, 4)


def test_what_comes_out_leaves_a_hole_to_go_in(plain):
    """Nothing attends to the places, whose vectors come out; the rest is as it was."""
    words = WordTokenizer(
        plain, NewWords([embedding("fern", 1), embedding("moss", 2, kinds=(False, True))], TABLE)
    )
    ids, mask = tokenize(words, ["a moss fern", "a"], max_length=8)
    new_ids, new_mask, vectors, slots = words.inputs(ids, mask)
    is_hole = (ids == 501) | (ids == 502)
    assert is_hole.sum() == 2
    np.testing.assert_array_equal(new_ids, np.where(is_hole, 0, ids))
    np.testing.assert_array_equal(new_mask, np.where(is_hole, 0, mask))
    np.testing.assert_array_equal(slots[is_hole], [1, 2])
    np.testing.assert_array_equal(slots[~is_hole], -1)
    np.testing.assert_array_equal(vectors[1:3], 4.5)
    assert all(array.dtype == np.int32 for array in (new_ids, new_mask, slots))


def test_both_ways_at_once(plain):
    both = embedding("moss", 2, kinds=(True, True))
    words = WordTokenizer(plain, NewWords([both, embedding("fern", 1)], TABLE))
    ids, mask = tokenize(words, ["moss fern"], max_length=8)
    new_ids, new_mask, vectors, slots = words.inputs(ids, mask)
    np.testing.assert_array_equal(new_mask, mask)
    assert new_ids[0, :3].tolist() == [500, 501, 504]
    assert slots[0, :3].tolist() == [2, 3, -1]
    np.testing.assert_array_equal(vectors[:2], both.rows)
    np.testing.assert_array_equal(vectors[2:4], both.outputs)
    np.testing.assert_array_equal(vectors[4], 4)


def test_without_words_the_text_encoder_is_given_what_it_was(plain):
    words = WordTokenizer(plain, NO_WORDS)
    ids, mask = tokenize(words, ["a red fox"])
    given = words.inputs(ids, mask)
    assert len(given) == 2
    assert given[0] is ids
    assert given[1] is mask


def test_two_files_of_one_word_or_of_two_models():
    one, other = embedding("moss", name="a"), embedding("MOSS", name="b")
    with pytest.raises(InputError, match=r"a\.safetensors and b\.safetensors are both for"):
        NewWords([one, other], TABLE)
    with pytest.raises(InputError, match=r"fern\.safetensors holds vectors of 5 numbers; .* 4"):
        NewWords([one, embedding("fern", dim=5)], TABLE)
    with pytest.raises(InputError, match=r"a\.safetensors .* 4 numbers; .* of Wan takes 4096"):
        check_widths([one], 4096, "Wan")
