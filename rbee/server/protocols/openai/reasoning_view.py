"""Where the answer to a chat has the reasoning, in the words of vLLM, OpenRouter, SGLang and llama.cpp.

Owns what their fields mean together. Does not know how reasoning is told from text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rbee.server.errors import invalid
from rbee.server.streams.generation import ReasoningPlace, ReasoningView

if TYPE_CHECKING:
    from rbee.server.protocols.openai.schemas import ChatRequest
    from rbee.server.protocols.reasoning import Sent

# llama.cpp's formats, each with the places of streams and of whole answers.
_FORMATS = {
    "none": (ReasoningPlace.IN_TEXT, ReasoningPlace.IN_TEXT),
    "auto": (ReasoningPlace.APART, ReasoningPlace.APART),
    "deepseek": (ReasoningPlace.APART, ReasoningPlace.APART),
    "deepseek-legacy": (ReasoningPlace.IN_TEXT, ReasoningPlace.APART),
}


def reasoning_view(request: ChatRequest, include: Sent[bool]) -> ReasoningView | None:
    """How the answer shows the reasoning; None: the request does not say it. `include` says whether it does.

    Raises:
        Refusal: there is no such format, or two fields ask for different places.
    """
    asked: dict[str, ReasoningPlace] = {}
    if request.reasoning_format is not None:
        asked["reasoning_format"] = _place_of(request.reasoning_format, stream=request.stream)
    if request.separate_reasoning is not None:
        apart = request.separate_reasoning
        asked["separate_reasoning"] = ReasoningPlace.APART if apart else ReasoningPlace.IN_TEXT
    if len(set(asked.values())) > 1:
        raise _contradiction(*asked)
    place = next(iter(asked.values()), ReasoningPlace.APART)
    if include.value is False:
        if place is ReasoningPlace.IN_TEXT:
            raise _contradiction(include.field, next(iter(asked)))
        place = ReasoningPlace.NOWHERE
    at_once = request.stream_reasoning is False
    said = asked or include.value is not None or request.stream_reasoning is not None
    return ReasoningView(place, at_once) if said else None


def _place_of(name: str, *, stream: bool) -> ReasoningPlace:
    if name not in _FORMATS:
        message = f"reasoning_format must be one of {', '.join(_FORMATS)}, not {name[:64]!r}."
        raise invalid("reasoning_format", message)
    of_stream, of_whole = _FORMATS[name]
    return of_stream if stream else of_whole


def _contradiction(first: str, second: str) -> Exception:
    return invalid(second, f"{first} and {second} ask for different places of the reasoning; send one of them.")
