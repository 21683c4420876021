"""Words that the tokenizer does not know, put into prompts as vectors. No JAX.

A new word takes ids above every row of the text encoder's table, whatever the tokenizer's own size:
UMT5's table has rows that its tokenizer never names, and a vector there would be a row.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float32, Int32

from wan_tpu.errors import CheckpointError, InputError, PromptError
from wan_tpu.text.embedding_file import SUFFIX, Embedding
from wan_tpu.text.tokenizer import Tokenizer

VECTORS_MULTIPLE = 16
"""The vectors of all words are padded to it: pipelines with a few words share their program."""

STAND_IN = "\U00010380"
"""A letter that no vocabulary joins to its neighbours (Ugaritic): it stands in front of text that
begins in the middle of a word, so that the tokenizer does not begin a word there."""

_NAMED = re.compile(r"(?<!\w)embedding:([^\s,;()]+)", re.IGNORECASE)
"""As ComfyUI's users write it."""

Ids = Int32[np.ndarray, "prompts text"]


class NewWords:
    """The embeddings of a pipeline.

    Attributes:
        embeddings: each of another word.
        first_id: of the first vector; ids below are the text encoder's rows.
        vectors: of all embeddings, padded: `[vectors, dim]`, float32; None without any.
    """

    def __init__(self, embeddings: Sequence[Embedding] = (), first_id: int = 0):
        """Gives each vector its id.

        Raises:
            InputError: two are of one word, or of different widths.
        """
        self.embeddings = tuple(embeddings)
        self.first_id = first_id
        _check_different(self.embeddings)
        self._ids: list[list[int]] = []
        self._slots: list[int] = []  # by a vector's number: which one comes out there, or -1
        self._is_unseen: list[bool] = []
        found: list[np.ndarray] = []
        for embedding in self.embeddings:
            self._add(embedding, found)
        self.vectors: Float32[np.ndarray, "vectors dim"] | None = None
        if found:
            rows = np.concatenate(found)
            padding = -len(rows) % VECTORS_MULTIPLE
            self.vectors = np.pad(rows, ((0, padding), (0, 0)))
        self._pattern = _pattern(self.embeddings)

    def _add(self, embedding: Embedding, found: list[np.ndarray]) -> None:
        start, count = len(self._slots), embedding.num_vectors
        self._ids.append([self.first_id + start + k for k in range(count)])
        both = embedding.rows is not None and embedding.outputs is not None
        out_start = start + count if both else start
        has_outputs = embedding.outputs is not None
        self._slots += [out_start + k if has_outputs else -1 for k in range(count)]
        self._is_unseen += [embedding.rows is None] * count
        found += [v for v in (embedding.rows, embedding.outputs) if v is not None]
        if both:  # the outputs have places of their own, which no id names
            self._slots += [-1] * count
            self._is_unseen += [True] * count

    @property
    def num_vectors(self) -> int:
        """Rows of `vectors`, padding included; 0 without any."""
        return 0 if self.vectors is None else len(self.vectors)

    def split(self, text: str) -> list[str | int]:
        """A cleaned text as pieces of plain text and, in their places, numbers of embeddings.

        A word counts where no letter or digit touches it: `moss`, `<moss>`, `embedding:moss`.

        Raises:
            PromptError: `embedding:NAME` names none of them.
        """
        pieces: list[str | int] = []
        end = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            assert match.lastgroup is not None
            pieces += [text[end : match.start()], int(match.lastgroup.rpartition("_")[2])]
            end = match.end()
        pieces.append(text[end:])
        for piece in pieces:
            if isinstance(piece, str) and (named := _NAMED.search(piece)):
                raise PromptError(
                    f"the prompt names the embedding {named[1]!r} and there is none; "
                    + (f"known: {self._known()}" if self.embeddings else "give its file")
                )
        return [piece for piece in pieces if piece != ""]

    def used(self, texts: Iterable[str]) -> set[int]:
        """Numbers of the embeddings whose words stand in some cleaned texts.

        Raises:
            PromptError: as of `split`.
        """
        return {piece for text in texts for piece in self.split(text) if isinstance(piece, int)}

    def ids_of(self, number: int) -> list[int]:
        """The ids of an embedding's vectors, in order."""
        return self._ids[number]

    def number_of(self, token: int) -> int | None:
        """Which embedding an id is of; None of the tokenizer's own."""
        numbers = (n for n, ids in enumerate(self._ids) if ids[0] <= token <= ids[-1])
        return next(numbers, None)

    def inputs(self, ids: Ids, mask: Ids, pad_id: int) -> tuple[np.ndarray, ...]:
        """What the text encoder is given of tokenised prompts.

        Args:
            ids: `[prompts, 512]`, int32, those of `WordTokenizer`.
            mask: `[prompts, 512]`, int32, 1 for tokens of the prompt.
            pad_id: stands where only what comes out is given; nothing attends to it.

        Returns:
            ids and mask as they came, where there is no embedding; else ids and mask, `vectors`,
            and slots `[prompts, 512]`, int32: the vector that comes out in each place, or -1.
        """
        if self.vectors is None:
            return ids, mask
        numbers = ids - self.first_id
        is_new, numbers = numbers >= 0, np.maximum(numbers, 0)
        slots = np.where(is_new, np.array(self._slots, np.int32)[numbers], np.int32(-1))
        is_unseen = is_new & np.array(self._is_unseen)[numbers]
        ids = np.where(is_unseen, np.int32(pad_id), ids)
        return ids, np.where(is_unseen, np.int32(0), mask), self.vectors, slots

    def _known(self) -> str:
        return ", ".join(embedding.word for embedding in self.embeddings)


