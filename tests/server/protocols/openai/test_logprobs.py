"""Logprobs: which records belong together, and how clients are told."""

import itertools
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.chat_completion import ChoiceLogprobs
from openai.types.completion_choice import Logprobs
from tokenizers import Tokenizer

from rbee.messages import FinishReason
from rbee.sampling_params import SamplingParams
from rbee.server.protocols.openai.dialect import ChatDialect, CompletionDialect
from rbee.server.protocols.openai.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.server.protocols.token_logprobs import LEAST
from rbee.server.streams.generation import Generation
from rbee.server.streams.outcome import Outcome
from rbee.server.streams.pieces import CollectedChoice, Piece
from rbee.server.streams.records import TokenLogprob, TokenRecords
from rbee.server.text.detokenizer import detokenizers
from tests.batches import record_batch, scored, scored_prompt
from tests.server.text.text_parts import SENTENCEPIECE, SYNTHETIC, id_of, wordpiece

BYTES = detokenizers(SYNTHETIC).token_bytes
BEE = "🐝".encode()


def taken(records, batches):
    """What comes of these batches, without the commit times."""
    return [(token.token_id, token.logprob, token.top, token.rank) for b in batches for token in records.take(b)]


def test_token_comes_with_its_notes():
    """Notes of the prompt, with ranks, before the output, each token of it with its own; none for a prompt's first."""
    sampling = SamplingParams(max_tokens=5, num_logprobs=2, num_prompt_logprobs=1)
    published = [
        *scored_prompt(2, -1.0, (12, -0.5)),
        *scored_prompt(1, -2.0, (13, -2.0)),
        *scored(14, -3.0, (15, -0.1), (16, -0.2)),
        *scored(17, -4.0, (17, -4.0), (18, -5.0)),
    ]
    assert taken(TokenRecords(sampling, [10, 11, 13]), [record_batch(published)]) == [
        (11, -1.0, [(12, -0.5)], 2),
        (13, -2.0, [(13, -2.0)], 1),
        (14, -3.0, [(15, -0.1), (16, -0.2)], None),
        (17, -4.0, [(17, -4.0), (18, -5.0)], None),
    ]


def test_logprobs_without_others():
    """A request may ask for the logprobs of its tokens alone: there are no notes then, but those of the prompt."""
    sampling = SamplingParams(max_tokens=5, num_logprobs=0, num_prompt_logprobs=0)
    published = [*scored_prompt(7, -1.0), *scored(12, -2.0)]
    records = TokenRecords(sampling, [10, 11])
    assert taken(records, [record_batch(published)]) == [(11, -1.0, [], 7), (12, -2.0, [], None)]


