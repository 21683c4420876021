"""From what a user typed to token ids. Knows nothing of models or JAX.

Cleaning and padding are those of diffusers' `WanPipeline` (`prompt_clean`,
`_get_t5_prompt_embeds`): the embeddings, and with them the video, depend on every token.
"""

import html
import logging
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ftfy
import numpy as np

from wan_tpu.errors import PromptError
from wan_tpu.geometry import TEXT_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SHOWN_CHARACTERS = 200
"""How much of a dropped tail a warning quotes."""

BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0\ufffd"
"""Letters and symbols by category that say nothing: Hangul's fillers, Braille's empty cell, and
what ftfy puts for half a surrogate pair."""


def clean_prompt(text: str) -> str:
    """Repairs broken encodings, resolves HTML entities and makes each white space one blank.

    Entities are resolved twice, because captions copied from web pages are often escaped twice.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def check_prompt(text: str) -> None:
    """Refuses a prompt of which nothing visible is left once it is cleaned.

    `&nbsp;`, zero-width spaces and control characters would make the video of the empty prompt.

    Raises:
        PromptError: there is no letter, digit, sign or symbol in it.
    """
    if not any(_is_visible(character) for character in clean_prompt(text)):
        raise PromptError(
            "the prompt is empty once blanks and invisible characters are taken away; say what the "
            f"video shall show, got {text[:SHOWN_CHARACTERS]!r}"
        )


def _is_visible(character: str) -> bool:
    """Whether Unicode counts it among letters, numbers, punctuation and symbols, and it shows."""
    return unicodedata.category(character)[0] in "LNPS" and character not in BLANK_LETTERS


def tokenize(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], max_length: int = TEXT_TOKENS
) -> tuple[np.ndarray, np.ndarray]:
    """Cleans prompts and turns them into token ids, each cut or padded to the same length.

    Logs a warning with the dropped tail for each prompt that is longer.

    Args:
        tokenizer: the model's; its end token closes a prompt that was cut, too.
        prompts: `n` texts, as the user wrote them; empty ones are allowed.
        max_length: tokens per prompt, the end token included.

    Returns:
        ids: `[n, max_length]`, int32.
        mask: `[n, max_length]`, int32, 1 for tokens of the prompt and 0 for padding.
    """
    cleaned = [clean_prompt(prompt) for prompt in prompts]
    for prompt in cleaned:
        _warn_if_cut(tokenizer, prompt, max_length)
    tokens = tokenizer(
        cleaned,
        padding="max_length",
        max_length=max_length,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="np",
    )
    return tokens["input_ids"].astype(np.int32), tokens["attention_mask"].astype(np.int32)


def _warn_if_cut(tokenizer: "PreTrainedTokenizerBase", prompt: str, max_length: int) -> None:
    """Logs what of a prompt the model will not see."""
    # verbose=False: transformers' own warning speaks of indexing errors, which the cut prevents.
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    dropped = ids[max_length - tokenizer.num_special_tokens_to_add() :]
    if dropped:
        tail = str(tokenizer.decode(dropped))
        shown = tail if len(tail) <= SHOWN_CHARACTERS else tail[:SHOWN_CHARACTERS] + "..."
        logger.warning(
            "the prompt has %d tokens more than the %d the model reads; dropped: %r",
            len(dropped),
            max_length,
            shown,
        )
