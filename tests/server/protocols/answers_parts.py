"""What /openapi.json says of answers, held against real ones: each is valid, and which members it has is kept."""

from __future__ import annotations

from typing import Any

import jsonschema_rs

REFERENCE = "#/components/schemas/"
EVENTS = "text/event-stream"


class Described:
    """A document of this server.

    Attributes:
        seen: (schema, member) of every object in a checked answer.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._paths = document["paths"]
        self._components = document["components"]
        self.seen: set[tuple[str, str]] = set()

    def answer(self, method: str, path: str, status: int = 200, media_type: str = "application/json") -> dict[str, Any]:
        """The schema of an answer; of a stream that of its events."""
        content = self._paths[path][method.lower()]["responses"][str(status)]["content"][media_type]
        schema: dict[str, Any] = content["x-itemSchema" if media_type == EVENTS else "schema"]
        return schema

    def check(self, schema: dict[str, Any], answer: Any) -> None:
        """It is valid, and not with a member more."""
        whole = {**schema, "components": self._components}
        jsonschema_rs.validate(whole, answer)
        if isinstance(answer, dict):
            assert not jsonschema_rs.is_valid(whole, answer | {"surplus": 1})
        self._walk(schema, answer, "")

    def members(self) -> set[tuple[str, str]]:
        """(schema, member) of all that an answer can have."""
        found: set[str] = set()
        for methods in self._paths.values():
            for operation in methods.values():
                for response in operation["responses"].values():
                    self._reach(response, found)
        return {(name, member) for name in found for member in self._components["schemas"][name]["properties"]}

    def _reach(self, schema: Any, found: set[str]) -> None:
        """Add the names of all schemas that this one leads to."""
        if isinstance(schema, list):
            for item in schema:
                self._reach(item, found)
        elif isinstance(schema, dict):
            name = str(schema.get("$ref", "")).removeprefix(REFERENCE)
            if name and name not in found:
                found.add(name)
                self._reach(self._components["schemas"][name], found)
            for key, inner in schema.items():
                if key != "discriminator":
                    self._reach(inner, found)

    def _walk(self, schema: dict[str, Any], answer: Any, name: str) -> None:
        if "$ref" in schema:
            name = schema["$ref"].removeprefix(REFERENCE)
            schema = self._components["schemas"][name]
        if "anyOf" in schema:
            [fitting, *_] = [
                each
                for each in schema["anyOf"]
                if jsonschema_rs.is_valid({**each, "components": self._components}, answer)
            ]
            self._walk(fitting, answer, name)
        elif isinstance(answer, dict):
            properties = schema.get("properties", {})
            for member, value in answer.items():
                if member in properties:
                    self.seen.add((name, member))
                self._walk(properties.get(member, schema.get("additionalProperties", {})), value, name)
        elif isinstance(answer, list):
            for item in answer:
                self._walk(schema.get("items", {}), item, name)
