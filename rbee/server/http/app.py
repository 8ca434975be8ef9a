"""The ASGI application: which routes there are, who may call them, and what an error looks like.

Owns the outermost layer of every request: its id, its key, and the answer to an error before a response has started.
Does not know what a route does.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Route, Router

from rbee.server.errors import Refusal, RefusalKind
from rbee.server.http import refusals
from rbee.server.http.door import Door
from rbee.server.http.writer import KEEP_ALIVE
from rbee.server.reports.finished import FinishedRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from starlette.requests import Request
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

    from rbee.server.http.refusals import RefusalFormat
    from rbee.server.reports.finished import Generating, RequestTrace

App: TypeAlias = Starlette
AnswerCounts: TypeAlias = Counter[tuple[int, str]]  # requests by status, and code of the refusal or ""
Report: TypeAlias = Callable[[FinishedRequest], None]
BeginTrace: TypeAlias = "Callable[[str, str, Headers], RequestTrace | None]"  # of method, path and headers

_DEFECT = "internal_error"
_NO_ANSWER = 499  # the client has gone before its answer began
_PREFLIGHT_NAMES = 1000  # characters of the headers that a page asks to send
_NAME = r"(?:[\w!#$%&'*+.^`|~-]+ *)?"
_HEADER_NAMES = re.compile(rf" *{_NAME}(?:, *{_NAME})*", re.ASCII)
_PREFLIGHT_SECONDS = 600  # that a browser may remember what it was told of another origin
# What a page may read of an answer, beside what every page may.
_SHOWN_HEADERS = ("Retry-After", "Warning", "X-Request-Id", "X-Stream-Id", "traceparent")
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def build_app(
    routes: Sequence[BaseRoute],
    door: Door | None = None,
    formats: Mapping[str, RefusalFormat] | None = None,
    *,
    lifespan: Callable[[], AbstractAsyncContextManager[None]] | None = None,
    answered: AnswerCounts | None = None,
    reports: Sequence[Report] = (),
    begin_trace: BeginTrace | None = None,
) -> App:
    """The application that serves `routes`.

    Args:
        routes: of all protocols.
        door: which requests may come in; None: all.
        formats: how the protocols with paths of their own answer refusals, by path prefix; the longest one counts.
            All other paths have `rbee.server.http.refusals.answer`.
        lifespan: is entered when the ASGI server starts, and left when it stops.
        answered: counts each request when it has ended.
        reports: are told of each request when it is over: when its response has ended, and the generation that it
            began.
        begin_trace: is told of each request when it comes; what it returns is told when the request is over.
    """
    answers = _Refusals(formats or {}, routes)
    door = door or Door()
    pages = [_cors(door.origins)] if door.origins else []
    app = Starlette(
        routes=routes,
        lifespan=None if lifespan is None else lambda _: lifespan(),
        middleware=[
            Middleware(
                _Entrance,
                answered=Counter() if answered is None else answered,
                reports=reports,
                begin_trace=begin_trace,
            ),
            *pages,
            Middleware(_Gate, door=door, answers=answers),
        ],
        exception_handlers={
            Refusal: answers.on_refusal,
            HTTPException: answers.on_http_exception,
            ClientDisconnect: _on_disconnect,
            Exception: answers.on_defect,
        },
    )
    app.router = _Router(routes, app.router.lifespan_context)
    return app


class _Router(Router):
    """Starlette's router, which finds a path without parameters in one look instead of trying all routes."""

    def __init__(self, routes: Sequence[BaseRoute], lifespan: Lifespan[App]) -> None:
        # /v1/models/ is not a route; say so instead of redirecting a POST.
        super().__init__(routes, redirect_slashes=False, lifespan=lifespan)
        self._fixed: dict[str, Route] = {}
        for route in routes:
            if isinstance(route, Route) and not route.param_convertors:
                self._fixed.setdefault(route.path, route)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._fixed.get(scope.get("path", ""))
        if route is not None:
            match, more = route.matches(scope)
            if match is Match.FULL:
                scope.update(more)
                await route.handle(scope, receive, send)
                return
        await super().app(scope, receive, send)


