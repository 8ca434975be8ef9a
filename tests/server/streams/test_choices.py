"""One choice: its text, which tokens are listed in which piece, and the prompt in front of it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from rbee.messages import FinishReason
from rbee.models import synthetic
from rbee.sampling_params import SamplingParams
from rbee.server.streams.choices import LogprobsChoice
from rbee.server.streams.records import TokenRecords
from rbee.server.text.detokenizer import detokenizers
from rbee.server.text.stop_strings import StopStrings
from rbee.server.text.token_text import Echo, TokenText
from rbee.server.text.tokenizer import TextCodec
from tests.batches import batch, record_batch, scored, scored_prompt
from tests.fakes import RecordingSequence
from tests.server.text.text_parts import SENTENCEPIECE, SYNTHETIC

CODEC = TextCodec(SYNTHETIC)


class Case:
    """A choice whose pieces are kept; a token is a byte, if nothing else is said."""

    def __init__(self, *, stops=(), stop_token_ids=(), min_tokens=0, prompt=(1,), echo=None, codec=CODEC, **options):
        self.pieces = []
        self.reasons = []
        sampling = SamplingParams(
            max_tokens=99,
            num_logprobs=options.pop("num_logprobs", None),
            num_prompt_logprobs=options.pop("num_prompt_logprobs", None),
        )
        self.shown = TokenText(
            codec.detokenizer() if echo is None else echo.detokenizer.fork(),
            StopStrings(stops) if stops else None,
            stop_token_ids,
            min_tokens=min_tokens,
            num_echoed=0 if echo is None else len(echo.text),
        )
        records = TokenRecords(sampling, list(prompt))
        logprobs = sampling.num_logprobs is not None or sampling.num_prompt_logprobs is not None
        self.choice = LogprobsChoice(
            0, self, self.shown, records, logprobs=logprobs, echo=echo, first_prompt_token=prompt[0], **options
        )
        self.sequence = RecordingSequence()
        self.choice.sequence = self.sequence  # type: ignore[assignment] # a fake

    def show(self, choice, pieces, reason):
        """Keep them."""
        assert choice is self.choice
        self.pieces += pieces
        self.reasons += [reason] if reason else []

    def fail(self, error):
        """None of these tests fails."""
        raise error

    def deliver(self, token_ids, reason=0):
        """Tokens; with logprobs that of a token is its number, made negative."""
        self.choice.deliver(record_batch([(token_id, -float(token_id)) for token_id in token_ids], reason))

    @property
    def text(self):
        """All that is shown."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def entries(self):
        """All that are listed, as (token, offset)."""
        return [(entry.token_id, entry.offset) for piece in self.pieces for entry in piece.entries]

    def listed(self):
        """For each piece its text and the tokens that are listed with it."""
        return [(piece.text, [entry.token_id for entry in piece.entries]) for piece in self.pieces]


def ids(text):
    """The tokens of a text in the synthetic vocabulary."""
    return list(text.encode())


def test_entry_is_in_the_piece_that_shows_its_token():
    """The tokens of one character come together, with the piece that shows it."""
    case = Case(num_logprobs=0)
    case.deliver(ids("aé"))
    case.deliver(ids("b"), FinishReason.LENGTH)
    assert case.listed() == [("a", ids("a")), ("é", ids("é")), ("b", ids("b"))]
    assert case.entries == [(97, 0), (0xC3, 1), (0xA9, 1), (98, 2)]


def test_entries_of_withheld_text_wait_for_it():
    """A token that might begin a stop string is listed when it is shown, and not before, if something else is."""
    case = Case(num_logprobs=0, stops=["ab", "bcd"])
    case.deliver(ids("a"))
    assert case.pieces == []
    case.deliver(ids("xb"))
    case.deliver(ids("cx"))
    assert case.listed() == [("ax", ids("ax")), ("bcx", ids("bcx"))]


def test_token_is_listed_once_what_came_before_it_is_certain():
    """A piece may show the text of an earlier token while its own is still withheld: its entry waits."""
    case = Case(num_logprobs=0, stops=["ab", "cd"])
    case.deliver(ids("ac"))
    assert case.listed() == [("a", ids("a"))]
    case.deliver(ids("d"))
    assert case.listed() == [("a", ids("a")), ("", [])]


def test_stop_token_is_listed():
    """As vLLM has it: it was generated, although it shows nothing."""
    case = Case(num_logprobs=0, stop_token_ids=[ord(".")])
    case.deliver(ids("a."), FinishReason.STOP)
    assert case.listed() == [("a", ids("a")), ("", ids("."))]


