"""The log of both processes: a line on stderr per event, as text or as JSON, with UTC time, process, level and logger.

Owns the two formats, and that nothing in a message begins a line or commands a terminal. Knows no event.
"""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rbee.standard_streams import LineWriter, printable

if TYPE_CHECKING:
    from collections.abc import Callable

LogFormat: TypeAlias = Literal["text", "json"]

_BARE = re.compile(r"[!#-<>-\[\]-~]+")  # a value that needs no quotes: visible ASCII without ", = and backslash


def configure(process: str, *, log_format: LogFormat = "text", debug: bool = False) -> None:
    """Log to stderr from now on; `process` is "server" or "engine", the level INFO or, with `debug`, DEBUG.

    A record's attribute `fields`, a dict, comes behind its message or as members of the object.
    """
    formatter: logging.Formatter = _JsonFormatter(process) if log_format == "json" else _TextFormatter(process)

    def note_dropped(number: int) -> str:
        message = "lines of the log are missing here: stderr took no more"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None)
        record.fields = {"dropped": number}
        return formatter.format(record)

    root = logging.getLogger()
    for handler in root.handlers:
        handler.close()
    handler = _Handler(note_dropped)
    handler.setFormatter(formatter)
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)


def flush() -> None:
    """Wait until the log is written, for as long as the end of a process may wait."""
    for handler in logging.getLogger().handlers:
        handler.flush()


class _Handler(logging.Handler):
    """Formats at once, and leaves the writing to another thread: the caller never waits for stderr."""

    def __init__(self, note_dropped: Callable[[int], str]) -> None:
        super().__init__()
        self._lines = LineWriter(2, note_dropped)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a message that cannot be formatted costs only itself
            self.handleError(record)
        else:
            self._lines.write(line)

    def flush(self) -> None:
        self._lines.flush()

    def close(self) -> None:
        self._lines.close()
        super().close()


class _TextFormatter(logging.Formatter):
    """`time process level logger: message name=value ...`; an exception follows in lines that are indented."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time_of(record), self._process, record.levelname, f"{record.name}:", printable(record.getMessage())]
        parts += [f"{name}={_text_value(value)}" for name, value in getattr(record, "fields", {}).items()]
        line = " ".join(parts)
        if exception := _exception_of(self, record):
            line += "".join(["\n    " + printable(text) for text in exception.split("\n")])
        return line


class _JsonFormatter(logging.Formatter):
    """One object: time, process, level, logger, message, the record's fields, and exception if there is one."""

    def __init__(self, process: str) -> None:
        import json  # noqa: PLC0415 - only who asks for JSON waits for it

        super().__init__()
        self._process = process
        self._encode = json.JSONEncoder(separators=(",", ":"), default=str).encode  # all but visible ASCII is escaped

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": _time_of(record),
            "process": self._process,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        content |= getattr(record, "fields", {})
        if exception := _exception_of(self, record):
            content["exception"] = exception
        return self._encode(content)


def _time_of(record: logging.LogRecord) -> str:
    seconds, milliseconds = divmod(int(record.created * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03d}Z"


def _exception_of(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    parts += [formatter.formatStack(record.stack_info)] if record.stack_info else []
    return "\n".join(parts)


def _text_value(value: Any) -> str:
    text = str(value)
    if _BARE.fullmatch(text):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(quoted)}"'
