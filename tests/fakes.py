"""Stand-ins, written by hand, for what a test cannot have or cannot look into."""

from __future__ import annotations


class RecordingWriter:
    """A StreamWriter without a socket: keeps what is written."""

    descriptor = None

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.paused = False
        self.closed = False
        self.listener: object = None
        self.aborted = False

    def write(self, frames: bytes) -> None:
        """Keep one write."""
        assert frames, "an empty chunk would end the response"
        self.written.append(frames)

    def open(self, listener: object, *, direct: bool = False) -> None:
        """Keep the listener."""
        assert not direct, "there is no socket"
        self.listener = listener

    def close(self) -> None:
        """Forget the listener."""
        self.listener = None

    def abort(self) -> None:
        """Note it."""
        self.aborted = True


class RecordingStream:
    """A TokenStream without an engine: keeps what its owner asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def cancel(self) -> None:
        """Note it."""
        self.calls.append("cancel")

    def pause(self) -> None:
        """Note it."""
        self.calls.append("pause")

    def resume(self) -> None:
        """Note it."""
        self.calls.append("resume")


class RecordingSink:
    """A TokenSink that keeps what it is given, and fails on demand."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken
        self.token_ids: list[int] = []
        self.commit_ns: list[int] = []
        self.ends: list[object] = []

    def deliver(self, token_ids: list[int], commit_ns: list[int], reason: int) -> None:
        """Keep the tokens, and the reason if it is one."""
        if self.broken:
            raise RuntimeError("this sink is broken")
        self.token_ids += token_ids
        self.commit_ns += commit_ns
        if reason:
            self.ends.append(reason)

    def fail(self, error: Exception) -> None:
        """Keep the error."""
        self.ends.append(error)
