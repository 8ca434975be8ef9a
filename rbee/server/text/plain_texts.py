"""The tokenizer of most texts, without the step that removes the bytes for which a vocabulary has no tokens.

Owns which texts have none of these bytes. That step looks at every word once more, which takes a quarter to a half of
the time. Does not know what a text is for.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, pre_tokenizers

from rbee.models.token_pieces import byte_level_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence


class PlainTexts:
    """Chooses between two tokenizers with the same vocabulary, of which each text has the same tokens.

    Args:
        tokenizer: of all texts. The other one is made of it if its last step removes bytes, as of GGUF files whose
            vocabulary lacks some (`rbee.models.gguf.tokenizer.models`).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = self._plain = tokenizer
        self._removed = b""
        steps = _steps(tokenizer)
        if [step["type"] for step in steps[-2:]] == ["ByteLevel", "Split"] and steps[-1]["behavior"] == "Removed":
            self._removed = removed_by(made_of(steps[-1:]))
            self._plain = _with_steps(tokenizer, made_of(steps[:-1]))

    def tokenizer_for(self, text: str) -> Tokenizer:
        """The one that is sooner done with this text."""
        if self._removed:
            data = text.encode(errors="surrogatepass")
            if len(data.translate(None, self._removed)) < len(data):
                return self._tokenizer
        return self._plain


def _steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The steps that cut a text into words, as tokenizer.json has them; none if there is only one."""
    if tokenizer.pre_tokenizer is None:
        return []
    steps: list[dict[str, Any]] = json.loads(tokenizer.pre_tokenizer.__getstate__()).get("pretokenizers", [])
    return steps


def made_of(steps: Sequence[dict[str, Any]]) -> pre_tokenizers.PreTokenizer:
    """What cuts a text in these steps."""
    made = pre_tokenizers.Sequence([])
    made.__setstate__(json.dumps({"type": "Sequence", "pretokenizers": steps}).encode())
    return made


def removed_by(step: pre_tokenizers.PreTokenizer) -> bytes:
    """Of all bytes, as the step sees them."""
    names = [name for name in pre_tokenizers.ByteLevel.alphabet() if not step.pre_tokenize_str(name)]
    return b"".join(byte_level_bytes(names))


def _with_steps(tokenizer: Tokenizer, steps: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """The tokenizer with these steps, if its added tokens keep their ids; itself, if they do not."""
    other = Tokenizer(tokenizer.model)
    other.pre_tokenizer = steps
    if tokenizer.normalizer is not None:
        other.normalizer = tokenizer.normalizer
    if tokenizer.post_processor is not None:
        other.post_processor = tokenizer.post_processor
    added = tokenizer.get_added_tokens_decoder()
    for _, token in sorted(added.items()):
        other.add_special_tokens([token]) if token.special else other.add_tokens([token])
    return other if other.get_added_tokens_decoder() == added else tokenizer
