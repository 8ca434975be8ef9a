"""From the bytes of a request to the tokens of a text, or back, or to the prompt that a chat has.

Owns what the routes answer that generate nothing: /tokenize and /detokenize, as vLLM has them, and /apply-template, as
llama.cpp has it. Runs in the event loop or in a thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rbee.server.errors import invalid
from rbee.server.protocols.fields import FieldReader, decode_object, in_words_of, respelled
from rbee.server.protocols.generation_reader import GenerationReader
from rbee.server.protocols.openai.prompts import read_messages
from rbee.server.protocols.openai.reader import check_continued, read_chat, shows_reasoning, template_variables
from rbee.server.protocols.openai.reasoning_options import read_reasoning
from rbee.server.protocols.openai.schemas import CHAT_SYNONYMS, DetokenizeRequest, TokenizeRequest
from rbee.server.protocols.openai.tools import read_tools
from rbee.server.protocols.parameters import check_token_ids
from rbee.server.protocols.reasoning import given_variables
from rbee.server.text.tokenizer import TooManyTokensError
from rbee.server.text.tool_use import ToolUse

if TYPE_CHECKING:
    from rbee.server.errors import Refusal
    from rbee.server.text.served_model import ServedModel

MAX_TOKENIZED = 65_536  # tokens of a text, for a model that takes no longer ones: Python lists each of them


class Tokenized(NamedTuple):
    """The tokens of a text."""

    token_ids: list[int]
    names: list[str] | None  # None: nobody asked for them


class TextReader:
    """Reads such requests for one model. All methods raise Refusal for what cannot be done, naming the field."""

    def __init__(self, model: ServedModel, *, num_rings: int, ring_capacity: int, lenient: bool) -> None:
        self._reader = GenerationReader(model, num_rings=num_rings, ring_capacity=ring_capacity)
        self._model = model
        self._lenient = lenient

    def tokenize(self, body: bytes, max_model_len: int) -> Tokenized:
        """The tokens of a prompt or of messages, which may be longer than the model takes (0: not known yet)."""
        limit = max(MAX_TOKENIZED, max_model_len)
        reader = FieldReader(lenient=self._lenient)
        given = decode_object(body)
        asked = reader.read(given, TokenizeRequest, {})
        self._reader.check_model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise invalid("prompt", "Send either prompt or messages.")
        for name in ("tools", "continue_final_message", "chat_template_kwargs"):
            if asked.messages is None and getattr(asked, name):
                raise invalid(name, f"{name} is for messages; leave it out beside a prompt.")
        add_special_tokens = asked.messages is None if asked.add_special_tokens is None else asked.add_special_tokens
        try:
            if asked.messages is None:
                pieces = [asked.prompt or ""]
            else:
                tools = read_tools(asked.tools, reader)
                template = self._model.chat_template
                messages = read_messages(asked.messages, reader, shows_reasoning=shows_reasoning(template, tools))
                check_continued(asked, messages, given)
                pieces = self._reader.chat_pieces(
                    messages,
                    limit,
                    ToolUse(tools),
                    add_generation_prompt=asked.add_generation_prompt,
                    continue_final_message=asked.continue_final_message,
                    variables=given_variables(asked.chat_template_kwargs),
                )
            token_ids = self._model.codec.encode_pieces(pieces, add_special_tokens=add_special_tokens, limit=limit)
        except TooManyTokensError as error:
            raise _too_many(error, "prompt" if asked.messages is None else "messages", limit) from None
        return Tokenized(token_ids, self._model.codec.token_names(token_ids) if asked.return_token_strs else None)

    def detokenize(self, body: bytes) -> str:
        asked = FieldReader(lenient=self._lenient).read(decode_object(body), DetokenizeRequest, {})
        self._reader.check_model(asked.model)
        check_token_ids(asked.tokens, "tokens", self._model.codec.size)
        return self._model.codec.decode(asked.tokens)

    def apply_template(self, body: bytes, max_model_len: int) -> str:
        """The prompt of a chat request, as text; what else the request asks for is read and does not matter."""
        given = decode_object(body)
        with in_words_of(given, CHAT_SYNONYMS):
            reader = FieldReader(lenient=self._lenient)
            request, messages, tool_use = read_chat(respelled(given, CHAT_SYNONYMS), reader, self._model.chat_template)
            self._reader.check_model(request.model)
            reasoning = read_reasoning(request, reader)
            limit = max(MAX_TOKENIZED, max_model_len)
            try:
                pieces = self._reader.chat_pieces(
                    messages,
                    limit,
                    tool_use,
                    add_generation_prompt=request.add_generation_prompt,
                    continue_final_message=request.continue_final_message,
                    variables=template_variables(self._reader, request, reasoning, reader, tool_use),
                )
            except TooManyTokensError as error:
                raise _too_many(error, "messages", limit) from None
        return "".join(pieces)


def _too_many(error: TooManyTokensError, param: str, limit: int) -> Refusal:
    return invalid(
        param,
        f"The text has at least {error.found} tokens, and this route counts {limit} at most; send it in parts.",
        code="too_many_tokens",
    )
