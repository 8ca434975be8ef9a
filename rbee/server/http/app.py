"""The ASGI application: which routes there are, who may call them, and what an error looks like.

Owns the outermost layer of every request: its id, its key, and OpenAI's error envelope for whatever goes wrong before
a response has started. Does not know what a route does.
"""

from __future__ import annotations

import hmac
import logging
import re
import uuid
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from rbee.server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)

_OPEN_PATHS = frozenset({"/health", "/ready"})  # no key needed
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def build_app(
    routes: Sequence[BaseRoute], api_keys: Sequence[str], lifespan: Lifespan[Starlette] | None = None
) -> Starlette:
    """The application that serves `routes`. With `api_keys`, a request must carry one of them as a Bearer token."""
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(_Entrance, api_keys=api_keys)],
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_http_exception,
            ClientDisconnect: _on_disconnect,
            Exception: _on_defect,
        },
    )
    app.router.redirect_slashes = False  # /v1/models/ is not a route; say so instead of redirecting a POST
    return app


class _Entrance:
    """What every request passes first: it gets an id, and needs a key unless its path is open to all.

    The id is the client's X-Request-Id if that is sane, else ours. It stands in `scope["state"]["request_id"]` and in
    the X-Request-Id header of every response. Which key it was stands in `scope["state"]["caller"]`, as its index;
    None where none is needed.
    """

    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str]) -> None:
        self._app = app
        self._api_keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})  # a server without lifespan gives none
        state["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        caller = state["caller"] = self._caller(headers)
        if self._api_keys and scope["path"] not in _OPEN_PATHS and caller is None:
            await _response(_UNAUTHORIZED)(scope, receive, send_with_id)
        else:
            await self._app(scope, receive, send_with_id)

    def _caller(self, headers: Headers) -> int | None:
        """Compare with every key, each in constant time; the first that matches."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip().encode()
        matches = [hmac.compare_digest(given, key) for key in self._api_keys]
        return matches.index(True) if scheme.lower() == "bearer" and any(matches) else None


_UNAUTHORIZED = ApiError(
    401,
    "The API key is missing or wrong; send it as 'Authorization: Bearer KEY'.",
    code="invalid_api_key",
    headers={"WWW-Authenticate": "Bearer"},
)


def _response(error: ApiError) -> Response:
    return Response(error.envelope(), error.status, error.headers, media_type="application/json")


async def _on_api_error(request: Request, error: Exception) -> Response:  # noqa: ARG001 - starlette's signature
    assert isinstance(error, ApiError)
    return _response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """The router's own refusals."""
    assert isinstance(error, HTTPException)
    message = {
        404: f"There is no route {request.url.path}.",
        405: f"{request.url.path} does not take {request.method}.",
    }.get(error.status_code, error.detail)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return _response(ApiError(error.status_code, message, code=code, headers=error.headers))


async def _on_disconnect(request: Request, error: Exception) -> Response:  # noqa: ARG001 - starlette's signature
    """Nobody reads this."""
    return Response(status_code=499)


async def _on_defect(request: Request, error: Exception) -> Response:  # noqa: ARG001 - starlette's signature
    """An error of ours. Starlette raises it again after this answer, and uvicorn logs it with its traceback."""
    return _response(ApiError(500, "The server failed on this request; its log says why.", code="internal_error"))
