"""What the routes of this server take and answer, for programs: OpenAPI 3.1, made from the shapes of both.

Owns how an `Operation` becomes that document, and its route. Each protocol lists its own operations. Does not know what
a field means (`rbee.server.protocols.meanings`).
"""

from __future__ import annotations

import copy
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from starlette.responses import Response
from starlette.routing import Route

from rbee import __version__
from rbee.server.http.responses import json_response
from rbee.server.protocols.meanings import MEANINGS
from rbee.server.protocols.parameters import RANGES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from starlette.requests import Request

_JSON, _EVENTS, _HTML = "application/json", "text/event-stream", "text/html"
# The page has its script and its style in itself, asks this server only, and is in nobody's frame.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'"
)
_REFERENCE = "#/components/schemas/{name}"
_EVERYWHERE = (400, 401, 403, 408, 431, 500)  # refusals that any request may get
_WITH_BODY = (404, 413, 415, 429, 503)  # and that one with a body may
_MEANS = {
    400: "The request is wrong; the message names the field and the remedy.",
    401: "A key is needed.",
    403: "The host's name, or the page that asks, is not allowed.",
    404: "The model, or what the path names, is not here.",
    408: "A deadline passed, or the request did not arrive in time.",
    409: "Another one has it already.",
    410: "It was here once.",
    413: "The body is too large (--max-body-mib).",
    415: "The body is not application/json.",
    429: "There is no room now; Retry-After says when.",
    431: "The head is too large.",
    500: "A defect of the server; its log has the reason.",
    503: "There is no engine now; Retry-After says when to try again.",
}
_PATH_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


class Body(NamedTuple):
    """The fields of a request's body."""

    shape: type  # of those that are followed; a msgspec struct
    advisory: Collection[str] = ()  # change nothing
    neutral: Mapping[str, tuple[Any, ...]] = {}  # are not supported but with these values, and null
    synonyms: Mapping[str, str] = {}  # other names, each with the usual one


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    """What a JSON object of an answer has: these members, and no others."""


class Operation(NamedTuple):
    """A method of a path.

    The shapes are structs. Where there are several, an answer or an event has one of them.
    """

    method: str
    path: str  # as in its route
    summary: str
    body: Body | None = None
    status: int = 200  # of the answer
    answer: tuple[Any, ...] = ()  # the shapes of an answer in JSON; none: any object
    events: tuple[Any, ...] = ()  # the shapes of what server-sent events hold, if the answer may be such a stream
    kind: str | None = _JSON  # of an answer that is no stream; None: it always is one
    others: Mapping[int, Any] = {}  # the shapes of answers with another status that are no errors
    refusals: tuple[int, ...] = ()  # statuses beside those that any request may get
    error: type | None = None  # the envelope of refusals; a msgspec struct; None: OpenAI's
    needs_key: bool = True


class ErrorFields(Shape):
    """What went wrong: a sentence, OpenAI's word for its kind, the field to blame, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(Shape):
    """A refusal in OpenAI's envelope."""

    error: ErrorFields


class OpenApi:
    """The route /openapi.json of a server; the document is made when it is first asked for."""

    def __init__(self, operations: Sequence[Operation], *, has_keys: bool, lenient: bool) -> None:
        self._operations = [*operations, *self.operations()]
        self._has_keys, self._lenient = has_keys, lenient
        self._document: dict[str, Any] | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/openapi.json", self.show, methods=["GET"]),
            Route("/docs", self.page, methods=["GET"]),
        ]

    def operations(self) -> list[Operation]:
        return [
            Operation("GET", "/openapi.json", "This document."),
            Operation("GET", "/docs", "This document as a page, with a way to try each route.", kind=_HTML),
        ]

    async def show(self, request: Request) -> Response:  # noqa: ARG002 - starlette's signature
        if self._document is None:
            self._document = document(self._operations, has_keys=self._has_keys, lenient=self._lenient)
        return json_response(self._document)

    async def page(self, request: Request) -> Response:  # noqa: ARG002 - starlette's signature
        text = (files("rbee.server.web") / "docs.html").read_bytes()
        return Response(text, headers={"content-security-policy": _POLICY}, media_type=_HTML)


