"""Which requests are taken, of those that the engine could run, and when the others should come back.

Owns the limits of a server, what each API key holds, and the refusals. Does not know what a sequence does, nor how long
one takes (`rbee.server.link.waits`).
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rbee.server.errors import Refusal, RefusalKind, invalid
from rbee.server.link.waits import Line, ServiceTimes, TokenRate

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from rbee.server.link.orphans import Helps


@dataclass(frozen=True, kw_only=True)
class Admission:
    """The limits of a server. Each choice of a request counts as one; 0: no limit but the number of rings."""

    max_num_seqs: int = 0  # sequences that run at once
    max_queued_requests: int = 0  # that wait beside them
    max_queued_tokens: int = 0  # of the prompts that have not begun
    max_requests_per_key: int = 0  # held at once by one API key


class Requester(NamedTuple):
    """Who asks."""

    caller: int | None = None  # index of the API key; None: there are no keys
    address: Hashable = None  # of the connection; None: unknown

    @property
    def in_line(self) -> Hashable:
        """Who waits for a place; None: nobody in particular."""
        return None if self.address is None else self

    @property
    def holder(self) -> Hashable:
        """Whose share of what is divided fairly this counts in: the API key's, else that of all of its address."""
        if self.caller is not None:
            return self.caller
        return self.address[0] if isinstance(self.address, tuple) else self.address


ANYONE = Requester()


class Load(Protocol):
    """What the transport counts; see `rbee.transport.Consumer`."""

    @property
    def in_use(self) -> int: ...

    @property
    def sequences_waiting(self) -> int: ...

    @property
    def queued_tokens(self) -> int: ...

    def has_begun(self, ring: int) -> bool: ...


_LARGEST_SHARE = 4  # a request of many sequences gets one of so many places
_KEPT_OF = 32  # places, of which one may be empty for those who were told to come back


class _Shortage(NamedTuple):
    """Why there is no room."""

    message: str
    code: str
    helps: Helps
    line: Line
    asked: float  # for this and the next see `Line.join`
    wait_behind: Callable[[float], float]


class _Key:
    """What one API key holds."""

    def __init__(self) -> None:
        self.num_open = 0  # sequences that have not ended
        self.times = ServiceTimes()  # of its rings, which outlast a cancelled sequence by a step
        self.line = Line()


