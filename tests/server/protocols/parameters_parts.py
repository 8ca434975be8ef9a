"""What the tests of parameters share: the model, the two routes and the parameters that these have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rbee.messages import Ready
from rbee.server.protocols.openai import schemas
from rbee.server.text import served_model
from tests.raw_client import CHAT, COMPLETIONS

MODEL = served_model.load_synthetic("synthetic")
PROMPT = {"prompt": "hi"}  # two tokens of the synthetic model
HI = {"messages": [{"role": "user", "content": "hi"}]}
HI_TOKENS = len("user: hi\nassistant: ")
BOTH = pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
TOMORROW = datetime.now(UTC) + timedelta(days=1)

NO_PARAMETERS = {"model", "stop", "stream", "stream_options", "user", "metadata"}
NO_PARAMETERS |= {"messages", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "prompt"}
PARAMETERS = {
    route: sorted(set(shape.__struct_fields__) - NO_PARAMETERS)
    for route, shape in [(CHAT, schemas.ChatRequest), (COMPLETIONS, schemas.CompletionRequest)]
}


def ready(**values):
    """A model with a length of 100 tokens and the synthetic model's vocabulary, unless told otherwise."""
    known = {"runner": "r", "device": "cpu", "dtype": "f", "num_blocks": 9, "block_size": 16, "load_seconds": 0.0}
    return Ready(**known | {"max_model_len": 100, "vocab_size": 256} | values)
