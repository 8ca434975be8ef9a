"""Text to token ids.

Owns the tokenizer and where it runs. Does not know what a chat or a model is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from rbee.errors import ModelError
from rbee.models import token_pieces
from rbee.server.text.detokenizer import Detokenizer, detokenizers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rbee.models.token_pieces import Piece


class TextCodec:
    """A model's tokenizer, both ways. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, pieces: Iterable[list[Piece]] | None = None) -> None:
        self._tokenizer = tokenizer
        self._detokenizers = detokenizers(tokenizer, pieces)
        self.table = self._detokenizers.table  # these two: see `Detokenizers`
        self.token_bytes = self._detokenizers.token_bytes
        self.size = tokenizer.get_vocab_size(with_added_tokens=True)  # ids, those of added tokens included

    @classmethod
    def load(cls, folder: Path) -> TextCodec:
        """Read `folder`/tokenizer.json, or raise ModelError."""
        path = folder / "tokenizer.json"
        try:
            content = path.read_bytes()
            return cls(Tokenizer.from_buffer(content), token_pieces.read(folder, content))
        except Exception as error:  # tokenizers raises bare Exception for everything
            raise ModelError(f"{path} cannot be read as a tokenizer: {error}. Fetch the model again.") from error

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of `text`. The batch call alone gives up Python's lock, so that other threads run meanwhile."""
        [encoding] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of `token_ids`, special tokens left out."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def detokenizer(self) -> Detokenizer:
        return self._detokenizers()
