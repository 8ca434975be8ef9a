"""The output of a choice as its parser reads it: what its pieces are, and which token belongs to which."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.messages import FinishReason
from rbee.server.streams.generation import OutputPlan
from rbee.server.streams.pieces import Part
from rbee.server.text.output import OutputKind, Span
from tests.batches import record_batch
from tests.server.streams.parsed_output_parts import Case
from tests.server.streams.tagged_output import PLAN, SPECIAL, TaggedFormat, cuts

TEXT, REASONING = OutputKind.TEXT, OutputKind.REASONING
NAME, ARGUMENTS = OutputKind.TOOL_NAME, OutputKind.TOOL_ARGUMENTS

WHOLE = 'A<think>B C</think>D<tool_call>add{"a": {"b": "<"}}</tool_call><tool_call>now{}</tool_call>E'
PARTS = [
    Part(TEXT, "A"),
    Part(REASONING, "B C"),
    Part(TEXT, "D"),
    Part(ARGUMENTS, '{"a": {"b": "<"}}', "add"),
    Part(ARGUMENTS, "{}", "now"),
    Part(TEXT, "E"),
]


@pytest.mark.parametrize("each", [False, True])
def test_parts_are_the_same_wherever_tokens_end(each):
    """And the pieces make them up: each says which part it is of, and the first of one which part has ended."""
    for words in cuts(WHOLE):
        case = Case(words).deliver(each=each)
        assert case.choice.parts == PARTS, words
        joined: dict[int, tuple[str, str]] = {}
        for piece in case.pieces:
            begins = piece.part not in joined
            assert piece.ended == (PARTS[piece.part - 1] if begins and piece.part else None), words
            assert piece.num_calls == [0, 0, 0, 1, 2, 2][piece.part], words
            name, text = joined.get(piece.part, ("", ""))
            joined[piece.part] = (name + piece.text, text) if piece.kind is NAME else (name, text + piece.text)
        assert list(joined.values()) == [(part.name, part.text) for part in PARTS], words


def test_pieces_of_one_token():
    """Several, in order, each alone what a dialect needs; what the end adds to the last kind joins its piece."""
    case = Case(["a<think>b</think>c<tool_call>f{}", "</tool_call>d</", "<"]).deliver()
    assert case.shown() == [
        (TEXT, "a", 0), (REASONING, "b", 0), (TEXT, "c", 0), (NAME, "f", 1), (ARGUMENTS, "{}", 1), (TEXT, "d</", 1),
        (TEXT, "<", 1),
    ]  # fmt: skip
    assert [piece.num_tokens for piece in case.pieces] == [1, 1, 1, 1, 1, 2, 3]
    joined = Case(["a", "b<th"]).deliver()
    assert joined.shown() == [(TEXT, "a", 0), (TEXT, "b<th", 0)]
    assert joined.reasons == [FinishReason.STOP]


class TellsCalls(TaggedFormat):
    """A format whose parser finds two calls without arguments in every token."""

    def parser(self, *, tools, reasoning_open, keep_tags=False):
        """Itself: it has no state."""
        assert (tools, reasoning_open, keep_tags) == ((), False, False)
        return self

    def push(self, text):
        """The names of both."""
        return [Span(NAME, text, 0), Span(NAME, text, 1)]

    def finish(self):
        """There is no more."""
        return []


def test_calls_of_one_token_stay_apart():
    """A name never joins another one."""
    case = Case(["f"], plan=OutputPlan(format=TellsCalls())).deliver()
    assert case.shown() == [(NAME, "f", 1), (NAME, "f", 2)]
    assert case.choice.parts == [Part(ARGUMENTS, "", "f")] * 2


def test_last_piece_may_be_empty():
    """A tag at the end shows nothing: the last piece is text without a letter, which knows the calls before it."""
    case = Case(["<tool_call>", "f{", "}", "</tool_call>", SPECIAL]).deliver(each=True)
    assert case.shown() == [(NAME, "f", 1), (ARGUMENTS, "{", 1), (ARGUMENTS, "}", 1), (TEXT, "", 1)]
    assert case.choice.parts == [Part(ARGUMENTS, "{}", "f")]
    assert case.pieces[-1].ended is None


def test_output_that_shows_nothing():
    """It has no part, and one empty piece."""
    case = Case(["<think>", "</think>"]).deliver()
    assert (case.shown(), case.choice.parts) == ([(TEXT, "", 0)], [])


def test_what_is_withheld_comes_with_an_error_too():
    """Nothing that the model wrote is lost."""
    case = Case(["a", "<thi"]).deliver(FinishReason.ERROR)
    assert [piece.text for piece in case.pieces] == ["a", "<thi"]


def test_stop_string_ends_every_kind():
    """It is looked for in what the model writes; the parser never sees it, nor what comes behind it."""
    case = Case(["<think>", "a", "EN", "D</think>", "b"], stops=["END"]).deliver(0)
    assert case.shown() == [(REASONING, "a", 0), (TEXT, "", 0)]
    assert (case.reasons, case.sequence.calls) == ([FinishReason.STOP], ["cancel: stop"])


def test_reasoning_may_be_open_from_the_start():
    """The prompt says so, in which the template has written the tag."""
    case = Case(["a", "</think>b"], plan=dataclasses.replace(PLAN, reasoning_open=True)).deliver()
    assert case.choice.parts == [Part(REASONING, "a"), Part(TEXT, "b")]


def test_text_is_kept_for_those_who_want_it():
    """Else the parts say of which kind they are."""
    assert Case(["<think>a</think>b"], keep_text=False).deliver().choice.parts == [Part(REASONING, ""), Part(TEXT, "")]


def test_reasoning_tokens():
    """Those whose pieces are reasoning: the opening tag's with them, the closing one's with what follows."""
    case = Case(["<think>", "a", "b", "</think>", "c", "d<think>", "e"]).deliver(FinishReason.LENGTH)
    assert case.choice.reasoning_tokens == 4  # <think> a b, e
    assert case.choice.num_tokens == 7
    unclosed = Case(["<think>", "a", "<"]).deliver(FinishReason.LENGTH)
    assert unclosed.choice.reasoning_tokens == 3


def test_entries_of_tags_come_with_the_next_piece():
    """Every token is listed once: that of a tag, and one whose text is withheld, with what comes next."""
    words = ["<think>", "a", "</think>", "<", "b", "<tool_call>", "f{", "}", "</tool_call>"]
    case = Case(words, logprobs=True).deliver()
    assert case.listed() == [
        ("a", ["<think>", "a"]),
        ("<b", ["</think>", "<", "b"]),
        ("f", ["<tool_call>", "f{"]),
        ("{", []),
        ("}", ["}"]),
        ("", ["</tool_call>"]),
    ]


def test_stop_token_is_listed():
    """At the end, as without a parser."""
    case = Case(["a", "."], logprobs=True, stop_token_ids=[1]).deliver()
    assert case.listed() == [("a", ["a"]), ("", ["."])]


def test_choice_without_a_parser_has_no_parts():
    """It counts no reasoning either, and nobody says that there was none."""
    case = Case(["a"], plan=None).deliver()
    assert case.shown() == [(TEXT, "a", 0)]
    assert (case.choice.parts, case.choice.reasoning_tokens) == ((), None)


FRAGMENTS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "f", "{", "}", "<", "<th", "a b", SPECIAL]


@given(
    words=st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=12),
    batches=st.lists(st.integers(0, 12), max_size=3),
    stops=st.lists(st.sampled_from(["fa", "}<", "k>a"]), max_size=2),
)
def test_no_token_is_lost_or_repeated(words, batches, stops):
    """Whatever the model writes and however it arrives: entries, parts and pieces say the same."""
    case, at_once = (Case(words, logprobs=True, stops=stops) for _ in range(2))
    at_once.deliver()
    ends = sorted({0, len(words), *(cut for cut in batches if cut < len(words))})
    for start, end in itertools.pairwise(ends):
        if not case.reasons:
            last = FinishReason.STOP if end == len(words) else 0
            case.choice.deliver(record_batch([(number, -1.0) for number in range(start, end)], last))
    assert case.choice.parts == at_once.choice.parts
    assert case.choice.reasoning_tokens == at_once.choice.reasoning_tokens
    assert case.choice.num_tokens >= (case.choice.reasoning_tokens or 0)
    assert case.listed() == at_once.listed()
    listed = [entry.token_id for piece in case.pieces for entry in piece.entries]
    assert listed == list(range(len(listed)))
    assert len(listed) == len(words) or stops
    told = "".join(part.name + part.text for part in case.choice.parts)
    assert "".join(piece.text for piece in case.pieces) == told
    assert all(piece.text for piece in case.pieces[:-1])
