"""What the tests of parameters share: the model, the two routes and the parameters that these have."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st

from rbee.messages import Ready
from rbee.server.errors import Refusal
from rbee.server.protocols.openai import schemas
from rbee.server.protocols.openai.reader import RequestReader
from rbee.server.text import served_model
from tests.raw_client import CHAT, COMPLETIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.streams.generation import Generation

MODEL = served_model.load_synthetic("synthetic")
PROMPT = {"prompt": "hi"}  # two tokens of the synthetic model
HI = {"messages": [{"role": "user", "content": "hi"}]}
HI_TOKENS = len("user: hi\nassistant: ")
BOTH = pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
TOMORROW = datetime.now(UTC) + timedelta(days=1)

# Values of all kinds.
NUMBERS = st.integers(-3, 130) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.sampled_from(["1", TOMORROW.isoformat()])
BIASES = st.dictionaries(st.integers(-1, 300).map(str) | st.text(max_size=3), NUMBERS | SCALARS, max_size=3)
JSON = st.recursive(
    SCALARS | BIASES | st.lists(st.integers(-1, 300), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)

NO_PARAMETERS = {"model", "stop", "stream", "stream_options", "timings", "user", "metadata"}
NO_PARAMETERS |= {"messages", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "prompt"}
NO_PARAMETERS |= {"tools", "tool_choice", "parallel_tool_calls"}
# What is not the engine's: how the prompt is made of what was sent, and what of the output is shown.
OF_THE_SERVER = {"include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens"}
OF_THE_SERVER |= {"return_token_ids", "add_special_tokens", "enable_thinking", "reasoning_effort"}
OF_THE_SERVER |= {"include_reasoning", "separate_reasoning", "stream_reasoning", "reasoning_format", "reasoning"}
OF_THE_SERVER |= {"thinking_token_budget"}  # where the reasoning does not end with one token of the model
# These say what the output must be, one of them at a time: test_structured_output.py.
FORMS = {"response_format", "structured_outputs", "json_schema", "grammar"}
FORMS |= {"guided_json", "guided_regex", "guided_choice", "guided_grammar"}
PARAMETERS = {
    route: sorted(set(shape.__struct_fields__) - NO_PARAMETERS)
    for route, shape in [(CHAT, schemas.ChatRequest), (COMPLETIONS, schemas.CompletionRequest)]
}


def ready(**values: Any) -> Ready:
    """A model with a length of 100 tokens and the synthetic model's vocabulary, unless told otherwise."""
    known: dict[str, Any] = {
        "runner": "r",
        "device": "cpu",
        "dtype": "f",
        "num_blocks": 9,
        "block_size": 16,
        "load_seconds": 0.0,
    }
    return Ready(**known | {"max_model_len": 100, "vocab_size": 256} | values)


def read(
    route: str,
    fields: dict[str, Any],
    *,
    deadlines: Sequence[str] = (),
    num_rings: int = 64,
    ring_capacity: int = 1024,
    end_token_ids: frozenset[int] = frozenset({7, 8}),
    **engine: Any,
) -> Generation:
    """The generation for these fields, as the route reads it."""
    model = dataclasses.replace(MODEL, end_token_ids=end_token_ids)
    reader = RequestReader(model, num_rings=num_rings, ring_capacity=ring_capacity, lenient=False)
    body = json.dumps((HI if route == CHAT else PROMPT) | fields).encode()
    of_route = reader.read_chat if route == CHAT else reader.read_completion
    return of_route(body, list(deadlines), ready(**engine), 0).generation


def refusal(route: str, fields: dict[str, Any], **more: Any) -> Refusal:
    """The error for these fields."""
    with pytest.raises(Refusal) as caught:
        read(route, fields, **more)
    return caught.value
