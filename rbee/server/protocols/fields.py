"""From a request's bytes to a struct, or a Refusal that names the field.

Owns the rule that no field is silently ignored: a field is read, listed in `FieldReader.ignored`, or refused. Does not
know which fields a protocol has, or what they mean.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from rbee.server.errors import Refusal, invalid
from rbee.server.protocols.json_shape import check_shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet

T = TypeVar("T")

_COMPARED = 64  # characters of an unknown field's name that are compared with known ones, which are shorter


def _read_float(text: str) -> float:
    return float(text)


# msgspec itself takes up to 10 us for a number that is hard to round, a million of them without a break. Between two
# calls of a function in Python other threads can run.
_DECODER = msgspec.json.Decoder(float_hook=_read_float)


class FieldReader:
    """Turns JSON objects into structs, field by field.

    `ignored` collects the paths of fields that are not followed. With `lenient` these are unknown fields too.
    """

    def __init__(self, *, lenient: bool) -> None:
        self._lenient = lenient
        self.ignored: list[str] = []

    def read(
        self,
        given: dict[str, Any],
        shape: type[T],
        neutral: Mapping[str, tuple[Any, ...]],
        path: str = "",
        *,
        advisory: AbstractSet[str] = frozenset(),
        dispensable: AbstractSet[str] = frozenset(),
    ) -> T:
        """`given` as a `shape`. Null means absent, and a whole float is an integer where one is expected.

        Args:
            given: of the request.
            shape: a struct.
            neutral: fields that are known and not supported, each with the values that ask for nothing; others are
                refused.
            path: where `given` stands in the request, for messages: "" or "messages[0].".
            advisory: fields that cannot change the answer. They are listed in `ignored`; those of `shape` are read too.
            dispensable: those among `neutral` that `lenient` ignores.

        Raises:
            Refusal: an unknown field, an unsupported one, or a wrong type.
        """
        known = _names(shape)  # type: ignore[arg-type] # a class is hashable
        fields: dict[str, Any] = {}
        for name, value in given.items():
            if value is None:
                continue
            if name in advisory:
                self.ignored.append(path + name)
            if name in known:
                fields[name] = value
            elif name in neutral:
                if any(value == other and _is_flag(value) == _is_flag(other) for other in neutral[name]):
                    continue
                if not (self._lenient and name in dispensable):
                    raise _unsupported(path + name, neutral[name])
                self.ignored.append(path + name)
            elif name in advisory:
                continue
            elif self._lenient:
                self.ignored.append(path + name)
            else:
                raise _unknown(name, path, known | neutral.keys() | advisory, _foreign(shape).get(name))
        try:
            return convert(fields, shape)
        except msgspec.ValidationError as error:
            raise _wrong_type(error, path) from None


def respelled(given: dict[str, Any], synonyms: Mapping[str, str]) -> dict[str, Any]:
    """`given` with the usual name of each field that came under another one of `synonyms`; null is absent.

    Raises:
        Refusal: both are there, with different values.
    """
    if synonyms.keys().isdisjoint(given):
        return given
    result = {name: value for name, value in given.items() if name not in synonyms}
    for name, usual in synonyms.items():
        value = given.get(name)
        if value is None:
            continue
        if result.get(usual) not in (None, value):
            raise invalid(name, f"{name} and {usual} are the same parameter and differ; send {usual} only.")
        result[usual] = value
    return result


@contextlib.contextmanager
def in_words_of(given: Mapping[str, Any], synonyms: Mapping[str, str]) -> Iterator[None]:
    """A refusal that is raised inside names each field as `given` does, which is not `respelled` yet.

    What its message quotes of the request stays.
    """
    try:
        yield
    except Refusal as refusal:
        sent = {
            usual: name for name, usual in synonyms.items() if given.get(name) is not None and given.get(usual) is None
        }
        if not sent:
            raise
        quoted_or_named = re.compile(rf"(?<!\w)'[^']*'|\b({'|'.join(map(re.escape, sent))})\b")

        def as_sent(text: str) -> str:
            return quoted_or_named.sub(lambda found: sent.get(found[1], found[0]), text)

        raise Refusal(
            refusal.kind,
            as_sent(refusal.message),
            param=refusal.param and as_sent(refusal.param),
            code=refusal.code,
            retry_after=refusal.retry_after,
        ) from None


def convert(value: Any, shape: type[T]) -> T:
    """As `msgspec.convert`, but a whole float (1.0) is an integer where one is expected, alone or in lists.

    A member of an object within `value` stays what it is.
    """
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError:
        if isinstance(value, dict):
            whole: Any = {name: _whole(member) for name, member in value.items()}
        else:
            whole = _whole(value)
        return msgspec.convert(whole, shape)


def _whole(value: Any, depth: int = 2) -> Any:
    """With its whole floats as integers, down to so many lists: those of prompts have two."""
    if isinstance(value, list) and depth:
        return [_whole(item, depth - 1) if isinstance(item, float | list) else item for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


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


def decode_value(text: str, param: str) -> Any:
    """The JSON value in a string of the request, bounded as the request itself, or a Refusal that names `param`."""
    encoded = text.encode(errors="surrogatepass")
    check_shape(encoded)
    try:
        return _DECODER.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(param, f"{param} is not valid JSON: {error}.", code="invalid_json") from None


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
