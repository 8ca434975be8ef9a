"""Writes the tables of docs/api.md: `python -m tests.docs.api_table`.

Owns what each parameter does, in words. Names, types, defaults, ranges and classes are the code's.
"""

from __future__ import annotations

import json
import types
import typing
from typing import Any

import msgspec

from rbee.server.protocols import parameters
from rbee.server.protocols.openai import schemas
from tests.docs.generated_part import ROOT, GeneratedPart

PART = GeneratedPart(ROOT / "docs" / "api.md", "parameters")
CHAT, COMPLETION = schemas.ChatRequest, schemas.CompletionRequest
SYNONYM_OF = {usual: name for name, usual in schemas.SYNONYMS.items()}

MEANINGS = {
    "model": "the served model's name; another one is 404",
    "messages": "the conversation",
    "prompt": "what is continued",
    "max_tokens": "tokens of a choice at most; by default what the context leaves, for completions 16. 0 with `echo`",
    "max_completion_tokens": "the same",
    "min_tokens": "until so many no stop token is drawn, and no stop string counts",
    "temperature": "0 takes the most likely token",
    "top_p": "keep the most likely tokens that reach this probability; 0 keeps one",
    "top_k": "keep so many of the most likely tokens; 0 and -1 keep all",
    "min_p": "drop tokens less likely than this times the most likely one",
    "typical_p": "as `top_p`, of the tokens of most typical information content",
    "frequency_penalty": "subtracted from a logit for each time that its token is in the output",
    "presence_penalty": "subtracted once from the logits of tokens in the output",
    "repetition_penalty": "divides positive logits of tokens in prompt or output, multiplies negative ones",
    "logit_bias": "added to the logits of these token ids",
    "allowed_token_ids": "no other tokens are drawn",
    "seed": "the same draws for the same seed, whatever else runs; choice j has `seed` + j",
    "stop": "end the text, which does not show them",
    "stop_token_ids": "end the text",
    "include_stop_str_in_output": "the stop string, or the text of the stop token, is shown at the end",
    "ignore_eos": "the model's end-of-sequence tokens do not end the text",
    "skip_special_tokens": "`false` shows special tokens by their names",
    "spaces_between_special_tokens": "`false` joins them, where the tokenizer writes spaces (WordPiece)",
    "add_special_tokens": "those that the tokenizer puts around a text, beside a chat template's",
    "n": "choices of each prompt",
    "best_of": "`n` itself, or absent",
    "logprobs": "each token's logprob; for completions also so many of the most likely tokens",
    "top_logprobs": "with `logprobs`: so many of the most likely tokens",
    "prompt_logprobs": "so many of the most likely tokens for each token of the prompt; not in streams",
    "echo": "the prompt comes before the completion",
    "return_token_ids": "`token_ids` of each choice, or chunk, and `prompt_token_ids`",
    "stream": "the answer comes as it is made",
    "stream_options": "see [Streams](#streams)",
    "timings": "`timings`: queue, prefill, TTFT, ITL, tokens per second, cached tokens",
    "priority": "smaller runs earlier; a unit is ten seconds of arrival",
    "deadline": "when the answer ends at the latest, ISO 8601 with a zone; also `X-Request-Deadline`",
    "cache_salt": "only requests with the same one share cached prefixes",
    "chat_template_kwargs": "further variables of the chat template",
    "enable_thinking": "a variable of the chat template, if it knows it; else advisory",
    "reasoning_effort": "the same",
    "add_generation_prompt": "end with what opens the assistant's answer",
    "continue_final_message": "go on with the last message, which is the assistant's",
    "user": "a label",
    "metadata": "labels",
}
_BOUNDS = {
    "stop": f"at most {parameters.MAX_STOP_STRINGS}, each of 1 to {parameters.MAX_STOP_BYTES} bytes",
    "stop_token_ids": f"at most {parameters.MAX_STOP_TOKEN_IDS} ids",
    "logit_bias": f"at most {parameters.MAX_LOGIT_BIASES} ids, each from -100 to 100",
    "cache_salt": "at most 256 characters",
    "typical_p": "above 0, to 1",
}
_WORDS = {int: "integer", float: "number", str: "string", bool: "boolean", dict: "object", Any: "anything"}


