"""What the tests of streams are made of: each thing under test is built in one place, here.

A token of these replies is a byte.
"""

from __future__ import annotations

import functools
import json
import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from rbee.models import synthetic
from rbee.sampling_params import SamplingParams
from rbee.server.errors import ApiError
from rbee.server.protocols.openai import frames as sse
from rbee.server.protocols.openai.logprobs import TokenRecords, chat_logprobs, completion_logprobs
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.server.streams.choices import AnnotatedChoiceSink, ChoiceSink, TokenText
from rbee.server.streams.direct_reply import DirectReply, make_outlet
from rbee.server.streams.exchange import Exchange, Generation, Resumption
from rbee.server.streams.replies import CollectedReply, StreamedReply, TokenStreams
from rbee.server.streams.resumption import NumberedFrames, ResumableReply, ResumableStreams
from rbee.server.text import served_model
from rbee.server.text.detokenizer import detokenizers
from rbee.server.text.stop_strings import StopStrings
from tests.batches import batch, record_batch
from tests.fakes import RecordingStream, RecordingWatch, RecordingWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from rbee.server.text.detokenizer import TokenTable
    from rbee.transport import Outlet

PATIENCE = 60.0  # seconds that a client may read nothing
OWNER = ("key", "chat")
NEW_DETOKENIZER = detokenizers(synthetic.tokenizer())


def make_frames(
    *, chat: bool, usage: bool = False, index: int = 0, request_id: str = "i", created: int = 0, model: str = "m"
) -> sse.Frames:
    """The frames of one choice."""
    return sse.Frames(
        kind="k", request_id=request_id, created=created, model=model, chat=chat, usage=usage, index=index
    )


def make_text(
    stops: Sequence[str] = (), stop_token_ids: Collection[int] = (), new_detokenizer: Any = NEW_DETOKENIZER
) -> TokenText:
    """The text of one choice."""
    return TokenText(new_detokenizer(), StopStrings(stops) if stops else None, stop_token_ids)


def make_choices(reply: Any, texts: Sequence[TokenText], *, logprobs: bool = False) -> list[ChoiceSink]:
    """The sinks of a reply, submitted nowhere."""
    sinks: list[ChoiceSink] = []
    for index, text in enumerate(texts):
        if logprobs:
            records = TokenRecords(SamplingParams(max_tokens=99, num_logprobs=0), 3)
            sinks.append(AnnotatedChoiceSink(index, reply, text, records, logprobs=True))
        else:
            sinks.append(ChoiceSink(index, reply, text))
        sinks[-1].stream = RecordingStream()  # type: ignore[assignment] # a fake
    reply.stream = TokenStreams(sink.stream for sink in sinks)
    return sinks


def make_collected(number: int, stops: Sequence[str] = ()) -> tuple[CollectedReply, list[ChoiceSink]]:
    """A reply that is not streamed, and its choices."""
    reply = CollectedReply(number)
    return reply, make_choices(reply, [make_text(stops) for _ in range(number)])


def make_direct(writer: RecordingWriter, outlet: Any) -> DirectReply:
    """A reply whose tokens are written by the native drain."""
    reply = DirectReply(writer, outlet)  # type: ignore[arg-type] # a fake
    reply.stream = RecordingStream()  # type: ignore[assignment] # a fake
    return reply


def make_direct_outlet(
    writer: Any,
    table: TokenTable | None,
    frames: sse.Frames,
    options: StreamOptions,
    *,
    prompt_tokens: int = 1,
    stop_token_ids: Iterable[int] = (),
) -> Outlet | None:
    """What the native drain writes such a reply with."""
    return make_outlet(writer, table, frames, options, prompt_tokens=prompt_tokens, stop_token_ids=list(stop_token_ids))


def make_streams(watch: Any, *, resume_timeout: float = 30.0, max_ended: int = 8) -> ResumableStreams:
    """The streams that may be resumed."""
    return ResumableStreams(watch, resume_timeout=resume_timeout, max_ended=max_ended)


def make_resumption(reply: ResumableReply, last_id: int, writer: RecordingWriter, watch: Any) -> Resumption:
    """The response that goes on with a reply."""
    return Resumption(reply, last_id, writer, watch)  # type: ignore[arg-type] # a fake