class WordTokenizer:
    """A tokenizer that knows some words more: see `Tokenizer`.

    The text around a word gives the tokens that it gives beside any other word.

    Attributes:
        words: that it knows besides.
    """

    def __init__(self, tokenizer: Tokenizer, words: NewWords):
        """`words` begin above every id of the tokenizer."""
        self._tokenizer, self.words = tokenizer, words
        self.pad_id: int = tokenizer.pad_id
        self.num_tokens: int = tokenizer.num_tokens
        if words.embeddings:
            assert words.first_id >= tokenizer.num_tokens
            self.num_tokens = words.first_id + words.num_vectors

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`.

        Raises:
            PromptError: `embedding:NAME` names no embedding.
            CheckpointError: the tokenizer joins what follows a word to it.
        """
        pieces = self.words.split(text)
        if not any(isinstance(piece, int) for piece in pieces):
            return self._tokenizer.encode(text)
        tokens: list[int] = []
        for position, piece in enumerate(pieces):
            if isinstance(piece, int):
                tokens += self.words.ids_of(piece)
            elif position == 0 or piece.startswith(" "):
                tokens += self._of_text(piece.strip())
            else:
                tokens += self._within_a_word(piece.strip())
        return [*tokens, self._tokenizer.encode("")[-1]]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`; a new word stands for each run of its vectors."""
        parts: list[str] = []
        known: list[int] = []
        before: int | None = None
        for token in ids:
            number = self.words.number_of(token)
            if number is None:
                known.append(token)
            elif number != before or token == self.words.ids_of(number)[0]:
                parts += [self._tokenizer.decode(known), self.words.embeddings[number].word]
                known = []
            before = number
        parts.append(self._tokenizer.decode(known))
        return " ".join(part for part in parts if part)

    def inputs(self, ids: Ids, mask: Ids) -> tuple[np.ndarray, ...]:
        """What the text encoder is given of prompts that this tokenised: see `NewWords.inputs`."""
        return self.words.inputs(ids, mask, self.pad_id)

    def _of_text(self, text: str) -> list[int]:
        """Tokens of a text without its end."""
        return self._tokenizer.encode(text)[:-1] if text else []

    def _within_a_word(self, text: str) -> list[int]:
        """Tokens of a text that follows a word without a blank."""
        head, tokens = self._of_text(STAND_IN), self._of_text(STAND_IN + text)
        if tokens[: len(head)] != head:
            raise CheckpointError(
                f"this model's tokenizer joins a letter to {text[:20]!r} after it; put a blank "
                "between a new word and what follows"
            )
        return tokens[len(head) :]


def check_widths(embeddings: Iterable[Embedding], dim: int, model: str) -> None:
    """Refuses vectors that are not of a model's text encoder.

    Args:
        embeddings: those that were read.
        dim: numbers that the text encoder's vectors have.
        model: its name, for the message.

    Raises:
        InputError: says which, and what was expected.
    """
    for embedding in embeddings:
        if embedding.dim != dim:
            raise InputError(
                f"{embedding.name}{SUFFIX} holds vectors of {embedding.dim} numbers; the text "
                f"encoder of {model} takes {dim}"
            )


def _check_different(embeddings: Sequence[Embedding]) -> None:
    """Refuses two files for one word."""
    seen: dict[str, Embedding] = {}
    for embedding in embeddings:
        other = seen.setdefault(embedding.word.lower(), embedding)
        if other is not embedding:
            raise InputError(
                f"{other.name}{SUFFIX} and {embedding.name}{SUFFIX} are both for the word "
                f"{embedding.word!r}; give one of them another, for example "
                f"{embedding.name}{SUFFIX}:{embedding.word}2"
            )
    for embedding in embeddings[1:]:
        check_widths([embedding], embeddings[0].dim, f"the model of {embeddings[0].name}{SUFFIX}")


def _pattern(embeddings: Sequence[Embedding]) -> re.Pattern[str] | None:
    """Finds each word; the group of a match ends in its number. The longest word is tried first."""
    if not embeddings:
        return None
    names = [embedding.name for embedding in embeddings]
    words = {number: embedding.word for number, embedding in enumerate(embeddings)}
    of_comfy = list(words.items())
    of_comfy += [(n, name) for n, name in enumerate(names) if names.count(name) == 1]
    forms = [
        *(f"(?P<c{i}_{n}>{_whole(f'embedding:{w}')}(?:{re.escape(SUFFIX)})?)"
          for i, (n, w) in enumerate(_longest_first(of_comfy))),
        *(f"(?P<b_{n}><{re.escape(w)}>)" for n, w in _longest_first(words.items())),
        *(f"(?P<w_{n}>{_whole(w)})" for n, w in _longest_first(words.items())),
    ]  # fmt: skip
    return re.compile("|".join(forms), re.IGNORECASE)


def _longest_first(words: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    return sorted(words, key=lambda item: -len(item[1]))


def _whole(word: str) -> str:
    """A pattern of a word that no letter or digit touches."""
    before = r"(?<!\w)" if re.match(r"\w", word[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", word[-1]) else ""
    return before + re.escape(word) + after


NO_WORDS = NewWords()
"""Of a pipeline without embeddings: prompts are the tokenizer's alone."""
