"""The two protocols whose events have names, for tests that hold for both: their answers, bodies, and what they say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rbee.sampling_params import SamplingParams
from rbee.server.protocols.anthropic.dialect import MessagesDialect
from rbee.server.protocols.responses.dialect import ResponsesDialect
from rbee.server.protocols.responses.schemas import ResponsesRequest
from rbee.server.streams.generation import Generation
from rbee.server.streams.replies import CollectedReply
from rbee.server.text.detokenizer import detokenizers
from tests.batches import batch
from tests.server.streams.streams_parts import StreamedCase, make_sinks, make_text
from tests.server.streams.tagged_output import PLAN, WordTokens
from tests.server.text.text_parts import SYNTHETIC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.streams.generation import OutputPlan
    from tests.raw_client import Client

MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
HI = [{"role": "user", "content": "hi"}]
HI_PROMPT = "user: hi\nassistant: "  # as the synthetic model's chat template has it
_TOKEN_BYTES = detokenizers(SYNTHETIC).token_bytes


class Event(NamedTuple):
    """One event of a stream."""

    name: str
    data: Any


def parse_events(stream: bytes) -> list[Event]:
    """The events of a stream that is whole; each says twice what it is."""
    assert stream.endswith(b"\n\n")
    events = []
    for event in stream.split(b"\n\n")[:-1]:
        name, data = event.split(b"\n")
        events.append(Event(name.removeprefix(b"event: ").decode(), json.loads(data.removeprefix(b"data: "))))
        assert events[-1].data["type"] == events[-1].name
    return events


async def read_events(client: Client, path: str, body: dict[str, Any], *headers: str) -> list[Event]:
    """All events of a streamed response."""
    stream = await client.open(path, body | {"stream": True}, *headers)
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    return parse_events(b"".join([chunk async for chunk in stream.chunks()]))


@dataclass(frozen=True)
class Words:
    """What one of the protocols calls things."""

    path: str
    messages: str  # the field of the conversation
    max_tokens: str
    delta: str  # the event of a piece of text
    last: str  # the event of an ordinary end
    failed: str  # the event of any other

    def body(self, max_tokens: int = 5, messages: Any = HI, **fields: Any) -> dict[str, Any]:
        """A request."""
        return {self.messages: messages, self.max_tokens: max_tokens} | fields

    def text(self, events: list[Event]) -> str:
        """What the deltas of a stream say."""
        return "".join([self.delta_text(event) for event in events if event.name == self.delta])

    def delta_text(self, event: Event) -> str:
        """What one of them says."""
        text: str = event.data["delta"] if self.path == RESPONSES else event.data["delta"]["text"]
        return text

    def error(self, answer: Any) -> tuple[str, str]:
        """Kind and message of a refusal in this protocol's envelope, which has nothing else."""
        if self.path == RESPONSES:
            assert answer.keys() == {"error"}
            assert answer["error"].keys() == {"message", "type", "param", "code"}
        else:
            assert answer.keys() == {"type", "error", "request_id"}
            assert answer["error"].keys() == {"type", "message"}
            assert answer["type"] == "error"
        return answer["error"]["type"], answer["error"]["message"]


OF_MESSAGES = Words(MESSAGES, "messages", "max_tokens", "content_block_delta", "message_stop", "error")
OF_RESPONSES = Words(
    RESPONSES, "input", "max_output_tokens", "response.output_text.delta", "response.incomplete", "response.failed"
)


def make_generation(
    *,
    prompt_tokens: int = 7,
    keep_text: bool = False,
    output: OutputPlan | None = None,
    num_logprobs: int | None = None,
) -> Generation:
    """Any generation."""
    return Generation(
        received_ns=0,
        prompt=[1] * prompt_tokens,
        sampling=SamplingParams(max_tokens=99, num_logprobs=num_logprobs),
        stops=[],
        keep_text=keep_text,
        output=output,
    )


def make_messages_dialect(*, fills_context: bool = False, plan: OutputPlan | None = None) -> MessagesDialect:
    """An answer of Anthropic's protocol."""
    return MessagesDialect("mödel", make_generation(output=plan), request_id="r", fills_context=fills_context)


def make_responses_dialect(*, plan: OutputPlan | None = None, num_logprobs: int | None = None) -> ResponsesDialect:
    """An answer of the Responses protocol, at a fixed time."""
    request = ResponsesRequest(input="hi", instructions='say "hi"', metadata={"a": "b"})
    generation = make_generation(keep_text=True, output=plan, num_logprobs=num_logprobs)
    return ResponsesDialect("mödel", generation, request, _TOKEN_BYTES, clock=lambda: 1234.5)


def streamed(dialect: Any, words: Sequence[str], reason: int, *, stops: Sequence[str] = ()) -> StreamedCase:
    """The stream of an answer that is parsed, whose tokens are these words and which ends so; 0: not yet."""
    tokens = WordTokens(words)
    case = StreamedCase(dialect=dialect, plan=PLAN, new_detokenizer=lambda: tokens, stops=stops, keep_text=True)
    case.choices[0].deliver(batch(range(len(words)), reason))
    return case


def collected(dialect: Any, words: Sequence[str], reason: int, *, stops: Sequence[str] = ()) -> Any:
    """The same as a whole answer."""
    reply, text = CollectedReply(), make_text(stops, new_detokenizer=lambda: WordTokens(words))
    [choice] = make_sinks(reply, [text], plan=PLAN, keep_text=True)
    choice.deliver(batch(range(len(words)), reason))
    return json.loads(dialect.answer(reply.choices, reply.outcome))