def make_exchange(supervisor: Any, generation: Generation, writer: RecordingWriter, watch: Any) -> Exchange:
    """A generation of the synthetic model, and its response."""
    return Exchange(supervisor, served_model.load_synthetic("s"), watch, generation, writer)  # type: ignore[arg-type]


def make_generation(
    max_tokens: int, *, seed: int = 0, min_tokens: int = 0, stops: Iterable[str] = (), **more: Any
) -> Generation:
    """A streamed completion."""
    return Generation(
        chat=False,
        prompt=[1],
        sampling=SamplingParams(max_tokens=max_tokens, seed=seed, min_tokens=min_tokens),
        stops=list(stops),
        stream=True,
        options=StreamOptions(),
        ignored=[],
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
    """Do it; when it was done, by the clock of `LiveReply.look`."""
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
        frames: Sequence[sse.Frames] | None = None,
        prompt_tokens: int = 3,
        options: StreamOptions | None = None,
        **of_stream: bool,
    ) -> None:
        self.writer = RecordingWriter()
        self.reply = StreamedReply(
            self.writer,  # type: ignore[arg-type] # a fake
            frames or [make_frames(chat=chat, index=index) for index in range(n)],
            options or StreamOptions(**of_stream),
            prompt_tokens,
            functools.partial(completion_logprobs, token_bytes=NEW_DETOKENIZER.token_bytes) if logprobs else None,
        )
        texts = [make_text(stops, stop_token_ids, new_detokenizer) for _ in range(n)]
        self.choices = make_choices(self.reply, texts, logprobs=logprobs)

    @property
    def calls(self) -> Any:
        """What the engine was told of each choice; of the only one, if there is one."""
        calls = [choice.stream.calls for choice in self.choices]  # type: ignore[attr-defined] # a fake
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
        **of_stream: bool,
    ) -> None:
        self.watch = RecordingWatch()
        self.streams = streams or make_streams(self.watch, resume_timeout=resume_timeout, max_ended=max_ended)
        self.writer = RecordingWriter()
        self.frames = NumberedFrames(make_frames(chat=chat, usage=of_stream.get("include_usage", False)), window)
        shown = functools.partial(chat_logprobs, token_bytes=NEW_DETOKENIZER.token_bytes) if logprobs else None
        self.reply = ResumableReply(
            self.writer,  # type: ignore[arg-type] # a fake
            self.frames,
            StreamOptions(**of_stream),
            3,
            shown,
            streams=self.streams,
        )
        [self.choice] = make_choices(self.reply, [make_text(stops)], logprobs=logprobs)
        self.streams.add(self.reply, OWNER, "i", "request")

    @property
    def calls(self) -> list[str]:
        """What the engine was told."""
        calls: list[str] = self.choice.stream.calls  # type: ignore[attr-defined] # a fake
        return calls

    def deliver(self, data: bytes, reason: int = 0) -> None:
        """These tokens, with commit times 1, 2, 3 ..."""
        self.choice.deliver(record_batch([(token_id, -float(token_id)) for token_id in data], reason))

    def written(self) -> bytes:
        """All that the first connection was sent."""
        return b"".join(self.writer.written)

    def resume(self, last_id: int) -> bytes:
        """What a new connection is sent at once."""
        writer = RecordingWriter()
        self.reply.attach(writer, last_id)  # type: ignore[arg-type] # a fake
        return b"".join(writer.written)


def refusal(function: Callable[..., object], *values: object) -> tuple[int, str | None] | None:
    """Status and code of the error that this call ends with; None if it does not."""
    try:
        function(*values)
    except ApiError as error:
        return error.status, error.code
    return None


def numbered_events(data: bytes) -> list[tuple[int, bytes]]:
    """The (id, event) pairs that are complete, as an SSE parser sees them: one ends with a blank line."""
    pairs = [(re.match(rb"id: (\d+)\ndata: ", event), event) for event in data.split(b"\n\n")[:-1]]
    return [(int(match[1]), event) for match, event in pairs if match is not None]
