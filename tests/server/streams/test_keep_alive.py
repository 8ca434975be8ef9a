"""A keep-alive comment, as the official client takes it."""

from __future__ import annotations

from functools import partial
from typing import Any

import httpx
import openai
import pytest

from rbee.messages import FinishReason
from rbee.server.streams.live import KEEP_ALIVE_SILENCE
from tests.server.streams.streams_parts import PATIENCE, ResumableCase, StreamedCase, moment_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("make", [ResumableCase, StreamedCase], ids=["with ids", "without"])
async def test_openai_client_takes_no_keep_alive_for_an_event(make):
    """Before the first token, between two and before the last; it dispatches an event at any blank line after an id."""
    case = make(chat=True)
    begun = moment_of(lambda: None)
    for token, reason in [(b"a", 0), (b"b", 0), (b"c", FinishReason.LENGTH)]:
        case.reply.check(begun.after(KEEP_ALIVE_SILENCE), PATIENCE)
        begun = moment_of(partial(case.deliver, token, reason))
    stream = case.written()
    assert stream.count(b": keep-alive\n") == 3

    def answer(_request):
        return httpx.Response(200, content=stream, headers={"content-type": "text/event-stream"})

    http: Any = httpx.Client(transport=httpx.MockTransport(answer))
    with openai.OpenAI(base_url="http://test/v1", api_key="none", http_client=http) as client:
        chunks = list(client.chat.completions.create(model="m", messages=[], stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["a", "b", "c"]
