"""Small vocabularies: one of bytes, some with words and byte fallback, and one whose decoder rbee does not know."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models

from rbee.models import synthetic

SYNTHETIC = synthetic.tokenizer()


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that the vocabulary has."""
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


def sentencepiece_like(*, strip: bool) -> Tokenizer:
    """A vocabulary with words, spaces, an emoji, every byte, a special token and an added word."""
    words = [
        "<unk>",
        "▁Hello",
        "▁wor",
        "ld",
        "▁",
        "é",
        "🐝",
        "▁▁",
        "<0xZZ>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    tokenizer = Tokenizer(
        models.BPE({word: n for n, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.add_tokens([AddedToken("▁added word", special=False)])
    return tokenizer


SENTENCEPIECE = {strip: sentencepiece_like(strip=strip) for strip in (False, True)}


def wordpiece() -> Tokenizer:
    """A vocabulary whose decoder is none of those that rbee knows by heart."""
    words = ["[UNK]", "hello", "##ing", "world", ",", "##s"]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
