"""The synthetic model's vocabulary, chat template and token sequence.

Owns what its tokens mean (a token id is a byte) and which tokens answer a prompt, also for tests and benchmarks. Does
not know steps, sequences or requests.
"""

from __future__ import annotations

import array
import string
import zlib
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from collections.abc import Sequence

VOCAB_SIZE = 256
HIDDEN_SIZE = 32
MAX_MODEL_LEN = 8192

CHAT_TEMPLATE = """\
{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""

_ALPHABET = (string.ascii_letters + string.digits).encode()
_MASK32 = 0xFFFF_FFFF


def tokenizer() -> Tokenizer:
    """256 tokens whose ids are the bytes of the text in UTF-8, and no special ones."""
    result = Tokenizer(models.BPE(vocab=_byte_vocabulary(), merges=[]))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.decoder = decoders.ByteLevel()
    return result


def prompt_hash(prompt_token_ids: Sequence[int]) -> int:
    """CRC-32 of the ids as little-endian uint32; it chooses the answer."""
    ids = array.array("I", prompt_token_ids)
    return zlib.crc32(ids.tobytes())


def sequence_token(prompt_hash: int, index: int) -> int:
    """The token at `index`, from 0, of the answer to a prompt with this hash: an ASCII letter or digit.

    The bits are mixed by the finalizer of MurmurHash3 (Austin Appleby, public domain).
    """
    x = (prompt_hash + (index + 1) * 0x9E37_79B9) & _MASK32  # steps of 2**32 / golden ratio: no short period
    x = ((x ^ (x >> 16)) * 0x85EB_CA6B) & _MASK32
    x = ((x ^ (x >> 13)) * 0xC2B2_AE35) & _MASK32
    x ^= x >> 16
    return _ALPHABET[x % len(_ALPHABET)]


def expected_tokens(prompt_token_ids: Sequence[int], count: int) -> list[int]:
    """The first `count` tokens of the answer to a prompt."""
    hashed = prompt_hash(prompt_token_ids)
    return [sequence_token(hashed, index) for index in range(count)]


def hidden_state(prefix_hash: int) -> list[float]:
    """The hidden state of a token; `prefix_hash` is the `prompt_hash` of it and all tokens before it."""
    return [((prefix_hash + index) * 0x9E37_79B9 & _MASK32) / 2**31 - 1 for index in range(HIDDEN_SIZE)]


def _byte_vocabulary() -> dict[str, int]:
    """GPT-2's character for each byte: printable ones as they are, the others from code point 256 on, in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    unprintable = [byte for byte in range(VOCAB_SIZE) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(VOCAB_SIZE + n): byte for n, byte in enumerate(unprintable)}
