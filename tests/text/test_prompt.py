"""Prompts become the tokens that diffusers' Wan pipeline would make of them."""

import logging
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline, prompt_clean
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from wan_tpu.errors import PromptError
from wan_tpu.text.prompt import SHOWN_CHARACTERS, check_prompt, clean_prompt, tokenize
from wan_tpu.text.tokenizer import load_tokenizer

NASTY = [
    "",
    "   ",
    "a red circle",
    "  two  blanks\tand\na  tab ",
    "line\r\nends\rof\x0ball\x0ckinds\x85here\u2028and\u2029there",
    "no-break\u00a0space\u2003em\u3000ideographic\u200bzero\ufeffwidth",
    # UTF-8 read as Latin-1
    "caf\u00c3\u00a9 na\u00c3\u00afve \u00e2\u20ac\u0153quoted\u00e2\u20ac\u009d",
    "a cat &amp; a dog",
    "a cat &amp;amp; a dog",
    "a cat &amp;amp;amp; a dog",
    "&lt;b&gt;bold&lt;/b&gt; <i>not an entity: &amp;</i>",
    "<i>with a tag ftfy leaves entities alone: &amp;amp; &amp;lt;</i>",
    "&nbsp;&nbsp;edges&nbsp;",
    "&#8217;&#x2019;&rsquo;&#0;&#xD800;&#x110000;&#128;",
    "&notanentity; &ampno semicolon &",
    "\u201ccurly\u201d \u2018quotes\u2019 \u2026 \u2014 \ufb01ligature \uff26\uff35\uff2c\uff2c",
    "\x00\x01\x1b[31mterminal\x1b[0m\x7f\x1c\x1d\x1e\x1f",
    "\ud83d\udc31 a surrogate pair, \udc80 a lone one",
    "\U0001f431\u200d\U0001f464 \U0001f1e9\U0001f1ea e\u0301 \u0065\u0301",
    "\u4e00\u53ea\u732b\u5728\u8dd1 \u3001\u3002\uff01 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\u202eright to left\u202c",
    "a\n\n\nb " * 400,
]


@pytest.mark.parametrize("text", NASTY)
def test_cleaning_equals_diffusers(text):
    assert clean_prompt(text) == prompt_clean(text)


def test_cleaning_of_every_character_equals_diffusers():
    """`re` and `regex` disagree on what white space is; here that must not show."""
    codes = (*range(0x3100), *range(0xD7F0, 0xE010), *range(0xFE00, 0x10000))
    for code in codes:
        for text in (f"a{chr(code)}b {chr(code)}", f"a&#{code};b", f"a&amp;#{code};b"):
            assert clean_prompt(text) == prompt_clean(text), (hex(code), text)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a cat &amp;amp; a dog", "a cat & a dog"),
        ("caf\u00c3\u00a9", "caf\u00e9"),
        (" a \n b ", "a b"),
        ("&nbsp;", ""),
        ("<i>a &amp;amp; b</i>", "<i>a & b</i>"),
    ],
)
def test_cleaning_by_example(text, cleaned):
    assert clean_prompt(text) == cleaned


NOTHING = [
    *(
        "",
        " \n",
        "&nbsp;",
        "&amp;nbsp;",
        "\ufeff",
        "\u200b",
        "&#8203;",
        "\x00\x01\x1b",
        "\u2060\u00ad",
    ),
    *(
        "\u200e\u202e",
        "\ufe0f",
        "\u0301",
        "\ud800",
        "\u3164\u3164",
        "\u2800",
        "\U000e0041",
        " \u200b &nbsp; ",
    ),
]
SOMETHING = [
    "a",
    "\u732b",
    "7",
    "?",
    "\U0001f431",
    "&lt;",
    "\u200ba\u200b",
    "e\u0301",
    "\u0e01\u0e33",
    "&amp;",
]


@pytest.mark.parametrize("text", NOTHING)
def test_a_prompt_of_which_nothing_is_left_is_refused(text):
    with pytest.raises(PromptError, match="prompt is empty once blanks and invisible"):
        check_prompt(text)


@pytest.mark.parametrize("text", SOMETHING)
def test_a_prompt_of_which_something_is_left_is_taken(text):
    check_prompt(text)


@pytest.fixture
def tokenizer(fast_tokenizer, tmp_path):
    """What we load of `fast_tokenizer` once it is saved."""
    fast_tokenizer.save_pretrained(tmp_path)
    return load_tokenizer(tmp_path)


@pytest.fixture
def fast_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, closed by an end token as T5's: 512 are soon reached, and it decodes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = {"<pad>": 0, "</s>": 1}
    vocabulary = specials | {letter: i for i, letter in enumerate(letters, start=2)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", model_max_length=512
    )


def tokens_of_diffusers(tokenizer, prompts):
    """What `WanPipeline` hands to its text encoder: ids and mask."""
    seen = {}

    class TextEncoder(torch.nn.Module):
        dtype, device = torch.float32, torch.device("cpu")

        def forward(self, ids, mask):
            seen.update(ids=ids, mask=mask)
            return types.SimpleNamespace(last_hidden_state=torch.zeros(*ids.shape, 4))

    pipeline: Any = types.SimpleNamespace(
        tokenizer=tokenizer, text_encoder=TextEncoder(), _execution_device=torch.device("cpu")
    )
    WanPipeline._get_t5_prompt_embeds(pipeline, prompts, max_sequence_length=512)
    return seen["ids"].numpy(), seen["mask"].numpy()


def test_tokens_equal_diffusers(tokenizer, fast_tokenizer):
    ids, mask = tokenize(tokenizer, NASTY)
    expected_ids, expected_mask = tokens_of_diffusers(fast_tokenizer, NASTY)
    assert ids.dtype == mask.dtype == np.int32
    assert ids.shape == mask.shape == (len(NASTY), 512)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(mask, expected_mask)


def test_an_empty_prompt_is_the_end_token_alone(tokenizer):
    ids, mask = tokenize(tokenizer, [""], max_length=4)
    assert ids.tolist() == [[1, 0, 0, 0]]
    assert mask.tolist() == [[1, 0, 0, 0]]


def test_a_prompt_that_just_fits_is_not_warned_about(tokenizer, caplog):
    ids, mask = tokenize(tokenizer, ["x" * 511])
    assert mask.all()
    assert ids[0, -1] == 1
    assert not caplog.records


def test_a_longer_prompt_is_cut_with_a_warning(tokenizer, caplog):
    """The end token stays; one warning counts the tokens and shows them."""
    with caplog.at_level(logging.WARNING):
        ids, mask = tokenize(tokenizer, ["x" * 511 + "LOST", "short"])
    assert ids[0, -1] == 1
    assert mask[0].all()
    assert [record.getMessage() for record in caplog.records] == [
        "the prompt has 4 tokens more than the 512 the model reads; dropped: 'LOST'"
    ]
    assert caplog.records[0].name == "wan_tpu.text.prompt"


def test_a_warning_quotes_only_the_start_of_a_long_tail(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        tokenize(tokenizer, ["x" * 511 + "LOST" * 1000])
    message = caplog.records[0].getMessage()
    assert "4000 tokens" in message
    assert message.endswith("LOST...'")
    assert len(message) < SHOWN_CHARACTERS + 100


def test_importing_the_module_does_not_load_transformers():
    """It costs seconds, and the command line imports this module early."""
    code = "import wan_tpu.text.prompt, sys; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
