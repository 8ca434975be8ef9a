"""The requests whose cost bench_door.py measures: each of a shape that was, or might be, expensive.

Owns the shapes. All fit into the largest body that rbee takes by default. Does not know how a cost is measured.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, NamedTuple

from rbee.server.protocols.json_shape import UNCOUNTED_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

BODY_BYTES = 2 * 2**20  # --max-body-mib of a server with defaults
_SMALL = UNCOUNTED_BYTES - 2048  # bytes of what is not counted before it is decoded, some for what lies around it
_CHAT, _COMPLETION, _TOKENIZE, _DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
_HARD_NUMBER = "1.2345678901234567e-300"
_SPECIAL = "<|im_end|>"
_WORDS = (
    "river stone window garden quiet engine letter harbor market winter silver morning travel doctor school "
    "forest bridge island captain summer kitchen mountain station picture answer village teacher ocean number"
).split()


class Case(NamedTuple):
    """One request. `body` makes it, because together they are large."""

    name: str
    path: str
    body: Callable[[], bytes]


def _completion(prompt: str, more: str = "") -> bytes:
    return f'{{"max_tokens":1,"prompt":{prompt}{more}}}'.encode()


def _chat(message: str) -> bytes:
    return f'{{"max_tokens":1,"messages":[{message}]}}'.encode()


def _message(content: str, more: str = "") -> str:
    return f'{{"role":"user","content":{content}{more}}}'


def _messages(messages: str) -> bytes:
    return f'{{"messages":{messages}}}'.encode()


def _text(text: str) -> bytes:
    return f'{{"prompt":{text}}}'.encode()


def _tokens(values: str) -> bytes:
    return f'{{"tokens":{values}}}'.encode()


def _list(value: str, number: int) -> str:
    return "[" + ",".join([value] * number) + "]"


def _string(text: str, size: int = BODY_BYTES - 1024) -> str:
    """A JSON string of `text` again and again, of so many bytes: `text` is as JSON has it."""
    return '"' + text * (size // len(text)) + '"'


def _english(size: int = BODY_BYTES - 1024) -> str:
    pick = random.Random(1)
    words = " ".join(pick.choice(_WORDS) for _ in range(size // 6))
    return json.dumps(words[:size])


def _null_fields(number: int) -> str:
    return "".join(f',"f{index:06}":null' for index in range(number))


def _biases(number: int) -> str:
    return ',"logit_bias":{' + ",".join(f'"{index}":1' for index in range(number)) + "}"


def _unknown(size: int) -> bytes:
    return _completion('"x"', ',"' + "u" * size + '":1')


def _nested(size: int) -> str:
    return "[" * (size // 2) + "]" * (size // 2)


def shapes() -> list[Case]:
    """All that is one request."""
    large = BODY_BYTES - 1024
    return [
        Case("a message of 110,000 null fields", _CHAT, lambda: _chat(_message('"x"', _null_fields(110_000)))),
        Case("logit_bias of 110,000 entries", _COMPLETION, lambda: _completion('"x"', _biases(110_000))),
        Case("prompt of 1,000,000 ids", _COMPLETION, lambda: _completion(_list("1", 1_000_000))),
        Case("prompt of 130,000 ids", _COMPLETION, lambda: _completion(_list("65", 130_000))),
        Case("prompt of 650,000 empty objects", _COMPLETION, lambda: _completion(_list("{}", 650_000))),
        Case("prompt of 80,000 floats, hard to round", _COMPLETION, lambda: _completion(_list(_HARD_NUMBER, 80_000))),
        Case("20 numbers of 100,000 digits", _COMPLETION, lambda: _completion(_list("7" * 100_000, 20))),
        Case("2 MiB of 'a', completion", _COMPLETION, lambda: _completion(_string("a"))),
        Case("2 MiB of 'a', chat", _CHAT, lambda: _chat(_message(_string("a")))),
        Case("2 MiB of 'a', /tokenize", _TOKENIZE, lambda: _text(_string("a"))),
        Case("2 MiB of words, completion", _COMPLETION, lambda: _completion(_english())),
        Case("2 MiB of words, chat", _CHAT, lambda: _chat(_message(_english()))),
        Case("2 MiB of words, /tokenize", _TOKENIZE, lambda: _text(_english())),
        Case("500 KiB of words, /tokenize", _TOKENIZE, lambda: _text(_english(500 * 1024))),
        Case(r"2 MiB of \n", _COMPLETION, lambda: _completion(_string("\\n"))),
        Case(r"2 MiB of \u00e9", _COMPLETION, lambda: _completion(_string("\\u00e9"))),
        Case("50,000 messages", _CHAT, lambda: _chat(_list(_message('"x"'), 50_000)[1:-1])),
        Case("6,400 messages", _CHAT, lambda: _chat(_list(_message('"x"'), 6400)[1:-1])),
        Case("60,000 parts", _CHAT, lambda: _chat(_message(_list('{"type":"text","text":"x"}', 60_000)))),
        Case("6,400 parts", _CHAT, lambda: _chat(_message(_list('{"type":"text","text":"x"}', 6400)))),
        Case("a field's name of 16 KiB", _COMPLETION, lambda: _unknown(16 * 1024)),
        Case("a field's name of 256 KiB", _COMPLETION, lambda: _unknown(256 * 1024)),
        Case("a field's name of 2 MiB", _COMPLETION, lambda: _unknown(large)),
        Case("/detokenize of 130,000 ids", _DETOKENIZE, lambda: _tokens(_list("65", 130_000))),
        Case("/detokenize of 600,000 ids", _DETOKENIZE, lambda: _tokens(_list("65", 600_000))),
        Case(f"{_SPECIAL} x 200,000", _CHAT, lambda: _chat(_message(_string(_SPECIAL, 200_000 * len(_SPECIAL))))),
        Case("n 64 with 20 logprobs, 32 tokens", _COMPLETION, _many_logprobs),
        *_small_shapes(),
    ]


def _many_logprobs() -> bytes:
    return b'{"prompt":"x","n":64,"logprobs":20,"max_tokens":32,"temperature":1,"ignore_eos":true}'


def _small_shapes() -> list[Case]:
    """The same below the size from which values are counted."""
    hard = _SMALL // (len(_HARD_NUMBER) + 1)
    return [
        Case("30 KB: null fields", _CHAT, lambda: _chat(_message('"x"', _null_fields(_SMALL // 15)))),
        Case("30 KB: logit_bias", _COMPLETION, lambda: _completion('"x"', _biases(_SMALL // 9))),
        Case("30 KB: ids", _COMPLETION, lambda: _completion(_list("1", _SMALL // 2))),
        Case("30 KB: empty objects", _COMPLETION, lambda: _completion(_list("{}", _SMALL // 3))),
        Case("30 KB: floats, hard to round", _COMPLETION, lambda: _completion(_list(_HARD_NUMBER, hard))),
        Case("30 KB: a number", _COMPLETION, lambda: _completion(f"[{'7' * _SMALL}]")),
        Case("30 KB: a fraction", _COMPLETION, lambda: _completion(f"[0.{'7' * _SMALL}]")),
        Case("30 KB: lists in lists", _COMPLETION, lambda: _completion(_nested(_SMALL))),
        Case("30 KB: messages, /tokenize", _TOKENIZE, lambda: _messages(_list(_message('""'), _SMALL // 31))),
        Case("30 KB: 'a', /tokenize", _TOKENIZE, lambda: _text(_string("a", _SMALL))),
        Case("30 KB: words, /tokenize", _TOKENIZE, lambda: _text(_english(_SMALL))),
        Case(r"30 KB: \u00e9, /tokenize", _TOKENIZE, lambda: _text(_string("\\u00e9", _SMALL))),
        Case(f"30 KB: {_SPECIAL}", _CHAT, lambda: _chat(_message(_string(_SPECIAL, _SMALL)))),
        Case("4 KB: words, /tokenize", _TOKENIZE, lambda: _text(_english(4000))),
        Case("4 KB: floats, hard to round", _COMPLETION, lambda: _completion(_list(_HARD_NUMBER, 4000 // 24))),
        Case("4 KB: null fields", _CHAT, lambda: _chat(_message('"x"', _null_fields(4000 // 15)))),
    ]