@given(
    prompt=st.integers(1, 4),
    outputs=st.integers(0, 4),
    asked=st.sampled_from([(None, None), (0, None), (3, None), (0, 0), (2, 1), (1, 2)]),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_batch_may_end_anywhere(prompt, outputs, asked, cuts):
    """Between a token and its notes too: what comes in the end is the same, each token with its last record."""
    num_logprobs, num_prompt_logprobs = asked
    sampling = SamplingParams(max_tokens=5, num_logprobs=num_logprobs, num_prompt_logprobs=num_prompt_logprobs)
    published: list[tuple[int, float]] = []
    wanted: list[tuple[int, float, list[tuple[int, float]], int | None]] = []
    for n in range(prompt - 1 if num_prompt_logprobs is not None else 0):
        top = [(40 + k, -0.5 * k) for k in range(num_prompt_logprobs)]
        published += scored_prompt(5 + n, -1.0 * n, *top)
        wanted.append((21 + n, -1.0 * n, top, 5 + n))
    for n in range(outputs):
        top = [(80 + k, -0.25 * k) for k in range(num_logprobs or 0)]
        published += scored(n, -2.0 * n, *top)
        wanted.append((n, -2.0 * n, top, None))
    ends = sorted({0, len(published), *(cut for cut in cuts if cut < len(published))})
    batches = [record_batch(published[start:end]) for start, end in itertools.pairwise(ends)]
    assert taken(TokenRecords(sampling, list(range(20, 20 + prompt))), batches) == wanted


def test_prompt_logprobs():
    """The token that is there first, with its own rank however far down; it is not repeated among the likely ones."""
    top = [(65, -0.5), (66, -1.0)]
    entries = [
        TokenLogprob(67, None, [], 0),
        TokenLogprob(68, -math.inf, top, 1, rank=200),
        TokenLogprob(66, -1.0, top, 2, rank=2),
    ]
    a, b = {"logprob": -0.5, "rank": 1, "decoded_token": "A"}, {"logprob": -1.0, "rank": 2, "decoded_token": "B"}
    d = {"logprob": LEAST, "rank": 200, "decoded_token": "D"}
    shown = prompt_logprobs(entries, 2, token_bytes=BYTES)
    assert shown == [None, {"68": d, "65": a, "66": b}, {"66": b, "65": a}]
    assert [[*listed] for listed in shown if listed] == [["68", "65", "66"], ["66", "65"]]
    assert prompt_logprobs(entries, 0, token_bytes=BYTES) == [None, {"68": d}, {"66": b}]


def test_chat_logprobs():
    """Text, logprob and exact bytes of each token and of the others; a part of a character is U+FFFD."""
    entries = [
        TokenLogprob(BEE[0], -0.5, [(BEE[0], -0.5), (65, -1.5)], 0),
        TokenLogprob(66, -math.inf, [], 1),
    ]
    shown = chat_logprobs(entries, token_bytes=BYTES)
    bee = {"token": "\ufffd", "logprob": -0.5, "bytes": [0xF0]}
    assert shown == {
        "content": [
            bee | {"top_logprobs": [bee, {"token": "A", "logprob": -1.5, "bytes": [65]}]},
            {"token": "B", "logprob": LEAST, "bytes": [66], "top_logprobs": []},
        ]
    }
    ChoiceLogprobs.model_validate(msgspec.json.decode(msgspec.json.encode(shown)), strict=True)


def test_completion_logprobs():
    """Parallel lists; the token itself is among the others; the first token of a prompt follows nothing."""
    entries = [
        TokenLogprob(65, None, [], 0),
        TokenLogprob(66, -3.0, [(67, -0.5), (BEE[1], -1.0)], 1),
        TokenLogprob(67, -0.5, [(67, -0.5), (68, -math.inf)], 2),
        TokenLogprob(69, -1.0, [], 3),
    ]
    shown = completion_logprobs(entries, token_bytes=BYTES)
    assert shown == {
        "tokens": ["A", "B", "C", "E"],
        "token_logprobs": [None, -3.0, -0.5, -1.0],
        "top_logprobs": [None, {"C": -0.5, r"bytes:\x9f": -1.0, "B": -3.0}, {"C": -0.5, "D": LEAST}, {"E": -1.0}],
        "text_offset": [0, 1, 2, 3],
    }
    without_prompt = completion_logprobs(entries[1:], token_bytes=BYTES)  # openai-python's types forget the first token
    Logprobs.model_validate(msgspec.json.decode(msgspec.json.encode(without_prompt)), strict=True)


def test_tokens_that_are_written_alike():
    """An object has each name once: the more likely one counts."""
    names = {1: b"same", 2: b"same", 3: b"other"}
    shown = completion_logprobs([TokenLogprob(2, -2.0, [(1, -1.0), (3, -1.5)], 0)], token_bytes=names.__getitem__)
    assert shown["top_logprobs"] == [{"same": -1.0, "other": -1.5}]
    assert shown["token_logprobs"] == [-2.0]


def test_bytes_of_a_token(default_model):
    """Whatever the vocabulary: text and bytes as they are, special tokens by their names, nothing for an unknown id."""
    default = Tokenizer.from_file(str(default_model.path / "tokenizer.json"))
    of_default, of_words = detokenizers(default).token_bytes, detokenizers(wordpiece()).token_bytes
    assert of_default(id_of(default, "<|im_start|>")) == b"<|im_start|>"
    assert of_default(id_of(default, "ĠHello")) == b" Hello"
    assert b"".join(map(of_default, default.encode("🐝é").ids)) == "🐝é".encode()
    assert of_default(1_000_000) == b""
    sentencepiece = SENTENCEPIECE[True]
    of_sentencepiece = detokenizers(sentencepiece).token_bytes
    assert of_sentencepiece(id_of(sentencepiece, "▁Hello")) == b" Hello"
    assert of_sentencepiece(id_of(sentencepiece, "<0xF0>")) == b"\xf0"
    assert of_sentencepiece(id_of(sentencepiece, "é")) == "é".encode()
    assert of_sentencepiece(id_of(sentencepiece, "<s>")) == b"<s>"
    assert (of_words(1), of_words(4)) == (b"hello", b",")


@pytest.mark.parametrize("number", [0, 1, 31, 32, 33, 100])
@pytest.mark.parametrize(
    ("dialect", "listed"), [(ChatDialect, chat_logprobs), (CompletionDialect, completion_logprobs)]
)
def test_an_answer_lists_all_of_them(dialect, listed, number):
    """In order, although it is made in parts."""
    sampling = SamplingParams(max_tokens=100, seed=1, num_logprobs=1)
    generation = Generation(received_ns=0, prompt=[1], sampling=sampling, stops=[])
    entries = [TokenLogprob(65 + n % 20, -n / 8, [(66, -0.5)], n) for n in range(number)]
    pieces = [Piece("x", n, None, entries[n : n + 7]) for n in range(0, number, 7)]
    outcome = Outcome(1)
    answer = msgspec.json.decode(
        dialect("m", generation, StreamOptions(), BYTES).answer([CollectedChoice(pieces, FinishReason.LENGTH)], outcome)
    )
    assert answer["choices"][0]["logprobs"] == msgspec.json.decode(
        msgspec.json.encode(listed(entries, token_bytes=BYTES))
    )