def document(operations: Sequence[Operation], *, has_keys: bool = False, lenient: bool = False) -> dict[str, Any]:
    """The OpenAPI document of these operations.

    Args:
        operations: of all protocols.
        has_keys: requests need one.
        lenient: unknown fields are ignored.
    """
    schemas: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = _PATH_PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, schemas, lenient=lenient)
    result: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "rbee", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if has_keys:
        result["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        result["security"] = [{"bearer": []}, {"x-api-key": []}]
    return result


def _operation(operation: Operation, schemas: dict[str, Any], *, lenient: bool) -> dict[str, Any]:
    statuses = [*_EVERYWHERE, *(_WITH_BODY if operation.body else ()), *operation.refusals]
    error = _reference(operation.error or ErrorEnvelope, schemas)
    refusal = {"content": {_JSON: {"schema": error}}}
    result: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{operation.method.lower()}{operation.path}").strip("_"),
        "responses": {
            str(operation.status): _answer(operation, schemas),
            **{str(status): {"description": _MEANS[status], **refusal} for status in sorted(set(statuses))},
            **{
                str(status): {"description": _MEANS[status], "content": {_JSON: {"schema": _reference(shape, schemas)}}}
                for status, shape in operation.others.items()
            },
        },
    }
    if names := _PATH_PARAMETER.findall(operation.path):
        result["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if operation.body is not None:
        schema = _body(operation.body, schemas, lenient=lenient)
        result["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    if not operation.needs_key:
        result["security"] = []
    return result


def _answer(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    """The answer of an ordinary request: whole, or as a stream."""
    if operation.status == 204:
        return {"description": "The answer, which is empty."}
    content: dict[str, Any] = {}
    if operation.kind == _JSON:
        content[_JSON] = {"schema": _one_of(operation.answer, schemas) if operation.answer else {"type": "object"}}
    elif operation.kind:
        content[operation.kind] = {"schema": {}}
    if operation.events:
        # What OpenAPI 3.2 calls itemSchema.
        content[_EVENTS] = {"schema": {}, "x-itemSchema": _one_of(operation.events, schemas)}
    return {"description": "The answer.", "content": content}


def _one_of(shapes: Sequence[Any], schemas: dict[str, Any]) -> dict[str, Any]:
    references = [_reference(shape, schemas) for shape in shapes]
    return references[0] if len(references) == 1 else {"anyOf": references}


def _reference(shape: type, schemas: dict[str, Any]) -> dict[str, Any]:
    """To the schema of a struct, which is among `schemas` then."""
    (reference,), components = msgspec.json.schema_components([shape], ref_template=_REFERENCE)
    for name, schema in components.items():
        schemas.setdefault(name, schema)
    return reference


def _body(body: Body, schemas: dict[str, Any], *, lenient: bool) -> dict[str, Any]:
    reference = _reference(body.shape, schemas)
    schema = schemas[body.shape.__name__]
    foreign: Mapping[str, str | None] = getattr(body.shape, "foreign_fields", {})
    ranges = RANGES | getattr(body.shape, "own_ranges", {})
    properties = {
        name: _property(name, field, ranges, needed=name in schema.get("required", ()))
        for name, field in schema["properties"].items()
        if name not in foreign
    }
    for name, usual in body.synonyms.items():
        properties[name] = {**copy.deepcopy(properties[usual]), "description": f"Another name of {usual}."}
    for name in sorted(body.advisory):
        properties.setdefault(name, {"description": "Is accepted, and changes nothing."})
    for name in sorted(body.neutral):
        values = [*body.neutral[name], None]
        properties.setdefault(name, {"enum": values, "description": "Other values are not supported yet."})
    schemas[body.shape.__name__] = {**schema, "properties": properties, "additionalProperties": lenient}
    return reference


def _property(
    name: str, field: dict[str, Any], ranges: Mapping[str, tuple[float, float]], *, needed: bool
) -> dict[str, Any]:
    """A field's schema with its range and its meaning; null is absent."""
    field = dict(field)
    outer = {key: field.pop(key) for key in ("default", "description") if key in field}
    if name in MEANINGS:
        outer["description"] = f"{MEANINGS[name]}."
    kinds = field.pop("anyOf", [field])
    if name in ranges:
        low, high = ranges[name]
        kinds = [
            {**kind, "minimum": low, "maximum": high} if kind.get("type") in {"integer", "number"} else kind
            for kind in kinds
        ]
    if not needed and {"type": "null"} not in kinds:
        kinds = [*kinds, {"type": "null"}]
    return {**(kinds[0] if len(kinds) == 1 else {"anyOf": kinds}), **outer}
