"""A sequence as its request sees it: what is submitted, and the handle of what was.

Owns these types. Does not know rings' contents, or who runs a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from rbee.messages import FinishReason

if TYPE_CHECKING:
    from rbee.messages import Submit
    from rbee.sampling_params import SamplingParams
    from rbee.server.link.sinks import Account, DirectSink, Sink, TokenSink
    from rbee.transport import Outlet

Entry: TypeAlias = "tuple[Account, int]"  # whose account a sequence is on, and its place there


class DirectTarget(NamedTuple):
    """The drain writes the tokens through `outlet`; `sink` receives the events of its socket and the end."""

    sink: DirectSink
    outlet: Outlet


class Choice(NamedTuple):
    """One sequence of a request; for `report_cached` see `rbee.messages.Submit`. A DirectTarget times itself."""

    sampling: SamplingParams
    sink: TokenSink | DirectTarget
    report_cached: bool = False
    timed: bool = False  # its first token and gaps are counted: it is streamed
    prompt: list[int] | None = None  # token ids, where they are not those of the request's other choices


class SequenceOwner(Protocol):
    """Who has the ring of a sequence; each call is harmless after the sequence's end."""

    def cancel(self, ring: int, generation: int, reason: int) -> None: ...

    def pause(self, ring: int, generation: int) -> None: ...

    def resume(self, ring: int, generation: int) -> None: ...

    def orphan(self, ring: int, generation: int) -> None: ...

    def adopt(self, ring: int, generation: int) -> None: ...

    def redirect(self, ring: int, generation: int, sink: TokenSink | DirectTarget) -> None: ...


class SequenceHandle:
    """Handle of a submitted sequence. It has no reference to its sink, which has one to it: no cycle, no collector."""

    __slots__ = ("_generation", "_owner", "_ring", "orphaned", "paused")

    def __init__(self, owner: SequenceOwner, ring: int, generation: int) -> None:
        self.orphaned = self.paused = False
        self.move(owner, ring, generation)

    def move(self, owner: SequenceOwner, ring: int, generation: int) -> None:
        """Another owner has the sequence from now on."""
        self._owner = owner
        self._ring = ring
        self._generation = generation

    def cancel(self, reason: FinishReason = FinishReason.ABORT) -> None:
        """End the sequence for this reason; its sink is not called again. Harmless after the end."""
        self._owner.cancel(self._ring, self._generation, reason)

    def pause(self) -> None:
        """Leave the tokens in the ring until `resume`. Harmless after the end."""
        self.paused = True
        self._owner.pause(self._ring, self._generation)

    def resume(self) -> None:
        """Deliver what the ring holds, soon."""
        self.paused = False
        self._owner.resume(self._ring, self._generation)

    def orphan(self) -> None:
        """Pause it in the engine too: its client is gone and may come back. It is given up where room is needed."""
        self.orphaned = self.paused = True
        self._owner.orphan(self._ring, self._generation)

    def adopt(self) -> None:
        """Its client has come back; `resume` delivers. Harmless for one that is no orphan."""
        self.orphaned = False
        self._owner.adopt(self._ring, self._generation)

    def redirect(self, sink: TokenSink | DirectTarget) -> None:
        """Send the tokens to `sink` from now on. The ring must be paused, or have ended."""
        self._owner.redirect(self._ring, self._generation, sink)


@dataclass(slots=True, eq=False)
class Submitted:
    """What it takes to submit a sequence again."""

    record: Submit  # with the ring and generation of the last time
    target: TokenSink | DirectTarget
    timed: bool  # see `Choice`
    caller: int | None
    entry: Entry | None
    handle: SequenceHandle
    times: int = 1  # that it was submitted

    @property
    def sink(self) -> Sink:
        return self.target.sink if isinstance(self.target, DirectTarget) else self.target
