"""What the clients of `make compat` are asked.

Owns the prompts, the tools and the schema. Does not know how a client sends them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

PROMPT = "Name three things that bees make."
MAX_TOKENS = 24

# Its answer is a JSON object. No grammar shortens it: what clients add to a schema, or leave out, changes nothing.
OBJECT_PROMPT = "Name one product of bees, and its weight in grams."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"product": {"type": "string"}, "grams": {"type": "integer"}},
    "required": ["product", "grams"],
    "additionalProperties": False,
}

TOOL_PROMPT = "What is the weather in Paris, and in Rome?"
TOOL_NAME = "get_weather"
TOOL_DESCRIPTION = "The weather of a city"
TOOL_RESULT = "21 degrees and sunny"
TOOL_TOKENS = 200


def _parameters(city: dict[str, Any], units: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"city": {"type": "string"} | city, "unit": {"type": "string", "enum": units}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    }


# There is one valid call of the first: it is the same whatever words a client finds for the tool in the prompt.
ONE_CALL = _parameters({"enum": ["Paris"]}, ["C"])
ANY_CALL = _parameters({"maxLength": 20}, ["C", "F"])


def _example(animals: str, thing: str) -> list[dict[str, str]]:
    thought = f"The user asks about {animals}. {animals.capitalize()} make {thing}."
    answer = f"<think>\n{thought}\n</think>\n\n{animals.capitalize()} make {thing}."
    return [
        {"role": "user", "content": f"Name one thing that {animals} make."},
        {"role": "assistant", "content": answer},
    ]


# The default model does not think by itself, but goes on as others did before.
DIALOGUE = [
    *_example("cows", "milk"),
    *_example("hens", "eggs"),
    {"role": "user", "content": "Name one thing that bees make."},
]
DIALOGUE_TOKENS = 80


class Asked(NamedTuple):
    """Whom a client asks."""

    url: str  # of the server, without /v1
    key: str
    thinker: str  # the URL of a server that reads the model's reasoning; empty if there is none
    folder: str  # of the model, with its tokenizer


def question(asked: Asked, model: str, stop: str) -> dict[str, Any]:
    """The argument of a client program: a Question, or `ask`, there."""
    named = {"name": TOOL_NAME, "description": TOOL_DESCRIPTION}
    return {
        **asked._asdict(),
        "model": model,
        "prompt": PROMPT,
        "max_tokens": MAX_TOKENS,
        "stop": stop,
        "dialogue": DIALOGUE,
        "dialogue_tokens": DIALOGUE_TOKENS,
        "object_prompt": OBJECT_PROMPT,
        "schema": SCHEMA,
        "tool": {**named, "parameters": ONE_CALL},
        "free_tool": {**named, "parameters": ANY_CALL},
        "tool_prompt": TOOL_PROMPT,
        "tool_result": TOOL_RESULT,
        "tool_tokens": TOOL_TOKENS,
    }
