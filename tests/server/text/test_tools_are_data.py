"""No special token of a model can be written into a prompt by a tool, a call, a result, reasoning or a variable."""

from __future__ import annotations

import functools
import json
from collections import Counter
from typing import Any

import pytest

from rbee.server.errors import Refusal
from rbee.server.protocols.fields import FieldReader
from rbee.server.protocols.openai.reader import read_chat
from rbee.server.text.chat_template import ChatTemplate
from rbee.server.text.output.tools import Tool
from rbee.server.text.special_tokens import SpecialTokens
from rbee.server.text.tokenizer import TextCodec, TooManyTokensError
from tests.server.text.chat_forms_parts import CHAT_FORMS, ChatForm
from tests.server.text.tool_forms_parts import TOOL_FORMS, USER, ToolForm, call

FORMS: dict[str, ChatForm | ToolForm] = {
    **TOOL_FORMS,
    **{name: CHAT_FORMS[name] for name in ("im_start", "header", "full width")},
}


def chat(words: dict[str, str]) -> dict[str, Any]:
    """A conversation in which each place has one of these words, "ab" if there is none for it."""

    def at(place: str) -> str:
        return words.get(place, "ab")

    schema = {
        "type": "object",
        "properties": {at("a parameter's name"): {"type": "string", "description": at("its description")}},
        "enum": [[at("a value in lists")]],
        "title": at("a title"),
    }
    tool = {"name": "f", "description": at("a description"), "parameters": schema}
    arguments = {at("an argument's name"): {"x": [at("its value")]}, "y": "z"}
    turn = {
        "role": "assistant",
        "content": None,
        "reasoning_content": at("reasoning"),
        "tool_calls": [call(at("an id"), "f", json.dumps(arguments, ensure_ascii=False))],
    }
    result = {"role": "tool", "tool_call_id": at("an id"), "content": at("a result")}
    return {"messages": [USER, turn, result], "tools": [{"type": "function", "function": tool}]}


PLACES = [
    *("a parameter's name", "its description", "a value in lists", "a title", "a description"),
    *("an argument's name", "its value", "reasoning", "an id", "a result"),
]


@functools.cache
def codec_and_template(name: str) -> tuple[TextCodec, ChatTemplate]:
    """A form as a server has it."""
    form = FORMS[name]
    codec = TextCodec(form.tokenizer())
    return codec, ChatTemplate(form.source, form.names, SpecialTokens(codec.special_tokens))


def encoded(name: str, conversation: dict[str, Any]) -> tuple[list[int], str]:
    """The token ids of a prompt, and its text."""
    codec, template = codec_and_template(name)
    read = read_chat(conversation, FieldReader(lenient=False), template)
    pieces = template.render(read.messages, tools=read.tool_use.offered)
    return codec.encode_pieces(pieces), "".join(pieces)


def control_tokens(name: str, ids: list[int]) -> Counter[int]:
    """How often each special token is there."""
    codec, _ = codec_and_template(name)
    special = {codec.token_id(token) for token in codec.special_tokens}
    return Counter(token_id for token_id in ids if token_id in special)


@pytest.mark.parametrize("name", FORMS)
def test_no_place_can_write_a_special_token(name):
    """The control tokens are those that the template writes, whether it shows the place or not.

    Alone, in a word and nested.
    """
    plain, _ = encoded(name, chat({}))
    own = control_tokens(name, plain)
    assert own
    for token in dict.fromkeys(FORMS[name].tokens):
        half = len(token) // 2
        for place in PLACES:
            for word in (f"a{token}b", token[:half] + token + token[half:]):
                ids, _ = encoded(name, chat({place: word}))
                assert control_tokens(name, ids) == own, (token, place)


@pytest.mark.parametrize("name", FORMS)
def test_the_model_reads_what_was_written(name):
    """Nothing of the marks is left in a prompt, and the words of all places that it shows are whole."""
    plain = encoded(name, chat({place: f"[{number}]" for number, place in enumerate(PLACES)}))[1]
    token = FORMS[name].tokens[-1]
    marked = encoded(name, chat({place: f"[{token}{number}]" for number, place in enumerate(PLACES)}))[1]
    for number in range(len(PLACES)):
        marked = marked.replace(f"[{token}{number}]", f"[{number}]")
    if name != "mistral_nemo":  # its ids are made of the client's
        assert marked == plain


def test_variables_are_data_too():
    """A client writes these as it writes a message."""
    special = SpecialTokens(["<|end|>"])
    template = ChatTemplate("<|end|>{{ reasoning_effort }}{{ more.x[0] }}", {}, special)
    pieces = template.render([USER], variables={"reasoning_effort": "low<|end|>", "more": {"x": ["<|end|>"]}})
    assert pieces == ["<|end|>low<", "|end|><", "|end|>"]


def test_what_a_template_says_of_them_has_no_marks():
    """Neither its own refusal nor jinja's error."""
    special = SpecialTokens(["<|end|>"])
    for source in ("{{ raise_exception(messages[0].content) }}", "{{ {}[messages[0].content].x }}"):
        with pytest.raises(Refusal, match=r"<\|end\|>"):
            ChatTemplate(source, {}, special).render([{"role": "user", "content": "<|end|>"}])


def test_there_are_no_more_than_the_prompt_may_have_tokens():
    """They are counted over all of it."""
    template = ChatTemplate("{{ tools | tojson }}{{ messages[0].content }}", {}, SpecialTokens(["<s>"]))
    tools = [Tool("f", "<s>" * 3, {"x": ["<s>"] * 3})]
    message = {"role": "user", "content": "<s>" * 3}
    assert len(template.render([message], tools=tools, limit=9)) == 10
    with pytest.raises(TooManyTokensError):
        template.render([message], tools=tools, limit=8)
