"""A checkpoint's tokenizer is loaded as its file says, whichever class its configuration names."""

import json

import numpy as np
import pytest
import sentencepiece
import tokenizers

from tests.checkpoint_factory import save_umt5_tokenizer
from wan_tpu.errors import CheckpointError
from wan_tpu.text.prompt import clean_prompt, tokenize
from wan_tpu.text.tokenizer import CONFIG_FILE, JSON_FILE, SENTENCEPIECE_FILE, load_tokenizer

TEXTS = (
    "a red fox",
    "fox, a b \U0001f431",  # byte fallback: the cat has no piece of its own
    # Full width and Chinese, as in Wan's negative prompt.
    "\uff26\uff2f\uff38\uff0c \u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd",
    "two  blanks and an em\u2003space",
    "<s> typed </s> by hand <unk>",
    "",
)  # fmt: skip


@pytest.fixture
def umt5(tmp_path):
    save_umt5_tokenizer(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_file(umt5, text):
    """Red when transformers loads it by its class: no byte fallback, unknown is id 2, no NFKC."""
    expected = tokenizers.Tokenizer.from_file(str(umt5 / JSON_FILE)).encode(text).ids
    assert load_tokenizer(umt5).encode(text) == expected


def test_what_umt5_has_and_t5_has_not(umt5):
    """So that the test above compares something: bytes, folding, and an unknown token at 3."""
    tokenizer = load_tokenizer(umt5)
    assert len(tokenizer.encode("\U0001f431")) == 1 + 4 + 1  # a blank, four bytes, the end
    assert tokenizer.encode("\uff46\uff4f\uff58") == tokenizer.encode("fox")
    assert tokenizer.pad_id == 0


def test_what_the_file_cuts_or_pads_by_itself_is_ours_to_decide(umt5):
    backend = tokenizers.Tokenizer.from_file(str(umt5 / JSON_FILE))
    whole = backend.encode("a red fox runs").ids
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.save(str(umt5 / JSON_FILE))
    assert load_tokenizer(umt5).encode("a red fox runs") == whole


def test_the_padding_that_the_configuration_names(umt5):
    config = json.loads((umt5 / CONFIG_FILE).read_text())
    for token in ("<s>", {"content": "<s>", "special": True}):
        (umt5 / CONFIG_FILE).write_text(json.dumps({**config, "pad_token": token}))
        ids, mask = tokenize(load_tokenizer(umt5), ["fox"], max_length=6)
        assert ids[0, -1] == 2
        assert mask[0].tolist() == [1, 1, 1, 1, 1, 0]  # a blank, three letters, the end


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A folder with a SentencePiece model alone, of UMT5's special ids."""
    folder = tmp_path_factory.mktemp("spiece")
    (folder / "text").write_text("a red fox runs through snow\na blue square moving up\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "spiece"), vocab_size=330,
        byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>",
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_a_sentencepiece_model_alone(spiece, text):
    model = sentencepiece.SentencePieceProcessor(model_file=str(spiece / SENTENCEPIECE_FILE))
    ids, mask = tokenize(load_tokenizer(spiece), [text], max_length=64)
    expected = [*model.encode(clean_prompt(text)), 1]
    assert ids[0, : mask.sum()].tolist() == expected
    np.testing.assert_array_equal(ids[0, mask.sum() :], 0)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b"\xff\xfe\x00", b'{"model": {}}'])
def test_a_damaged_file_is_one_line(umt5, content):
    (umt5 / JSON_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be used: "):
        load_tokenizer(umt5)


def test_a_damaged_sentencepiece_model_is_one_line(tmp_path):
    (tmp_path / SENTENCEPIECE_FILE).write_bytes(b"\x00\x01nonsense")
    with pytest.raises(CheckpointError, match=r"spiece\.model cannot be used: "):
        load_tokenizer(tmp_path)


def test_no_tokenizer_at_all_names_both_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor spiece\.model"):
        load_tokenizer(tmp_path)