class _Refusals:
    """The answer to each refusal, in the format of the request's path."""

    def __init__(self, formats: Mapping[str, RefusalFormat], routes: Sequence[BaseRoute]) -> None:
        self._routes = routes
        self._formats = sorted(formats.items(), key=lambda item: -len(item[0]))

    def answer(self, scope: Scope, refusal: Refusal) -> Response:
        """The answer; the code stays in `scope["state"]["refusal"]`."""
        scope["state"]["refusal"] = refusal.code or ""
        path = scope["path"]
        for prefix, make in self._formats:
            if path.startswith(prefix):
                return make(refusal, scope)
        return refusals.answer(refusal)

    async def on_refusal(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return self.answer(request.scope, error)

    async def on_http_exception(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.scope["path"]
        match error.status_code:
            case 404:
                message = f"There is no route {path}.{self._meant(request.scope)}"
                refusal = Refusal(RefusalKind.NOT_FOUND, message, code="not_found")
            case 405:
                message = f"{path} does not take {request.method}."
                refusal = Refusal(RefusalKind.METHOD_NOT_ALLOWED, message, code="method_not_allowed")
            case _:
                refusal = Refusal(RefusalKind.INVALID, error.detail)
        response = self.answer(request.scope, refusal)
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        return response

    def _meant(self, scope: Scope) -> str:
        """A route that the client may have meant: its base URL is often a /v1 short or has one too many.

        There are no routes for such paths: each would be a second address to protect and to count.
        """
        path: str = scope["path"]
        for other in ("/v1" + path, path.removeprefix("/v1"), path.rstrip("/")):
            meant = {**scope, "path": other, "root_path": ""}
            if other != path and any(route.matches(meant)[0] is Match.FULL for route in self._routes):
                return f" Did you mean {other}?"
        return ""

    async def on_defect(self, request: Request, error: Exception) -> Response:  # noqa: ARG002 - starlette's signature
        """Starlette raises the error again after this answer, and uvicorn logs it with its traceback."""
        message = "The server failed on this request; its log has the reason."
        return self.answer(request.scope, Refusal(RefusalKind.FAILED, message, code=_DEFECT))


def _cors(origins: frozenset[str]) -> Middleware:
    """Lets pages of these origins read the answers, refusals too, and answers their preflights, which have no key."""
    return Middleware(
        _Preflights,
        allow_origins=sorted(origins),
        allow_methods=["DELETE", "GET", "POST"],
        allow_headers=["*"],
        expose_headers=_SHOWN_HEADERS,
        max_age=_PREFLIGHT_SECONDS,
    )


class _Preflights(CORSMiddleware):
    """Refuses in the usual envelope. What is allowed repeats the headers' names that are asked for: few, and names."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        asked = request_headers.get("access-control-request-headers", "")
        if len(asked) > _PREFLIGHT_NAMES:
            message = f"Access-Control-Request-Headers has more than {_PREFLIGHT_NAMES} characters; ask for fewer."
        elif not _HEADER_NAMES.fullmatch(asked):
            message = "Access-Control-Request-Headers must be names of headers with commas between them."
        elif answer.status_code == 200:
            return answer
        else:
            message = (
                f"{bytes(answer.body).decode()}; the server's --cors-origin, and its routes, say what pages may do."
            )
        refused = refusals.answer(Refusal(RefusalKind.INVALID, message, code="preflight_refused"))
        kept = {"vary", "access-control-allow-origin", "access-control-allow-methods"}
        refused.headers.update({name: value for name, value in answer.headers.items() if name in kept})
        return refused


class _Gate:
    """Lets in whom the door lets in, and answers the others, and those whom the server has refused already."""

    def __init__(self, app: ASGIApp, *, door: Door, answers: _Refusals) -> None:
        self._app = app
        self._door = door
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refused: Refusal | None = scope["state"].get(refusals.STATE)
            if refused is None:
                refused = self._door.refusal(scope)
            if refused is not None:
                await self._answers.answer(scope, refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Entrance:
    """Gives every request an id, counts and reports it in the end.

    Says in each answer how long its connection is kept, if the server knows.

    The id is the client's X-Request-Id if that is sane, else ours. It stands in `scope["state"]["request_id"]` and in
    the X-Request-Id header of every response. Who answers leaves in the state: "caller", the number of the key, or
    None; "refusal", the code of a refusal; "generation", the `Generating` that the request began; "stream_id", of the
    stream whose rest is the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        answered: AnswerCounts,
        reports: Sequence[Report],
        begin_trace: BeginTrace | None,
    ) -> None:
        self._app = app
        self._begin_trace = begin_trace
        self._reports = reports
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_ns = time.monotonic_ns()
        given = _label(scope["headers"])
        request_id = given if _SANE_REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        state = scope.setdefault("state", {})
        state["request_id"], state["caller"] = request_id, None
        trace = None
        if self._begin_trace is not None and refusals.STATE not in state:
            trace = self._begin_trace(scope["method"], scope["path"], Headers(scope=scope))
        status = _NO_ANSWER

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = answer = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                keep_alive = scope.get("extensions", {}).get(KEEP_ALIVE)  # now: the client may have ended its side
                if keep_alive is not None and all(name != b"connection" for name, _ in answer):
                    answer.append((b"connection", b"keep-alive"))
                    answer.append((b"keep-alive", b"timeout=%d" % keep_alive["timeout"]))
                if trace is not None and trace.traceparent:
                    answer.append((b"traceparent", trace.traceparent.encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            if status == _NO_ANSWER:  # the layer above answers
                status, state["refusal"] = 500, _DEFECT
            raise
        finally:
            self._answered[status, state.get("refusal", "")] += 1
            if self._reports or trace is not None:
                reports = self._reports if trace is None else (*self._reports, trace.end)
                report = partial(_report, scope, status, began_ns, reports)
                generation: Generating | None = state.get("generation")
                if generation is None:
                    report()
                else:  # it may go on, for a client that comes back
                    generation.when_ended(report)


def _label(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own name for a request, or ""."""
    return next((value.decode("latin-1") for name, value in headers if name == b"x-request-id"), "")


def _report(scope: Scope, status: int, began_ns: int, reports: Sequence[Report]) -> None:
    """Tell each of `reports` of a request that is over."""
    state = scope["state"]
    generation: Generating | None = state.get("generation")
    finished = FinishedRequest(
        request_id=state["request_id"],
        caller=state["caller"],
        method=scope["method"],
        path=scope["path"],
        route=_route_of(scope),
        status=status,
        refusal=state.get("refusal", ""),
        stream_id=state.get("stream_id", ""),
        began_ns=began_ns,
        ended_ns=time.monotonic_ns(),
        figures=None if generation is None else generation.figures(),
    )
    for report in reports:
        report(finished)


def _route_of(scope: Scope) -> str:
    """The path as its route has it, which Starlette does not keep; "" if there is none."""
    if "endpoint" not in scope:
        return ""
    route: str = scope["path"]
    for name, value in scope["path_params"].items():
        before, _, after = route.rpartition(str(value)) if value else (route, "", "")  # an empty one is the path's end
        route = f"{before}{{{name}}}{after}"
    return route


async def _on_disconnect(request: Request, error: Exception) -> Response:  # noqa: ARG001 - starlette's signature
    return Response(status_code=_NO_ANSWER)  # never sent: the client is gone
