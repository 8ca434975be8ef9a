"""From the bytes of a request to what is to be done: the one place where fields, model and server's limits meet.

Owns the order of the checks, and which prompt a request means. Runs in the event loop or in a thread, and changes
nothing: a request that is refused here has cost the engine nothing.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from rbee.server.errors import ApiError, invalid
from rbee.server.protocols.fields import (
    DEFAULT_COMPLETION_TOKENS,
    FieldReader,
    decode_object,
    output_limit,
    read_chat,
    read_completion,
    read_messages,
    read_stream_options,
    stop_strings,
)
from rbee.server.protocols.openai.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from rbee.server.protocols.parameters import Limits, check_token_ids, read_deadline, sampling_params
from rbee.server.streams.exchange import Generation

if TYPE_CHECKING:
    from rbee.messages import Ready
    from rbee.server.text.served_model import ServedModel


class RequestReader:
    """Reads the requests for one model. All methods raise ApiError for what cannot be done, naming the field."""

    def __init__(self, model: ServedModel, *, num_rings: int, ring_capacity: int, lenient: bool) -> None:
        """Describe what is served.

        Args:
            model: that requests are for.
            num_rings: sequences that there can be at once.
            ring_capacity: records that a sequence's ring holds.
            lenient: ignore unknown fields instead of refusing them.
        """
        self._model = model
        self._num_rings = num_rings
        self._ring_capacity = ring_capacity
        self._lenient = lenient

    def read_chat(self, body: bytes, deadlines: list[str], engine: Ready) -> Generation:
        """The body of POST /v1/chat/completions, with the values of its X-Request-Deadline headers."""
        reader = FieldReader(lenient=self._lenient)
        request, messages = read_chat(decode_object(body), reader)
        self.check_model(request.model)
        text = self._chat_prompt(
            messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            variables=request.chat_template_kwargs,
        )
        prompt = self._model.codec.encode(text, add_special_tokens=False)  # the template writes them
        return self._generation(
            request, reader, prompt, max_tokens=output_limit(request), deadlines=deadlines, engine=engine
        )

    def read_completion(self, body: bytes, deadlines: list[str], engine: Ready) -> Generation:
        """The body of POST /v1/completions; see `read_chat`."""
        reader = FieldReader(lenient=self._lenient)
        request, given = read_completion(decode_object(body), reader)
        self.check_model(request.model)
        if isinstance(given, str):
            prompt = self._model.codec.encode(given, add_special_tokens=True)
        else:
            prompt = given
            check_token_ids(prompt, "prompt", engine.vocab_size)
        max_tokens = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
        generation = self._generation(
            request, reader, prompt, max_tokens=max_tokens, deadlines=deadlines, engine=engine
        )
        prompt_text = given if isinstance(given, str) else None
        return dataclasses.replace(generation, echo=request.echo, prompt_text=prompt_text, show_output=max_tokens != 0)

    def tokenize(self, body: bytes) -> list[int]:
        """The token ids that the body of POST /tokenize asks for."""
        reader = FieldReader(lenient=self._lenient)
        asked = reader.read(decode_object(body), TokenizeRequest, {})
        self.check_model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise invalid("prompt", "Send either prompt or messages.")
        if asked.messages is None:
            text, special = asked.prompt or "", True
        else:
            messages = read_messages(asked.messages, reader)
            text, special = self._chat_prompt(messages, add_generation_prompt=asked.add_generation_prompt), False
        add_special_tokens = special if asked.add_special_tokens is None else asked.add_special_tokens
        return self._model.codec.encode(text, add_special_tokens=add_special_tokens)

    def detokenize(self, body: bytes) -> str:
        """The text that the body of POST /detokenize asks for."""
        asked = FieldReader(lenient=self._lenient).read(decode_object(body), DetokenizeRequest, {})
        self.check_model(asked.model)
        check_token_ids(asked.tokens, "tokens", self._model.codec.size)
        return self._model.codec.decode(asked.tokens)

    def check_model(self, name: str | None) -> None:
        """A request may leave the model out: there is only one."""
        if name is not None and name != self._model.name:
            raise ApiError(
                404,
                f"The model {name!r} is not served here; this is {self._model.name!r}.",
                param="model",
                code="model_not_found",
            )

    def _generation(
        self,
        request: ChatRequest | CompletionRequest,
        reader: FieldReader,
        prompt: list[int],
        *,
        max_tokens: int | None,
        deadlines: list[str],
        engine: Ready,
    ) -> Generation:
        sampling = sampling_params(
            request,
            max_tokens=max_tokens,
            prompt_tokens=len(prompt),
            limits=Limits(engine.max_model_len, engine.vocab_size, self._num_rings, self._ring_capacity),
            end_token_ids=self._model.end_token_ids,
        )
        now = {"wall_ns": time.time_ns(), "monotonic_ns": time.monotonic_ns()}
        return Generation(
            chat=isinstance(request, ChatRequest),
            prompt=prompt,
            sampling=sampling,
            stops=stop_strings(request),
            stream=request.stream,
            options=read_stream_options(request, reader),
            ignored=reader.ignored,
            n=request.n,
            priority=request.priority,
            deadline_ns=read_deadline(request.deadline, deadlines, **now),
            cache_salt=request.cache_salt,
        )

    def _chat_prompt(self, messages: list[dict[str, Any]], **options: Any) -> str:
        if self._model.chat_template is None:
            raise ApiError(
                400,
                f"The model {self._model.name!r} has no chat template; use /v1/completions.",
                code="no_chat_template",
            )
        return self._model.chat_template.render(messages, **options)
