"""Ten ways in which models write tools, calls and results: templates, and conversations to render with them.

The templates in tool_templates are those of known families, written anew with what real ones do: what they demand of
their input, what they fail on and what they leave out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from rbee.models import synthetic
from rbee.server.protocols.fields import FieldReader
from rbee.server.protocols.openai.reader import read_chat
from rbee.server.text.chat_template import ChatTemplate
from rbee.server.text.special_tokens import SpecialTokens

_FOLDER = Path(__file__).parent / "tool_templates"


class ToolForm(NamedTuple):
    """How a family writes tools."""

    name: str
    tokens: list[str]  # special ones; the first two are bos_token and eos_token
    reasoning: str | None = None  # the field of a turn whose reasoning is shown
    text_arguments: bool = False  # they are text to the template
    adapted: frozenset[str] = frozenset()  # conversations that are not given to the template as they came

    @property
    def source(self) -> str:
        """Of the template."""
        return (_FOLDER / f"{self.name}.jinja").read_text()

    @property
    def names(self) -> dict[str, str]:
        """The tokens that templates have by name."""
        return {"bos_token": self.tokens[0], "eos_token": self.tokens[1]}

    def tokenizer(self) -> Tokenizer:
        """Of bytes, and of these tokens."""
        made = synthetic.tokenizer()
        made.add_special_tokens([AddedToken(token, special=True) for token in self.tokens])
        return made

    def template(self) -> ChatTemplate:
        """As a server has it."""
        return ChatTemplate(self.source, self.names, SpecialTokens(self.tokens))

    def expected(self, conversation: dict[str, Any]) -> dict[str, Any]:
        """A conversation of OpenAI's protocol as transformers' users write it for this template."""
        messages = []
        for given in conversation["messages"]:
            message = json.loads(json.dumps(given))
            thought = message.pop("reasoning_content", None)
            if thought and self.reasoning:
                message[self.reasoning] = thought
            for call in message.get("tool_calls", ()):
                if not self.text_arguments:
                    call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            messages.append(message)
        return {"messages": messages, "tools": conversation.get("tools")}


_IM = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
_LLAMA = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|python_tag|>"]
_MISTRAL = ["<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"]
_DEEPSEEK = ["calls▁begin", "calls▁end", "call▁begin", "call▁end", "outputs▁begin", "outputs▁end", "output▁begin"]
_WITH_CALLS = frozenset({"one call", "parallel calls", "nested arguments", "reasoning", "text and a call"})

TOOL_FORMS = {
    form.name: form
    for form in [
        ToolForm("qwen2_5", _IM),
        ToolForm("qwen3", _IM, reasoning="reasoning_content"),
        ToolForm("qwen3_coder", _IM),
        ToolForm("hermes3", _IM),
        ToolForm("llama3_1", _LLAMA, adapted=frozenset({"parallel calls"})),
        ToolForm("mistral_nemo", [*_MISTRAL, "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]),
        ToolForm(
            "granite3_3",
            ["<|end_of_text|>", "<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"],
            adapted=_WITH_CALLS,
        ),
        ToolForm("functionary3_1", _LLAMA, text_arguments=True),
        ToolForm(
            "deepseek_v3",
            ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", *(f"<｜tool▁{part}｜>" for part in _DEEPSEEK)],
            text_arguments=True,
            adapted=_WITH_CALLS | {"tools"},  # it shows no tools
        ),
        ToolForm(
            "gpt_oss",
            ["<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"],
            reasoning="thinking",
            adapted=frozenset({"parallel calls"}),
        ),
    ]
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather, "now" or soon — in °C.',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "A city's name."},
                "days": {"type": "integer"},
                "parts": {"type": "array", "items": {"type": "string", "enum": ["rain", "wind"]}},
            },
            "required": ["city"],
        },
    },
}  # fmt: skip
SEARCH = {
    "type": "function",
    "function": {
        "name": "search-web",
        "description": "Search.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string", "description": "What."}}},
    },
}


def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call in a message."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "Be brief.\n"}
USER = {"role": "user", "content": " How is Zürich? "}
CALL = call("call00001", "get_weather", '{"city": "Zürich", "days": 2}')
OTHER_CALL = call("call00002", "search-web", '{"query":"lake \\"Zürichsee\\" {1}"}')
RESULT = {"role": "tool", "tool_call_id": "call00001", "content": '{"temp": 20}'}
OTHER_RESULT = {"role": "tool", "tool_call_id": "call00002", "content": "[\n1]"}
BOTH = [WEATHER, SEARCH]

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "no tools": {"messages": [SYSTEM, USER, {"role": "assistant", "content": "Good."}, USER]},
    "tools": {"messages": [SYSTEM, USER], "tools": BOTH},
    "one call": {
        "messages": [
            *(SYSTEM, USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT),
            *({"role": "assistant", "content": "20 degrees."}, USER),
        ],
        "tools": BOTH,
    },
    "parallel calls": {
        "messages": [
            *(USER, {"role": "assistant", "content": None, "tool_calls": [CALL, OTHER_CALL]}),
            *(RESULT, OTHER_RESULT),
        ],
        "tools": BOTH,
    },
    "nested arguments": {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [call("call00001", "get_weather", '{"city": "a\\"b\\n\\u00e9", "more": [{"x": [1.5]}]}')],
            },
            RESULT,
        ],
        "tools": [WEATHER],
    },
    "reasoning": {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "reasoning_content": "Look it up.", "tool_calls": [CALL]},
            RESULT,
        ],
        "tools": [WEATHER],
    },
    "text and a call": {
        "messages": [USER, {"role": "assistant", "content": "One moment.", "tool_calls": [CALL]}, RESULT],
        "tools": [WEATHER],
    },
}


def prompt(form: ToolForm, conversation: dict[str, Any], **fields: Any) -> list[str]:
    """The pieces of the prompt that a request for this conversation makes."""
    template = form.template()
    read = read_chat(conversation | fields, FieldReader(lenient=False), template)
    chosen = template.for_tools(offered=bool(read.tool_use.offered))
    return chosen.render(read.messages, tools=read.tool_use.offered)