def test_special_tokens_are_listed():
    """They show no text: they come with the next piece, at the latest with the last one."""
    tokenizer = synthetic.tokenizer()
    tokenizer.add_special_tokens([AddedToken("<|s|>", special=True)])
    case = Case(num_logprobs=0, codec=TextCodec(tokenizer))
    case.deliver([256, 97, 256])
    case.deliver([256], FinishReason.LENGTH)
    assert case.listed() == [("a", [256, 97]), ("", [256, 256])]
    assert case.entries == [(256, 0), (97, 0), (256, 1), (256, 1)]


def test_stop_string_takes_the_tokens_behind_the_end_with_it():
    """The token that shows a part of itself stays; those that begin with the stop string, or behind it, do not."""
    tokenizer = synthetic.tokenizer()
    tokenizer.add_tokens([AddedToken("xE", special=False)])
    case = Case(num_logprobs=0, stops=["END"], codec=TextCodec(tokenizer))
    case.deliver([97, 256, ord("N"), ord("D"), ord("z")])
    assert (case.text, case.entries) == ("ax", [(97, 0), (256, 1)])
    assert case.sequence.calls == ["cancel: stop"]
    assert case.reasons == [FinishReason.STOP]
    assert case.choice.num_tokens == 4, "what came behind the stop string was never taken"


TOKENS = st.lists(st.sampled_from(ids("ab🐝é")), max_size=12)


@given(
    token_ids=TOKENS,
    cuts=st.lists(st.integers(0, 12), max_size=4),
    stops=st.lists(st.text("abé", min_size=1, max_size=3), max_size=2),
    reason=st.sampled_from([FinishReason.LENGTH, FinishReason.STOP, FinishReason.ERROR]),
    together=st.booleans(),
)
def test_each_token_is_listed_once_in_order(token_ids, cuts, stops, reason, together):
    """None is lost or repeated however the batches are cut; its offset is where its text begins.

    After a stop string those that begin before it are there, and no others.
    """
    case = Case(num_logprobs=0, stops=stops)
    ends = sorted({0, len(token_ids), *(cut for cut in cuts if cut < len(token_ids))})
    for start, end in itertools.pairwise(ends):
        if not case.reasons:
            case.deliver(token_ids[start:end], reason if together and end == len(token_ids) else 0)
    if not case.reasons:
        case.deliver([], reason)
    whole = bytes(token_ids).decode(errors="replace")
    assert whole.startswith(case.text)
    assert case.shown.num_shown == len(case.text)
    detokenizer, offsets, decoded = CODEC.detokenizer(), [], 0
    for token_id in token_ids:
        offsets.append((token_id, decoded))
        decoded += len(detokenizer.push(token_id))
    stopped = case.sequence.calls == ["cancel: stop"] or len(case.text) < len(whole)
    assert case.entries == [entry for entry in offsets if entry[1] < len(case.text) or not stopped]
    shown = 0
    for piece in case.pieces[:-1]:
        assert all(shown <= entry.offset < shown + len(piece.text) for entry in piece.entries)
        shown += len(piece.text)


def test_last_piece_joins_the_last_tokens():
    """What the end adds belongs to the last token's piece, if that shows text; otherwise it stands alone."""
    case, other = Case(), Case()
    case.deliver(ids("ab"), FinishReason.LENGTH)
    assert [piece.text for piece in case.pieces] == ["a", "b"]
    other.deliver(ids("a"))
    other.deliver([], FinishReason.LENGTH)
    assert [(piece.text, piece.committed_ns) for piece in other.pieces] == [("a", 1), ("", None)]


@pytest.mark.parametrize(("min_tokens", "text"), [(0, "x"), (3, "x"), (4, "xENDy"), (7, "xENDy"), (8, "xENDyENDz")])
def test_stop_string_that_comes_too_early_is_text(min_tokens, text):
    """Which token completes it counts: the first one behind min_tokens may, as in vLLM."""
    case = Case(stops=["END", "ND"], min_tokens=min_tokens)
    case.deliver(ids("xENDyENDz"), FinishReason.LENGTH)
    assert case.text == text


def test_stop_string_may_begin_early():
    """One that is complete behind min_tokens ends the text where it began, although that is before."""
    case = Case(stops=["END"], min_tokens=3)
    case.deliver(ids("xEND"))
    assert case.text == "x"
    assert case.reasons == [FinishReason.STOP]


def test_early_stop_string_may_begin_a_later_one():
    """What an ignored one ends with counts as a beginning still."""
    case = Case(stops=["aa"], min_tokens=2)
    case.deliver(ids("aaa"))
    assert (case.text, case.reasons) == ("a", [FinishReason.STOP])


def test_echo_comes_first():
    """The prompt is a piece of its own, with the first token and not before; stop strings begin after it."""
    echo = Echo.of(ids("aE"), None, CODEC)
    case = Case(prompt=ids("aE"), echo=echo, stops=["END"])
    case.deliver([])
    assert case.pieces == []
    case.deliver(ids("NDx"))
    case.deliver(ids("y"), FinishReason.LENGTH)
    assert [piece.text for piece in case.pieces] == ["aE", "N", "D", "x", "y"]
    assert [piece.num_tokens for piece in case.pieces] == [0, 1, 2, 3, 4]


