"""What the tests of streams are made of: each thing under test is built in one place, here.

A token of these replies is a byte.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from rbee.messages import SIDE_RECORD, FinishReason
from rbee.models import synthetic
from rbee.sampling_params import SamplingParams
from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from rbee.server.http.writer import EXTENSION
from rbee.server.link.sequences import DirectTarget
from rbee.server.protocols.openai.dialect import ChatDialect, CompletionDialect
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.server.streams.choices import ChoiceSink, LogprobsChoice
from rbee.server.streams.direct_reply import DirectReply, make_outlet
from rbee.server.streams.exchange import Backend, GenerationResponse, Resumption
from rbee.server.streams.generation import Generation
from rbee.server.streams.live import SequenceHandles
from rbee.server.streams.parsed_output import ParsedOutput
from rbee.server.streams.records import TokenRecords
from rbee.server.streams.replies import CollectedReply, StreamedReply
from rbee.server.streams.resumption import ResumableReply, ResumableStreams
from rbee.server.text import served_model
from rbee.server.text.detokenizer import detokenizers
from rbee.server.text.stop_strings import StopStrings
from rbee.server.text.token_text import Echo, TokenText
from tests.batches import batch, record_batch
from tests.fakes import RecordingSequence, RecordingWatch, RecordingWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from rbee.server.link.admission import Requester
    from rbee.server.link.sequences import Choice
    from rbee.server.streams.generation import OutputPlan
    from rbee.server.text.detokenizer import TokenTable
    from rbee.transport import Outlet

PATIENCE = 60.0  # seconds that a client may read nothing
OWNER = "key"
NEW_DETOKENIZER = detokenizers(synthetic.tokenizer())


def make_dialect(
    *,
    chat: bool,
    options: StreamOptions | None = None,
    n: int = 1,
    prompt_tokens: int = 3,
    logprobs: bool = False,
    model: str = "m",
    plan: OutputPlan | None = None,
) -> ChatDialect | CompletionDialect:
    """An answer of OpenAI's."""
    sampling = SamplingParams(max_tokens=99, num_logprobs=0 if logprobs else None)
    generation = Generation(received_ns=0, prompt=[1] * prompt_tokens, sampling=sampling, stops=[], n=n, output=plan)
    kind = ChatDialect if chat else CompletionDialect
    dialect = kind(model, generation, options or StreamOptions(), NEW_DETOKENIZER.token_bytes, created=0)
    dialect.answer_id = "i"  # the same for all, so that answers can be compared
    return dialect


def make_text(
    stops: Sequence[str] = (), stop_token_ids: Collection[int] = (), new_detokenizer: Any = NEW_DETOKENIZER
) -> TokenText:
    """The text of one choice."""
    return TokenText(new_detokenizer(), StopStrings(stops) if stops else None, stop_token_ids)


def make_sinks(
    reply: Any,
    texts: Sequence[TokenText],
    *,
    logprobs: bool = False,
    plan: OutputPlan | None = None,
    keep_text: bool = False,
) -> list[ChoiceSink]:
    """The sinks of a reply, submitted nowhere."""
    sinks: list[ChoiceSink] = []
    for index, text in enumerate(texts):
        output = None if plan is None else ParsedOutput(plan, keep_text=keep_text)
        if logprobs:
            records = TokenRecords(SamplingParams(max_tokens=99, num_logprobs=0), [1, 2, 3])
            sinks.append(LogprobsChoice(index, reply, text, records, logprobs=True, output=output))
        else:
            sinks.append(ChoiceSink(index, reply, text, output=output))
        sinks[-1].sequence = RecordingSequence()  # type: ignore[assignment] # a fake
    reply.sequences = SequenceHandles(sink.sequence for sink in sinks)
    return sinks


def calls_of(choice: ChoiceSink) -> list[str]:
    """What the engine was told of a choice that `make_sinks` made."""
    calls: list[str] = choice.sequence.calls  # type: ignore[attr-defined] # a fake
    return calls


def make_collected(number: int, stops: Sequence[str] = ()) -> tuple[CollectedReply, list[ChoiceSink]]:
    """A reply that is not streamed, and its choices."""
    reply = CollectedReply(number)
    return reply, make_sinks(reply, [make_text(stops) for _ in range(number)])


def make_direct(writer: RecordingWriter, outlet: Any, dialect: Any = None) -> DirectReply:
    """A reply whose tokens are written by the native drain."""
    reply = DirectReply(writer, dialect or make_dialect(chat=False), outlet)
    reply.sequences = RecordingSequence()  # type: ignore[assignment] # a fake
    return reply


