"""From what a user typed to token ids. Knows nothing of models or JAX.

Cleaning and padding are those of diffusers' `WanPipeline` (`prompt_clean`,
`_get_t5_prompt_embeds`): the embeddings, and with them the video, depend on every token.
"""

import html
import logging
import re
import unicodedata
from collections.abc import Sequence

import ftfy
import numpy as np
from jaxtyping import Int32

from wan_tpu.errors import PromptError
from wan_tpu.geometry import TEXT_TOKENS
from wan_tpu.text.tokenizer import Tokenizer

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
    tokenizer: Tokenizer, prompts: Sequence[str], max_length: int = TEXT_TOKENS
) -> tuple[Int32[np.ndarray, "n {max_length}"], Int32[np.ndarray, "n {max_length}"]]:
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
    ids = np.full((len(prompts), max_length), tokenizer.pad_id, np.int32)
    mask = np.zeros((len(prompts), max_length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens = tokenizer.encode(clean_prompt(prompt))
        if len(tokens) > max_length:
            _warn_of_cut(tokenizer.decode(tokens[max_length - 1 : -1]), len(tokens), max_length)
            tokens = [*tokens[: max_length - 1], tokens[-1]]
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask


def _warn_of_cut(tail: str, num_tokens: int, max_length: int) -> None:
    """Logs what of a prompt the model will not see."""
    shown = tail if len(tail) <= SHOWN_CHARACTERS else tail[:SHOWN_CHARACTERS] + "..."
    logger.warning(
        "the prompt has %d tokens more than the %d the model reads; dropped: %r",
        num_tokens - max_length,
        max_length,
        shown,
    )
