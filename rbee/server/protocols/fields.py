"""From a request's bytes to a struct, or a Refusal that names the field.

Owns the rule that no field is silently ignored. Does not know which fields a protocol has, or what they mean.
"""

from __future__ import annotations

import difflib
import functools
import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from rbee.server.errors import invalid
from rbee.server.protocols.json_shape import check_shape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from rbee.server.errors import Refusal

T = TypeVar("T")

_COMPARED = 64  # characters of an unknown field's name that are compared with known ones, which are shorter


def _read_float(text: str) -> float:
    return float(text)


# msgspec itself takes up to 10 us for a number that is hard to round, a million of them without a break. Between two
# calls of a function in Python other threads can run.
_DECODER = msgspec.json.Decoder(float_hook=_read_float)


class FieldReader:
    """Turns JSON objects into structs, field by field.

    With `lenient` unknown fields are collected in `ignored`, else they are refused.
    """

    def __init__(self, *, lenient: bool) -> None:
        self._lenient = lenient
        self.ignored: list[str] = []

    def read(self, given: dict[str, Any], shape: type[T], neutral: Mapping[str, tuple[Any, ...]], path: str = "") -> T:
        """`given` as a `shape`. `path` is where it stands in the request, for messages: "" or "messages[0].".

        Null means absent. A field among `neutral` must have one of the values listed there.

        Raises:
            Refusal: an unknown field, an unsupported one, or a wrong type.
        """
        known = _names(shape)  # type: ignore[arg-type] # a class is hashable
        fields: dict[str, Any] = {}
        for name, value in given.items():
            if value is None:
                continue
            if name in known:
                fields[name] = value
            elif name in neutral:
                if not any(value == other and _is_flag(value) == _is_flag(other) for other in neutral[name]):
                    raise _unsupported(path + name, neutral[name])
            elif self._lenient:
                self.ignored.append(path + name)
            else:
                raise _unknown(name, path, known | neutral.keys(), _foreign(shape).get(name))
        try:
            return msgspec.convert(fields, shape)
        except msgspec.ValidationError as error:
            raise _wrong_type(error, path) from None


@functools.cache
def _names(shape: type) -> frozenset[str]:
    return frozenset(field.name for field in msgspec.structs.fields(shape)) - _foreign(shape).keys()


def _foreign(shape: type) -> Mapping[str, str | None]:
    """Fields of other protocols that a shape inherits, each with its name in this one, if it has one there."""
    return getattr(shape, "foreign_fields", {})


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body, or a Refusal: too much in it, or the position of what is malformed."""
    check_shape(body)
    try:
        given = _DECODER.decode(body)
    except msgspec.DecodeError as error:
        raise invalid(None, f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise invalid(None, f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(given, dict):
        raise invalid(None, "The request body must be a JSON object.", code="invalid_json")
    return given


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)  # which equals 1 or 0


def _unsupported(path: str, neutral: tuple[Any, ...]) -> Refusal:
    remedy = f"leave it out or set it to {msgspec.json.encode(neutral[0]).decode()}" if neutral else "leave it out"
    return invalid(path, f"{path} is not supported yet with this value; {remedy}.", code="unsupported_parameter")


def _unknown(name: str, path: str, known: AbstractSet[str], meant: str | None) -> Refusal:
    nearest = [meant] if meant else difflib.get_close_matches(name[:_COMPARED], known, n=1)
    hint = f" Did you mean {path + nearest[0]}?" if nearest else ""
    return invalid(path + name, f"Unknown field {path + name}.{hint}", code="unknown_parameter")


def _wrong_type(error: msgspec.ValidationError, path: str) -> Refusal:
    missing = re.search(r"missing required field `(\w+)`", str(error))
    if missing:
        param = path + missing[1]
        return invalid(param, f"{param} is missing.", code="missing_parameter")
    reason, _, where = str(error).partition(" - at `$.")  # "Expected `int`, got `str` - at `$.max_tokens`"
    param = path + where.rstrip("`").replace("[...]", "")
    return invalid(param, f"{param} has a wrong type: {reason}.", code="invalid_type")