def make_direct_outlet(
    writer: Any,
    table: TokenTable | None,
    dialect: Any,
    *,
    prompt_tokens: int = 1,
    stop_token_ids: Iterable[int] = (),
    keep_text: bool = False,
) -> Outlet | None:
    """What the native drain writes such a reply with."""
    sampling = SamplingParams(max_tokens=99, stop_token_ids=tuple(stop_token_ids))
    generation = Generation(received_ns=0, prompt=[1] * prompt_tokens, sampling=sampling, stops=[], keep_text=keep_text)
    return make_outlet(writer, table, dialect, generation)


def make_streams(watch: Any, *, resume_timeout: float = 30.0, max_ended: int = 8) -> ResumableStreams:
    """The streams that may be resumed."""
    return ResumableStreams(watch, resume_timeout=resume_timeout, max_ended=max_ended)


def writing_to(writer: RecordingWriter) -> dict[str, Any]:
    """The ASGI scope of a request whose response is written by `writer`."""

    def make(send: Any) -> RecordingWriter:
        writer.send = send
        return writer

    return {"type": "http", "extensions": {EXTENSION: make}}


def make_resumption(reply: ResumableReply, last_id: int, writer: RecordingWriter, watch: Any) -> Any:
    """The response that goes on with a reply, as an ASGI application."""
    response = Resumption(reply, last_id, watch)

    async def run(send: Any) -> None:
        await response(writing_to(writer), no_receive, send)

    return run


async def no_receive() -> Any:
    """The client sends nothing further."""
    raise AssertionError("a Writer that is given asks for nothing")


def make_exchange(supervisor: Any, generation: Generation, watch: Any, *, stream: bool = False) -> GenerationResponse:
    """A generation of the synthetic model, and its response."""
    model = served_model.load_synthetic("s")
    dialect = CompletionDialect("s", generation, StreamOptions(), model.codec.token_bytes)
    return GenerationResponse(Backend(supervisor, model.codec, watch), generation, dialect, stream=stream)


async def collected(response: GenerationResponse, writer: RecordingWriter | None = None) -> Any:
    """The JSON of a response that is not streamed."""
    bodies: list[bytes] = []

    async def send(message: Any) -> None:
        bodies.append(message.get("body", b""))

    await response(writing_to(writer or RecordingWriter()), no_receive, send)
    return json.loads(b"".join(bodies))


class AnsweringClient:
    """An EngineClient, and its supervisor, without an engine: keeps what is submitted, and answers with these tokens.

    Attributes:
        submitted: the prompts of each request, the sampling of its choices, and all else that it says.
    """

    def __init__(self, answer: Iterable[int] = b"A", reason: FinishReason = FinishReason.LENGTH) -> None:
        self.client = self
        self.submitted: list[Any] = []
        self._answer = list(answer)
        self._reason = reason

    def check_ready(self) -> None:
        """It always is."""

    async def make_room(self, num_choices: int, num_tokens: int, requester: Requester) -> None:
        """There is."""

    def submit_all(
        self,
        request_id: str,  # noqa: ARG002 - the client's signature
        prompt: list[int],
        choices: Sequence[Choice],
        *,
        account: object,  # noqa: ARG002
        **options: Any,
    ) -> list[RecordingSequence]:
        """Keep it; each choice ends at once."""
        prompts = [prompt if choice.prompt is None else choice.prompt for choice in choices]
        self.submitted.append((prompts, [choice.sampling for choice in choices], options))
        for choice in choices:
            assert not isinstance(choice.sink, DirectTarget), "nothing here writes natively"
            told = [SIDE_RECORD] if choice.report_cached else []
            asyncio.get_running_loop().call_soon(choice.sink.deliver, batch([*told, *self._answer], self._reason))
        return [RecordingSequence() for _ in choices]


def make_echo(token_ids: list[int], text: str | None) -> Echo:
    """A prompt of the synthetic model, in front of its completion."""
    return Echo.of(token_ids, text, served_model.load_synthetic("s").codec)


def make_generation(
    max_tokens: int, *, seed: int = 0, min_tokens: int = 0, stops: Iterable[str] = (), **more: Any
) -> Generation:
    """A completion."""
    return Generation(
        received_ns=7,
        prompt=[1],
        sampling=SamplingParams(max_tokens=max_tokens, seed=seed, min_tokens=min_tokens),
        stops=list(stops),
        **more,
    )


class Moment(NamedTuple):
    """When a reply read its clock: between two readings of the same clock. Sums in seconds are at least 1 s off."""

    earliest: float
    latest: float

    def before(self, seconds: float) -> float:
        """A time less than `seconds` after it."""
        return self.earliest + seconds - 1

    def after(self, seconds: float) -> float:
        """A time more than `seconds` after it."""
        return self.latest + seconds + 1


def moment_of(action: Callable[[], object]) -> Moment:
    """Do it; when it was done, by the clock of `LiveReply.check`."""
    earliest = time.monotonic()
    action()
    return Moment(earliest, time.monotonic())