def test_echo_with_logprobs():
    """The prompt's tokens are listed with it, the first one without a logprob; offsets count over the whole."""
    case = Case(prompt=ids("aé"), echo=Echo.of(ids("aé"), None, CODEC), num_logprobs=1, num_prompt_logprobs=1)
    case.choice.deliver(record_batch(scored_prompt(4, -1.0, (5, -0.5))))
    assert case.pieces == []
    published = [*scored_prompt(200, -2.0, (6, -0.25)), *scored(98, -3.0, (7, -0.125))]
    case.choice.deliver(record_batch(published, FinishReason.LENGTH))
    prompt, output = case.pieces
    assert (prompt.text, output.text) == ("aé", "b")
    assert prompt.entries == [
        (97, None, [], 0, None),
        (0xC3, -1.0, [(5, -0.5)], 1, 4),
        (0xA9, -2.0, [(6, -0.25)], 1, 200),
    ]
    assert output.entries == [(98, -3.0, [(7, -0.125)], 2, None)]


def test_prompt_alone():
    """With max_tokens 0 the one token that the engine makes is neither shown, listed nor counted."""
    case = Case(
        prompt=ids("ab"),
        echo=Echo.of(ids("ab"), None, CODEC),
        show_output=False,
        num_logprobs=0,
        num_prompt_logprobs=0,
        stop_token_ids=[99],
    )
    case.choice.deliver(record_batch([*scored_prompt(1, -1.0), *scored(99, -2.0)], FinishReason.STOP))
    assert case.listed() == [("ab", [97, 98])]
    assert case.reasons == [FinishReason.LENGTH]
    assert case.choice.num_tokens == 0


def test_prompt_without_text():
    """There is nothing to show of it alone: its tokens are listed with the first text."""
    tokenizer = synthetic.tokenizer()
    tokenizer.add_special_tokens([AddedToken("<|s|>", special=True)])
    codec = TextCodec(tokenizer)
    echo = Echo.of([256], "", codec)
    case = Case(prompt=[256], echo=echo, codec=codec, num_logprobs=0, num_prompt_logprobs=0)
    case.deliver(ids("a"))
    assert case.listed() == [("a", [256, 97])]


def test_error_before_the_first_token_echoes_nothing():
    """There is no answer, so there is nothing that the prompt could stand in front of."""
    case = Case(echo=Echo.of(ids("ab"), None, CODEC))
    case.deliver([], FinishReason.ERROR)
    assert case.text == ""


def test_character_of_prompt_and_completion():
    """A prompt of token ids may end inside a character, which the completion completes."""
    bee = ids("🐝")
    case = Case(prompt=[97, *bee[:2]], echo=Echo.of([97, *bee[:2]], None, CODEC))
    case.deliver(bee[2:], FinishReason.LENGTH)
    assert [piece.text for piece in case.pieces] == ["a", "🐝"]


def test_space_between_prompt_and_completion():
    """The first word of a text has no space before it; the first word of a completion that follows a prompt has."""
    codec = TextCodec(SENTENCEPIECE[True])
    hello = codec.token_id("▁Hello")
    assert hello is not None
    case, alone = Case(prompt=[hello], echo=Echo.of([hello], None, codec), codec=codec), Case(codec=codec)
    for each in (case, alone):
        each.deliver([hello], FinishReason.LENGTH)
    assert (case.text, alone.text) == ("Hello Hello", "Hello")


def test_echo_finds_the_tokens_of_a_text():
    """A special token that the tokenizer put there has no text; one that the client wrote, or sent, has its name."""
    tokenizer = synthetic.tokenizer()
    tokenizer.add_special_tokens([AddedToken("<|s|>", special=True)])
    codec = TextCodec(tokenizer)
    echo = Echo.of([256, 97, 256, *ids("é"), 98], "a<|s|>éb", codec)
    assert echo.text == "a<|s|>éb"
    assert echo.offsets == [0, 0, 1, 6, 6, 7]
    given = Echo.of([256, 97, 256, 98], None, codec)
    assert (given.text, given.offsets) == ("<|s|>a<|s|>b", [0, 5, 6, 11])


def test_cached_tokens_are_known_when_the_engine_says_so():
    """That is with the finish; 0 is an answer too."""
    case = Case()
    case.choice.deliver(batch([97]))
    assert case.choice.cached_tokens is None
    case.choice.deliver(batch([], FinishReason.LENGTH))
    assert case.choice.cached_tokens == 0


def test_detokenizers_are_the_codecs():
    """A codec says of a token what its detokenizers do."""
    assert CODEC.token_bytes(97) == detokenizers(SYNTHETIC).token_bytes(97) == b"a"
