"""The tokenizer of a checkpoint, exactly as its file says.

`transformers` is not asked: by the class that Wan's folders name, T5's, version 5 builds the
tokenizer anew from the vocabulary alone. UMT5's unknown token, byte fallback, normalizer and way of
splitting words are then lost, and characters outside the vocabulary become the wrong token.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

from wan_tpu.errors import CheckpointError

JSON_FILE, SENTENCEPIECE_FILE = "tokenizer.json", "spiece.model"
CONFIG_FILE = "tokenizer_config.json"
DEFAULT_PAD_TOKEN = "<pad>"


class Tokenizer(Protocol):
    """Text to token ids.

    Attributes:
        pad_id: fills up what is shorter than the model reads.
    """

    @property
    def pad_id(self) -> int: ...  # noqa: D102

    def encode(self, text: str) -> list[int]:
        """The ids of a text, its end token last."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...


def load_tokenizer(folder: pathlib.Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder: `tokenizer.json`, else `spiece.model`.

    Raises:
        CheckpointError: neither is there, or it is damaged.
    """
    for name, make in ((JSON_FILE, JsonTokenizer), (SENTENCEPIECE_FILE, SentencePieceTokenizer)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            return make(path)
        except CheckpointError:
            raise
        except Exception as error:  # tokenizers raises Exception itself for whatever is wrong
            raise CheckpointError(f"{path} is damaged or not a tokenizer: {error}") from error
    raise CheckpointError(
        f"{folder} holds no tokenizer: neither {JSON_FILE} nor {SENTENCEPIECE_FILE} is there"
    )


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
        self._end_id, self.pad_id = self._processor.eos_id(), self._processor.pad_id()
        if min(self._end_id, self.pad_id) < 0:
            raise CheckpointError(f"{path} has no token to end a text or to pad it with")

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return [*self._processor.encode(text), self._end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return self._processor.decode(list(ids))


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