def _word(kind: Any) -> str:
    """A type in words."""
    arguments = [argument for argument in typing.get_args(kind) if argument is not type(None)]
    match typing.get_origin(kind):
        case types.UnionType:
            return " or ".join(_word(argument) for argument in arguments)
        case origin if origin is list:
            return f"list of {_word(arguments[0])}s"
        case origin if origin is dict:
            return "object"
        case _:
            return _WORDS[kind]


def _default(field: msgspec.structs.FieldInfo) -> str:
    """As JSON; nothing for a field that is absent by default."""
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if default is msgspec.NODEFAULT:
        return "needed"
    return "" if default is None else f"`{json.dumps(default)}`"


def _range(name: str) -> str:
    if name in _BOUNDS or name not in parameters.RANGES:
        return _BOUNDS.get(name, "")
    low, high = parameters.RANGES[name]
    return f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    """Short: powers of two by their exponent."""
    for power, text in ((-(2**63), "-2^63"), (2**63 - 1, "2^63 - 1"), (2**31 - 1, "2^31 - 1")):
        if value == power:
            return text
    return f"{value:g}"


def _followed() -> list[str]:
    lines = ["| parameter | of | type | default | range | does |", "|---|---|---|---|---|---|"]
    hints = {shape: typing.get_type_hints(shape) for shape in (CHAT, COMPLETION)}
    fields = {shape: {field.name: field for field in msgspec.structs.fields(shape)} for shape in (CHAT, COMPLETION)}
    for name, meaning in MEANINGS.items():
        if name in schemas.ADVISORY_CHAT:
            continue
        shapes = [shape for shape in (CHAT, COMPLETION) if name in fields[shape]]
        kinds = list(dict.fromkeys(_word(hints[shape][name]) for shape in shapes))
        defaults = list(dict.fromkeys(_default(fields[shape][name]) for shape in shapes))
        where = "both" if len(shapes) == 2 else "chats" if shapes == [CHAT] else "completions"
        also = f", also `{SYNONYM_OF[name]}`" if name in SYNONYM_OF else ""
        shown = " / ".join(kinds), " / ".join(default or "absent" for default in defaults), _range(name)
        lines.append(f"| `{name}`{also} | {where} | {' | '.join(shown)} | {meaning} |")
    return lines


def _advisory() -> list[str]:
    places = [
        ("requests", schemas.ADVISORY_CHAT),
        ("`stream_options`", schemas.ADVISORY_STREAM_OPTIONS),
        ("messages", schemas.ADVISORY_MESSAGE),
        ("parts of messages", schemas.ADVISORY_PART),
    ]
    lines = ["| advisory, in | fields |", "|---|---|"]
    return lines + [f"| {place} | {', '.join(f'`{name}`' for name in sorted(names))} |" for place, names in places]


def _unsupported() -> list[str]:
    lines = ["| unsupported | of | taken with | `--lenient` |", "|---|---|---|---|"]
    for name in sorted(schemas.NEUTRAL_CHAT.keys() | schemas.NEUTRAL_COMPLETION.keys()):
        chat, completion = name in schemas.NEUTRAL_CHAT, name in schemas.NEUTRAL_COMPLETION
        where = "both" if chat and completion else "chats" if chat else "completions"
        neutral = (schemas.NEUTRAL_CHAT if chat else schemas.NEUTRAL_COMPLETION)[name]
        values = ", ".join(f"`{json.dumps(value)}`" for value in (*neutral, None))
        lenient = "ignores it" if name in schemas.DISPENSABLE else "refuses it too"
        lines.append(f"| `{name}` | {where} | {values} | {lenient} |")
    return lines


def section() -> str:
    """All tables."""
    return "\n".join([*_followed(), "", *_advisory(), "", *_unsupported(), "", ""])


if __name__ == "__main__":
    PART.page.write_text(PART.filled(section()))
