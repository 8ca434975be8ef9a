"""A service in simulated time: clients that come, are taken or refused, and come back."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from rbee.server.errors import Refusal
from rbee.server.link.admission import Admission, AdmissionControl, Requester

if TYPE_CHECKING:
    from collections.abc import Callable


class Job(NamedTuple):
    """What a client asks for: a prompt, and seconds of work behind its first token."""

    client: int
    seconds: float
    tokens: int = 1


class Advice(NamedTuple):
    """What a refused client was told at its first attempt, and how long it was until it was taken, both in seconds."""

    at: float
    told: int
    waited: float

    @property
    def is_good(self) -> bool:
        """Within a factor of two, above a second."""
        waited = max(self.waited, 1.0)
        return waited / 2 <= self.told <= waited * 2


class _Caller(NamedTuple):
    job: Job
    done: Callable[[], None]
    since: float
    told: int  # at first


class Service:
    """`num_rings` sequences at once; prompts are computed one after the other, `token_rate` (0: any) tokens a second.

    Refused clients wait in one line outside, and the first one is taken as soon as there is room. With `obeys` each
    comes back when it was told to instead, and newcomers may be faster.

    Attributes:
        now: seconds.
        place_seconds: sum of the seconds in which each place was taken.
        advice: of each client that was refused, when it has been taken.
        in_use: as the control asks for it, like the next two.
    """

    def __init__(self, limits: Admission, num_rings: int, *, token_rate: float = 0.0, obeys: bool = False) -> None:
        self.now = self.place_seconds = 0.0
        self.advice: list[Advice] = []
        self.in_use = self.sequences_waiting = self.queued_tokens = 0
        self._control = AdmissionControl(limits, self, num_rings, clock=lambda: self.now)
        self._free = list(range(num_rings))
        self._token_rate = token_rate
        self._obeys = obeys
        self._computed_at = 0.0  # when the prompts that are queued have been computed
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._outside: deque[_Caller] = deque()

    def has_begun(self, ring: int) -> bool:
        """Nobody is asked to give up a place here."""
        raise NotImplementedError(ring)

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let it happen so many seconds from now."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), event))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            before = self.now
            self.now, _, event = heapq.heappop(self._events)
            self.place_seconds += self.in_use * (self.now - before)
            event()

    def ask(self, job: Job, done: Callable[[], None] = lambda: None) -> None:
        """A client asks for the first time; `done` is called when its job has ended."""
        told = self._try(job, done)
        if told:
            caller = _Caller(job, done, self.now, told)
            if self._obeys:
                self.after(told, lambda: self._come_back(caller))
            else:
                self._outside.append(caller)

    def _come_back(self, caller: _Caller) -> None:
        told = self._try(caller.job, caller.done)
        if told:
            self.after(told, lambda: self._come_back(caller))
        else:
            self._note(caller)

    def _note(self, caller: _Caller) -> None:
        self.advice.append(Advice(caller.since, caller.told, self.now - caller.since))

    def _try(self, job: Job, done: Callable[[], None]) -> int:
        """Seconds after which it should come back; 0: it has been taken."""
        try:
            self._control.check(1, job.tokens, Requester(None, job.client))
        except Refusal as refusal:
            return refusal.retry_after or 0
        ring = self._free.pop()
        self.in_use += 1
        self._control.on_submitted(ring, job.tokens)
        prefill = 0.0
        if self._token_rate:
            self.queued_tokens += job.tokens
            self._computed_at = max(self._computed_at, self.now) + job.tokens / self._token_rate
            prefill = self._computed_at - self.now
            self.after(prefill, lambda: self._begin(job))
        self.after(prefill + job.seconds, lambda: self._end(ring, done))
        return 0

    def _begin(self, job: Job) -> None:
        self.queued_tokens -= job.tokens
        self._let_in()

    def _end(self, ring: int, done: Callable[[], None]) -> None:
        self.in_use -= 1
        self._free.append(ring)
        self._control.on_ended(ring)
        self._control.on_released(ring)
        self._let_in()
        done()

    def _let_in(self) -> None:
        while self._outside and not self._try(self._outside[0].job, self._outside[0].done):
            self._note(self._outside.popleft())
