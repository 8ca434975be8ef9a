"""A tool that a request offers the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)  # the JSON Schema of its arguments; {}: any object
    strict: bool = False  # the arguments follow the schema, also where the model decides whether it calls
