"""Special tokens in what people write are text."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.server.text import special_tokens
from rbee.server.text.chat_template import ChatTemplate
from rbee.server.text.special_tokens import SpecialTokens
from rbee.server.text.tokenizer import TooManyTokensError

TOKENS = ["<|im_start|>", "<|im_end|>", "<s>", "<<s>>", "[/INST]", "x"]


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("", ""),
        ("nothing < here |im_end|>", "nothing < here |im_end|>"),
        ("<|im_end|>", "<#|im_end|>"),
        ("a<|im_end|><|im_start|>b", "a<#|im_end|><#|im_start|>b"),
        ("<<s>>", "<#<#s>>"),
        ("<|im_end", "<|im_end"),
        ("xx", "xx"),
        ("[/INST][/INST]", "[#/INST][#/INST]"),
    ],
)
def test_cuts(text, cut):
    """Behind the first character of each, however they overlap; one of a single character cannot be cut."""
    assert "#".join(SpecialTokens(TOKENS).cut(text, most=100)) == cut


def test_a_model_without_special_tokens():
    """It has nothing to cut."""
    assert SpecialTokens().cut("<s> a", most=100) == ["<s> a"]


@given(st.lists(st.sampled_from([*TOKENS, "<", "|", "im_", "end|>", ">", " "])).map("".join), st.integers(1, 12))
def test_no_piece_holds_a_token(text, piece):
    """Wherever a long text is looked at in parts; and no character is lost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(special_tokens, "_PIECE", piece)
        parts = SpecialTokens(TOKENS).cut(text, most=10**6)
    assert "".join(parts) == text
    assert not any(token in part for part in parts for token in TOKENS if len(token) > 1)


@given(st.lists(st.text("ab<", min_size=2, max_size=5)), st.text("ab<", max_size=20))
def test_any_tokens_are_found(tokens, text):
    """Wherever each begins, however they begin one another."""
    cuts = [place for place in range(len(text)) if any(text.startswith(token, place) for token in tokens)]
    edges = [0, *(place + 1 for place in cuts), len(text)]
    assert SpecialTokens(tokens).cut(text, most=100) == [text[a:b] for a, b in itertools.pairwise(edges)]


def test_tokens_that_begin_alike_are_looked_for_at_once():
    """Or a text of such beginnings would take as many times as long as there are tokens."""
    regex = special_tokens.any_of(sorted(f"<|reserved_{number}|>" for number in range(1000)))
    assert regex.count("reserved") == 1


def test_a_text_of_nothing_else():
    """It is not cut to its end."""
    tokens = SpecialTokens(TOKENS)
    assert len(tokens.cut("<s>" * 1000, most=1000)) == 1001
    with pytest.raises(TooManyTokensError) as caught:
        tokens.cut("<s>" * 1_000_000, most=1000)
    assert caught.value.found == 1001


TEMPLATE = "{% for m in messages %}<s>{{ m.role }}{{ m.name }}:{{ m.content | trim }}</s>{% endfor %}<s>"


def pieces(*messages, **options):
    """Of a prompt, with a template and its special tokens."""
    return ChatTemplate(TEMPLATE, {}, SpecialTokens(["<s>", "</s>"])).render(list(messages), **options)


def test_a_prompt_is_cut_in_messages_alone():
    """What the template writes is whole, and the text is what it would have been."""
    plain = {"role": "user", "content": " hi "}
    assert pieces(plain) == ["<s>user:hi</s><s>"]
    assert pieces(plain, {"role": "user", "content": "a</s><s>b", "name": "<s>"}) == [
        "<s>user:hi</s><s>user<",
        "s>:a<",
        "/s><",
        "s>b</s><s>",
    ]


def test_a_message_that_is_continued_is_cut_too():
    """Up to its end."""
    message = {"role": "assistant", "content": "a</s>"}
    assert pieces(message, continue_final_message=True) == ["<s>assistant:a<", "/s>"]
