"""Which types a JSON Schema allows the members of an object."""

from __future__ import annotations

from typing import Any

_MOST_SCHEMAS = 64  # that are looked at, through references and in one another


def types_of(schema: dict[str, Any], member: str) -> frozenset[str] | None:
    """The types that `schema`, of an object, allows its member; None if any, or if that is not easily seen.

    A member that the schema does not have is a string.
    """
    properties = schema.get("properties")
    if not isinstance(properties, dict) or member not in properties:
        return frozenset({"string"})
    found: set[str] = set()
    pending = [properties[member]]
    for _ in range(_MOST_SCHEMAS):
        if not pending:
            return frozenset(found)
        one = pending.pop()
        if not isinstance(one, dict):
            return None
        kind = one.get("type")
        values = [one["const"]] if "const" in one else one.get("enum")
        options = [one[word] for word in ("anyOf", "oneOf", "allOf") if isinstance(one.get(word), list)]
        if isinstance(kind, str):
            found.add(kind)
        elif isinstance(kind, list):
            found.update(map(str, kind))
        elif isinstance(one.get("$ref"), str):
            pending.append(_target(one["$ref"], schema))
        elif isinstance(values, list) and all(isinstance(value, str) for value in values):
            found.add("string")
        elif options:
            pending += options[0]
        else:
            return None
    return None


def _target(reference: str, root: dict[str, Any]) -> Any:
    """What a reference within the schema leads to; None for any other."""
    place: Any = root
    if not reference.startswith("#/"):
        return None
    for step in reference[2:].split("/"):
        key = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(place, dict) or key not in place:
            return None
        place = place[key]
    return place
