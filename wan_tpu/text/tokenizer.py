"""The tokenizer of a checkpoint, exactly as its file says.

`transformers` is not asked: by the class that Wan's folders name, T5's, version 5 builds the
tokenizer anew from the vocabulary alone. UMT5's unknown token, byte fallback, normalizer and way of
splitting words are then lost, and characters outside the vocabulary become the wrong token.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from wan_tpu.checkpoints.files import pointer_hint
from wan_tpu.errors import CheckpointError

JSON_FILE, SENTENCEPIECE_FILE = "tokenizer.json", "spiece.model"
CONFIG_FILE = "tokenizer_config.json"
DEFAULT_PAD_TOKEN = "<pad>"


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids.

    Attributes:
        pad_id: fills up what is shorter than the model reads.
        num_tokens: ids lie below it.
    """

    pad_id: int
    num_tokens: int

    def encode(self, text: str) -> list[int]:
        """The ids of a text, its end token last."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...


class JsonTokenizer:
    """A `tokenizer.json`, by the library that wrote it."""

    def __init__(self, path: pathlib.Path):
        """Reads the file.

        Raises:
            CheckpointError: it has no token to pad with.
        """
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        # What the file cuts or pads by itself is not what Wan's text encoder is given.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        pad_token = _pad_token(path.with_name(CONFIG_FILE))
        pad_id = self._tokenizer.token_to_id(pad_token)
        if pad_id is None:
            raise CheckpointError(f"{path} has no token {pad_token!r} to pad with")
        self.pad_id: int = pad_id
        self.num_tokens: int = self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return self._tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return self._tokenizer.decode(list(ids))


class SentencePieceTokenizer:
    """A `spiece.model`, by SentencePiece itself."""

    def __init__(self, path: pathlib.Path):
        """Reads the file.

        Raises:
            CheckpointError: it has no token to pad or to end with.
        """
        import sentencepiece

        self._processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self._end_id: int = self._processor.eos_id()
        self.pad_id: int = self._processor.pad_id()
        self.num_tokens: int = self._processor.get_piece_size()
        if min(self._end_id, self.pad_id) < 0:
            raise CheckpointError(f"{path} has no token to end a text or to pad it with")

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return [*self._processor.encode(text), self._end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return self._processor.decode(list(ids))


MAKERS = {JSON_FILE: JsonTokenizer, SENTENCEPIECE_FILE: SentencePieceTokenizer}
"""By the name of the file; the first that is there is taken."""


def load_tokenizer(folder: pathlib.Path, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint's folder: `tokenizer.json`, else `spiece.model`.

    Args:
        folder: of the component.
        vocab_size: tokens that the text encoder knows.

    Raises:
        CheckpointError: neither is there, it is damaged, or it is of another model.
    """
    names = [name for name in MAKERS if (folder / name).is_file()]
    if not names:
        raise CheckpointError(f"the tokenizer in {folder}: neither {' nor '.join(MAKERS)} is there")
    path = folder / names[0]
    try:
        tokenizer = MAKERS[path.name](path)
        tokenizer.encode("a")
    except CheckpointError:
        raise
    except Exception as error:
        # tokenizers raises nothing narrower; SentencePiece RuntimeError for whatever is wrong.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = pointer_hint(path) or f"cannot be used: {reason}"
        raise CheckpointError(f"the tokenizer in {folder}: {path.name} {hint}") from error
    if vocab_size is not None and tokenizer.num_tokens > vocab_size:
        raise CheckpointError(
            f"the tokenizer in {folder} has {tokenizer.num_tokens} tokens, the text encoder knows "
            f"{vocab_size}: they are not of one model"
        )
    return tokenizer


def _pad_token(config: pathlib.Path) -> str:
    """What the configuration beside a tokenizer names as its padding."""
    if not config.is_file():
        return DEFAULT_PAD_TOKEN
    try:
        token = json.loads(config.read_text(encoding="utf-8")).get("pad_token")
    except (ValueError, AttributeError, OSError) as error:
        raise CheckpointError(f"{config} is damaged: {error}") from None
    if isinstance(token, dict):  # as transformers writes added tokens
        token = token.get("content")
    return token if isinstance(token, str) else DEFAULT_PAD_TOKEN