class AdmissionControl:
    """The limits of one epoch of the engine, with `num_rings`. `clock` is in seconds."""

    def __init__(
        self, limits: Admission, load: Load, num_rings: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._load = load
        self._num_rings = num_rings
        self._clock = clock
        self._callers: list[int | None] = [None] * num_rings  # by ring
        self._keys: defaultdict[int, _Key] = defaultdict(_Key)  # by caller
        self._times = ServiceTimes()
        self._places, self._queue = Line(), Line()
        self._rate = TokenRate()
        self._submitted_tokens = 0

    def who_helps(self, num_choices: int, num_tokens: int, requester: Requester = ANYONE) -> Helps | None:
        """Whose end would make room for such a request; None: there is room.

        Raises:
            Refusal: there is never room for so many choices.
        """
        shortage = self._shortage(num_choices, num_tokens, requester)
        return None if shortage is None else shortage.helps

    def check(self, num_choices: int, num_tokens: int, requester: Requester = ANYONE) -> None:
        """Let a request pass whose choices have so many prompt tokens together.

        Raises:
            Refusal: there is no room now, or for so many choices never.
        """
        shortage = self._shortage(num_choices, num_tokens, requester)
        who = requester.in_line
        if shortage is None:
            self._places.leave(who)
            self._queue.leave(who)
            if requester.caller is not None:
                self._keys[requester.caller].line.leave(who)
            return
        wait = shortage.line.join(who, shortage.asked, shortage.wait_behind, self._clock())
        raise Refusal(RefusalKind.OVERLOADED, shortage.message, code=shortage.code, retry_after=wait)

    def most_at_once(self, requester: Requester) -> int:
        """Sequences that one request of many may have at a time: a share of the places, and what its key has left.

        1 at least, for which there may be no room.
        """
        most = self._num_rings // _LARGEST_SHARE
        limit = self._limits.max_requests_per_key
        if limit and requester.caller is not None:
            most = min(most, limit - self._keys[requester.caller].num_open)
        return max(most, 1)

    def on_submitted(self, ring: int, num_tokens: int, caller: int | None = None) -> None:
        """A sequence with so many prompt tokens has this ring from now on."""
        now = self._clock()
        self._callers[ring] = caller
        self._times.begin(ring, now)
        self._submitted_tokens += num_tokens
        if caller is not None:
            self._keys[caller].num_open += 1
            self._keys[caller].times.begin(ring, now)

    def on_ended(self, ring: int) -> None:
        """Its sequence has ended for its client."""
        caller = self._callers[ring]
        if caller is not None:
            self._keys[caller].num_open -= 1

    def on_released(self, ring: int) -> None:
        """The ring is free again."""
        now, caller = self._clock(), self._callers[ring]
        self._times.end(ring, now)
        if caller is not None:
            self._keys[caller].times.end(ring, now)

    def held(self) -> Counter[int]:
        """Open sequences by caller."""
        return Counter({caller: key.num_open for caller, key in self._keys.items() if key.num_open})

    def _shortage(self, num_choices: int, num_tokens: int, requester: Requester) -> _Shortage | None:
        kept = self._kept(requester)
        return (
            self._of_key(num_choices, requester.caller)
            or self._of_rings(num_choices, kept)
            or self._of_queue(num_choices, kept)
            or self._of_tokens(num_tokens)
        )

    def _kept(self, requester: Requester) -> int:
        """Places that are not for this request, because others were told to come back by now.

        Those who do not come back leave them empty for a while. That costs nothing while sequences wait in the engine;
        without them it is one place of 32 at most.
        """
        limits = self._limits
        places = self._num_rings
        if limits.max_queued_requests:
            places = min(places, limits.max_num_seqs + limits.max_queued_requests)
        most = self._load.sequences_waiting + places // _KEPT_OF
        return int(min(self._places.due(requester.in_line, self._clock()), most))

    def _of_key(self, num_choices: int, caller: int | None) -> _Shortage | None:
        """Rings of cancelled sequences are in use for another step: twice the limit bounds what cancelling gains."""
        limit = self._limits.max_requests_per_key
        if caller is None or not limit:
            return None
        if num_choices > limit:
            raise invalid(
                "n",
                f"The request asks for {num_choices} choices (n for each prompt), but an API key may hold {limit} "
                "(--max-requests-per-key).",
            )
        key = self._keys[caller]
        needed = max(key.num_open + num_choices - limit, len(key.times) + num_choices - 2 * limit)
        if needed <= 0:
            return None
        return _Shortage(
            f"Your API key already holds {key.num_open} requests (each choice counts), of {limit} that a key may hold "
            "at once (--max-requests-per-key). Wait for one to end.",
            "key_limit",
            lambda ring: self._callers[ring] == caller,
            key.line,
            num_choices,
            lambda ahead: key.times.until_free(needed, ahead, self._clock()),
        )

    def _of_rings(self, num_choices: int, kept: int) -> _Shortage | None:
        in_use = self._load.in_use
        needed = in_use + kept + num_choices - self._num_rings
        if needed <= 0:
            return None
        message = (
            f"The server already holds {in_use} requests (each choice counts), of {self._num_rings} that it was "
            f"started for (--max-requests){_kept_for_others(kept)}. Try again later."
        )
        return self._of_places(message, needed, num_choices)

    def _of_queue(self, num_choices: int, kept: int) -> _Shortage | None:
        """With several choices the queue may pass its limit, by all but one.

        The engine's count of its queue is up to one step old; the rings in use bound a burst within that step. They
        include those whose last tokens wait for a slow reader, though these are no work for the engine.
        """
        limit = self._limits.max_queued_requests
        if not limit:
            return None
        running = self._limits.max_num_seqs
        needed = 1 + kept + max(self._load.in_use - running - limit, self._load.sequences_waiting - limit)
        if needed <= 0:
            return None
        message = (
            f"{limit - kept} requests or more wait for the engine already, of {limit} that may (--max-queued-requests)"
            f"{_kept_for_others(kept)}. Try again later."
        )
        return self._of_places(message, needed, num_choices)

    def _of_places(self, message: str, needed: int, num_choices: int) -> _Shortage:
        return _Shortage(
            message,
            "queue_full",
            lambda _: True,
            self._places,
            num_choices,
            lambda ahead: self._times.until_free(needed, ahead, self._clock()),
        )

    def _of_tokens(self, num_tokens: int) -> _Shortage | None:
        """A request that is longer than the limit is taken when nothing waits."""
        limit = self._limits.max_queued_tokens
        if not limit:
            return None
        queued = self._load.queued_tokens
        self._rate.observe(self._clock(), self._submitted_tokens, queued)
        if not queued or queued + num_tokens <= limit:
            return None
        needed, period = min(queued, queued + num_tokens - limit), self._rate.period
        return _Shortage(
            f"The prompts that wait for the engine have {queued} tokens already, and with the {num_tokens} of this "
            f"request they exceed {limit} (--max-queued-tokens). Try again later.",
            "queue_full",
            lambda ring: not self._load.has_begun(ring),
            self._queue,
            num_tokens,
            lambda ahead: (needed + ahead) * period,
        )


def _kept_for_others(kept: int) -> str:
    return f"; kept for clients that were told to come back by now: {kept}" if kept else ""
