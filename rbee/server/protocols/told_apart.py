"""JSON schemas whose `oneOf` has branches that a constant tells apart: there it is `anyOf`, which grammars have.

Owns which branches are told apart. Does not know grammars.
"""

from __future__ import annotations

from typing import Any

_VALUES = frozenset({"const", "default", "enum", "example", "examples"})  # no schemas are in these


def with_any_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with `anyOf` in place of each `oneOf` whose branches nothing can be valid under two of.

    Those are objects that all require the same property, which is another constant in each, as pydantic and zod write
    discriminated unions. A branch may be a reference to a definition of the schema.
    """
    result: dict[str, Any] = _rewritten(schema, schema)
    return result


def _rewritten(part: Any, root: dict[str, Any]) -> Any:
    if isinstance(part, list):
        return [_rewritten(item, root) for item in part]
    if not isinstance(part, dict):
        return part
    result = {key: value if key in _VALUES else _rewritten(value, root) for key, value in part.items()}
    branches = part.get("oneOf")
    if isinstance(branches, list) and "anyOf" not in part and _told_apart([_resolved(one, root) for one in branches]):
        result["anyOf"] = result.pop("oneOf")
    return result


def _resolved(branch: Any, root: dict[str, Any]) -> Any:
    """The definition that a branch refers to, if it is no more than a reference to one."""
    if isinstance(branch, dict) and branch.keys() == {"$ref"} and isinstance(branch["$ref"], str):
        match branch["$ref"].split("/"):
            case ["#", "$defs" | "definitions" as place, name]:
                definitions = root.get(place)
                return definitions.get(name) if isinstance(definitions, dict) else None
    return branch


def _told_apart(branches: list[Any]) -> bool:
    """Whether a property that all of them require is another constant in each."""
    constants = [_constants(branch) for branch in branches]
    for name in set.intersection(*map(set, constants)) if constants else ():
        values = [(type(one[name]), one[name]) for one in constants]
        if len(set(values)) == len(values):
            return True
    return False


def _constants(branch: Any) -> dict[str, str | bool]:
    """The properties that an object has to have, with the only value that they may have; texts and booleans only."""
    if not isinstance(branch, dict) or branch.get("type") != "object":
        return {}
    properties, required = branch.get("properties"), branch.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    found = {}
    for name in required:
        value = properties.get(name) if isinstance(name, str) else None
        if isinstance(value, dict):
            only = [value["const"]] if "const" in value else value.get("enum")
            if isinstance(only, list) and len(only) == 1 and isinstance(only[0], str | bool):
                found[name] = only[0]
    return found