class StreamedCase:
    """A streamed reply with everything around it; made inside a running loop."""

    def __init__(
        self,
        *,
        n: int = 1,
        chat: bool = False,
        stops: Sequence[str] = (),
        stop_token_ids: Collection[int] = (),
        logprobs: bool = False,
        new_detokenizer: Any = NEW_DETOKENIZER,
        dialect: Any = None,
        prompt_tokens: int = 3,
        keep_text: bool = False,
        plan: OutputPlan | None = None,
        **of_stream: bool,
    ) -> None:
        self.writer = RecordingWriter()
        options = StreamOptions(**of_stream)
        self.dialect = dialect or make_dialect(
            chat=chat, options=options, n=n, prompt_tokens=prompt_tokens, logprobs=logprobs, plan=plan
        )
        self.reply = StreamedReply(self.writer, self.dialect, n, keep_text=keep_text and plan is None)
        texts = [make_text(stops, stop_token_ids, new_detokenizer) for _ in range(n)]
        self.choices = make_sinks(self.reply, texts, logprobs=logprobs, plan=plan, keep_text=keep_text)

    @property
    def calls(self) -> Any:
        """What the engine was told of each choice; of the only one, if there is one."""
        calls = [calls_of(choice) for choice in self.choices]
        return calls[0] if len(calls) == 1 else calls

    def deliver(self, text: str | bytes, reason: int = 0, cached_tokens: int = 0, *, index: int = 0) -> None:
        """Tokens that spell `text`, with commit times 1, 2, 3 ..."""
        data = text if isinstance(text, bytes) else text.encode()
        self.choices[index].deliver(batch(data, reason, cached_tokens))

    def written(self) -> bytes:
        """All that was written."""
        return b"".join(self.writer.written)

    def events(self) -> list[Any]:
        """All that was written, as data of events."""
        data = [frame.removeprefix(b"data: ") for frame in self.written().split(b"\n\n")[:-1]]
        return ["[DONE]" if item == b"[DONE]" else json.loads(item) for item in data]

    def chunks(self) -> list[Any]:
        """The chunks as (text, finish_reason), errors as their code."""
        return [
            event if event == "[DONE]"
            else event["error"]["code"] if "error" in event
            else (event["choices"][0]["text"], event["choices"][0]["finish_reason"])
            for event in self.events()
        ]  # fmt: skip


class ResumableCase:
    """A resumable reply with everything around it; made inside a running loop."""

    def __init__(
        self,
        *,
        chat: bool = True,
        window: int = 1024,
        stops: Sequence[str] = (),
        logprobs: bool = False,
        streams: ResumableStreams | None = None,
        resume_timeout: float = 30.0,
        max_ended: int = 8,
        plan: OutputPlan | None = None,
        new_detokenizer: Any = NEW_DETOKENIZER,
        **of_stream: bool,
    ) -> None:
        self.watch = RecordingWatch()
        self.streams = streams or make_streams(self.watch, resume_timeout=resume_timeout, max_ended=max_ended)
        self.writer = RecordingWriter()
        self.dialect = make_dialect(chat=chat, options=StreamOptions(**of_stream), logprobs=logprobs, plan=plan)
        self.reply = ResumableReply(self.writer, self.dialect, self.streams, window)
        text = make_text(stops, new_detokenizer=new_detokenizer)
        [self.choice] = make_sinks(self.reply, [text], logprobs=logprobs, plan=plan)
        self.streams.add(self.reply, OWNER, "i", "request")

    @property
    def calls(self) -> list[str]:
        """What the engine was told."""
        return calls_of(self.choice)

    def deliver(self, data: bytes, reason: int = 0) -> None:
        """These tokens, with commit times 1, 2, 3 ..."""
        self.choice.deliver(record_batch([(token_id, -float(token_id)) for token_id in data], reason))

    def written(self) -> bytes:
        """All that the first connection was sent."""
        return b"".join(self.writer.written)

    def resume(self, last_id: int) -> bytes:
        """What a new connection is sent at once."""
        writer = RecordingWriter()
        self.reply.attach(writer, last_id)
        return b"".join(writer.written)


def refusal(function: Callable[..., object], *values: object) -> tuple[int, str | None] | None:
    """Status and code of the error that this call ends with; None if it does not."""
    try:
        function(*values)
    except Refusal as error:
        return status_of(error), error.code
    return None


def numbered_events(data: bytes) -> list[tuple[int, bytes]]:
    """The (id, event) pairs that are complete, as an SSE parser sees them: one ends with a blank line."""
    pairs = [(re.match(rb"id: (\d+)\ndata: ", event), event) for event in data.split(b"\n\n")[:-1]]
    return [(int(match[1]), event) for match, event in pairs if match is not None]
