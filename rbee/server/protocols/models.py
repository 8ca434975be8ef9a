"""GET /v1/models: the served model, in OpenAI's words, or in Anthropic's for a request that has their header.

Owns both cards. Does not know how the model is loaded.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from starlette.datastructures import Headers
from starlette.routing import Route

from rbee.server.http import refusals
from rbee.server.http.responses import json_response
from rbee.server.protocols.anthropic import errors as anthropic_errors
from rbee.server.protocols.generation_reader import check_served
from rbee.server.protocols.openapi import Operation, Shape
from rbee.server.protocols.parameters import defaults_in_force

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Scope

    from rbee.server.errors import Refusal
    from rbee.server.link.supervisor import Supervisor
    from rbee.server.text.served_model import ServedModel

PATH = "/v1/models"  # and all below it
_VERSION = "anthropic-version"  # Anthropic's clients send it with every request, and no others do
_CURSORS = ("after_id", "before_id")  # nothing is before or after the only model


class DefaultSampling(Shape):
    """The parameters of a request that sets none."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


class Model(Shape):
    """The served model; `max_model_len` is null until the engine is ready."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["rbee"]
    root: str
    parent: None
    max_model_len: int | None
    default_sampling_params: DefaultSampling


class ModelList(Shape):
    """The served model, as a list."""

    object: Literal["list"]
    data: list[Model]


class AnthropicModel(Shape, tag_field="type", tag="model"):
    """The same in Anthropic's words."""

    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModels(Shape):
    """The only page."""

    data: list[AnthropicModel]
    has_more: Literal[False]
    first_id: str | None
    last_id: str | None


class ModelsApi:
    """The list of models of one server."""

    def __init__(self, supervisor: Supervisor, model: ServedModel) -> None:
        self._supervisor = supervisor
        self._model = model
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        return [
            Route(PATH, self.list_models, methods=["GET"]),
            Route(PATH + "/{name:path}", self.show_model, methods=["GET"]),
        ]

    def operations(self) -> list[Operation]:
        return [
            Operation("GET", PATH, "The served model, as a list.", answer=(ModelList, AnthropicModels)),
            Operation(
                "GET",
                PATH + "/{name:path}",
                "The served model.",
                answer=(Model, AnthropicModel),
                refusals=(404,),
            ),
        ]

    async def list_models(self, request: Request) -> Response:
        if not _is_anthropic(request.headers):
            return _answer({"object": "list", "data": [self._openai_card()]})
        cards = [] if any(cursor in request.query_params for cursor in _CURSORS) else [self._anthropic_card()]
        name = self._model.name if cards else None
        return _answer({"data": cards, "has_more": False, "first_id": name, "last_id": name}, request)

    async def show_model(self, request: Request) -> Response:
        check_served(self._model, request.path_params["name"])
        if _is_anthropic(request.headers):
            return _answer(self._anthropic_card(), request)
        return _answer(self._openai_card())

    def _openai_card(self) -> dict[str, Any]:
        return {
            "id": self._model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "rbee",
            "root": self._model.name,  # `vllm bench serve` and SGLang's clients need these two
            "parent": None,
            "max_model_len": self._max_model_len,
            "default_sampling_params": defaults_in_force(self._model.sampling_defaults),
        }

    def _anthropic_card(self) -> dict[str, Any]:
        created = datetime.fromtimestamp(self._created, UTC)
        return {
            "type": "model",
            "id": self._model.name,
            "display_name": self._model.name,
            "created_at": created.isoformat().replace("+00:00", "Z"),
            "lifecycle": "active",
            "max_input_tokens": self._max_model_len,
            "max_tokens": self._max_model_len,  # more is taken, and cut
        }

    @property
    def _max_model_len(self) -> int | None:
        """None as long as no engine has said it."""
        engine = self._supervisor.ready
        return None if engine is None else engine.max_model_len


def refuse(refusal: Refusal, scope: Scope) -> Response:
    """The `RefusalFormat` of these paths."""
    if _is_anthropic(Headers(scope=scope)):
        return anthropic_errors.answer(refusal, scope)
    return refusals.answer(refusal)


def _is_anthropic(headers: Headers) -> bool:
    return _VERSION in headers


def _answer(content: dict[str, Any], request: Request | None = None) -> Response:
    """`request` is Anthropic's, whose answers have its id once more."""
    headers = {"Vary": _VERSION}
    if request is not None:
        headers[anthropic_errors.REQUEST_ID] = request.scope["state"]["request_id"]
    return json_response(content, headers=headers)
