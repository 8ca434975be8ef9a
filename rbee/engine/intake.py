"""What comes from outside between two steps: submissions, cancels, holds, deadlines and full rings.

Owns the live sequences until their one finish reason. Does not know what computes or samples.
"""

from __future__ import annotations

import array
import heapq
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rbee.engine import sampler
from rbee.engine.pool import Pool
from rbee.engine.reasoning_limit import ReasoningLimit
from rbee.engine.request_times import Moments
from rbee.engine.scheduling.sequence import PRIORITY_NS, Sequence
from rbee.messages import FinishReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rbee.engine.grammars import Constraint, Grammars
    from rbee.engine.publisher import Publisher
    from rbee.engine.request_times import RequestTimes
    from rbee.engine.scheduling.scheduler import Scheduler
    from rbee.messages import Submit
    from rbee.transport import Producer

logger = logging.getLogger(__name__)

_MAX_SCORED_TOKENS = 64  # of a prompt in one step: each takes a row of logits, as wide as the vocabulary
_MANY_DEADLINES = 64  # of requests that have ended


@dataclass(slots=True, eq=False)
class Live:
    """A sequence that has not ended, and what belongs to its ring."""

    sequence: Sequence  # the scheduler's
    row: sampler.Row  # its parameters, tokens and mask for the sampler
    num_side_records: int  # published with each of its tokens
    moments: Moments
    report_cached: bool  # its number of cached tokens is yet to be published, as its first record
    constraint: Constraint | None = None  # what its grammar says, if it has one
    reasoning: ReasoningLimit | None = None  # if its reasoning may not take as many tokens as it likes
    pool: Pool | None = None  # of its hidden states, if its result is a vector
    vector: NDArray[np.float32] | None = None  # once that is complete: what is left of it to publish
    num_published: int = 0  # values of it
    full_since_ns: int = 0  # since when its ring has been full, if it is paused
    ended: bool = False  # it has its finish reason

    def wait_for_mask(self, seconds: float) -> bool:
        """Wait so long until the mask of its next token is ready; whether it is."""
        return self.constraint is None or self.constraint.wait(seconds)


class Intake:
    """The live sequences and the submissions for the next step.

    A ring full for `slow_reader_timeout` seconds ends its sequence. A sequence whose grammar is being built waits for
    that, and others do not. `now_ns` is CLOCK_MONOTONIC.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        producer: Producer,
        publisher: Publisher,
        times: RequestTimes,
        *,
        vocab_size: int,
        max_model_len: int,
        slow_reader_timeout: float,
        grammars: Grammars,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.live: dict[int, Live] = {}  # by ring
        self._scheduler = scheduler
        self._producer = producer
        self._publisher = publisher
        self._times = times
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._grammars = grammars
        self._slow_reader_ns = round(slow_reader_timeout * 1e9)
        self._now_ns = now_ns
        self._submitted: deque[Submit] = deque()
        self._held: set[int] = set()  # rings, perhaps of sequences that have ended
        self._num_arrivals = 0
        self._deadlines: list[tuple[int, int, Live]] = []  # a heap: when, rank of submission, whose
        self._vectors: dict[int, Live] = {}  # by ring, those that a vector is left to publish of
        self._building: dict[int, Live] = {}  # by ring, those whose grammar is being built
        self.constrained: dict[int, Live] = {}  # by ring, those with a grammar
        self.budgeted: set[int] = set()  # rings of those with a ReasoningLimit

    @property
    def num_submitted(self) -> int:
        return len(self._submitted)

    @property
    def num_building(self) -> int:
        """Sequences that wait for their grammar."""
        return len(self._building)

    def submit(self, submission: Submit) -> None:
        """Queue a request for the next step."""
        self._held.discard(submission.ring)
        self._submitted.append(submission)

    def hold(self, ring: int) -> None:
        """Pause the sequence of `ring`, wherever it is, until `release`. That is no slowness of its reader."""
        self._held.add(ring)

    def release(self, ring: int) -> None:
        self._held.discard(ring)

    def take(self) -> None:
        now = self._now_ns()
        self.take_submissions()
        self._end_cancelled()
        self._end_overdue(now)
        if self._building:
            self._take_built()
        if full := self._pause_full_rings(now):
            self._end_slow_readers(full, now)

    def take_submissions(self) -> None:
        """Make the queued requests live; end those that cannot run with ERROR."""
        while self._submitted:
            submission = self._submitted.popleft()
            self._producer.open(submission.ring, submission.generation)
            problem = self._problem(submission)
            if problem is not None:
                logger.error("request %s cannot run: %s", submission.request_id, problem)
                self._publisher.finish(submission.ring, FinishReason.ERROR)
                continue
            self._add(submission)

    def finish(self, live: Live, reason: FinishReason, *, invalid_kv: bool = False) -> None:
        """End a sequence with the next commit; `invalid_kv`: see `BlockManager.release`."""
        sequence = live.sequence
        if live.vector is None:
            self._scheduler.remove(sequence, invalid_kv=invalid_kv)
        else:
            self._vectors.pop(sequence.ring)
        del self.live[sequence.ring]
        if live.constraint is not None:
            live.constraint.abandoned = True
            del self.constrained[sequence.ring]
            self._building.pop(sequence.ring, None)
        self.budgeted.discard(sequence.ring)
        live.ended = True
        self._times.on_end(live.moments)
        self._publisher.finish(sequence.ring, reason, sequence.num_cached_tokens)

    def fail_grammar(self, live: Live, problem: str) -> None:
        """End a sequence whose grammar cannot be followed."""
        logger.error("request %s ends: its grammar cannot be followed: %s", live.sequence.request_id, problem)
        self.finish(live, FinishReason.GRAMMAR)

    def take_vector(self, live: Live, vector: NDArray[np.float32]) -> None:
        """Publish the vector of a sequence from now on; its blocks are free."""
        self._scheduler.remove(live.sequence)
        live.vector = vector
        self._vectors[live.sequence.ring] = live

    def publish_vectors(self) -> None:
        """Publish as much of all vectors as their rings take; the end of one ends its sequence. Once per commit."""
        for ring, live in list(self._vectors.items()):
            assert live.vector is not None, "it has one"
            size = self._producer.free_space(ring)
            if size == 0:
                continue
            self._publisher.values(ring, live.num_published, live.vector[:size])
            live.num_published += size
            live.vector = live.vector[size:]
            if not len(live.vector):
                self.finish(live, FinishReason.STOP)

    def _add(self, submission: Submit) -> None:
        sampling = submission.sampling
        sequence = Sequence(
            request_id=submission.request_id,
            ring=submission.ring,
            rank=(submission.received_ns + submission.priority * PRIORITY_NS, self._num_arrivals),
            token_ids=array.array("I", submission.prompt),
            sampling=sampling,
            cache_salt=submission.cache_salt,
            pooling=submission.pooling,
        )
        row = sampler.Row(sampler.RowSampler(sampling), sequence.token_ids, sequence.num_prompt_tokens)
        moments = Moments(sequence, submission.received_ns)
        live = Live(sequence, row, sampling.num_logprobs or 0, moments, submission.report_cached)
        if submission.pooling is not None:
            live.pool = Pool(submission.pooling)
        if sampling.grammar:
            live.constraint = self._grammars.constrain(sampling)
            self.constrained[sequence.ring] = self._building[sequence.ring] = live
        if sampling.reasoning_budget is not None:
            live.reasoning = ReasoningLimit(sampling.reasoning_budget, sequence)
            self.budgeted.add(sequence.ring)
        self.live[sequence.ring] = live
        if submission.deadline_ns:
            self._drop_ended_deadlines()
            heapq.heappush(self._deadlines, (submission.deadline_ns, self._num_arrivals, live))
        self._scheduler.add(sequence)
        self._num_arrivals += 1

    def _problem(self, submission: Submit) -> str | None:
        """Why a submission cannot run, or None. The server checked it too; this check protects other requests."""
        size, remainder = divmod(len(submission.prompt), 4)
        if size == 0 or remainder:
            return f"its prompt is {len(submission.prompt)} bytes, which is no token ids."
        room = self._max_model_len - (submission.pooling is None)
        if size > room:
            return f"its prompt has {size} tokens, and at most {room} are possible."
        highest = int(np.frombuffer(submission.prompt, "<u4").max())
        if highest >= self._vocab_size:
            return f"its prompt has token {highest}, but the vocabulary ends at {self._vocab_size - 1}."
        sampling = submission.sampling
        records = 1 + (sampling.num_logprobs or 0) + (sampling.num_prompt_logprobs or 0) + submission.report_cached
        capacity = self._producer.free_space(submission.ring)
        if records > capacity:
            return f"it wants {records} records in a step, but its ring holds {capacity}."
        return sampler.invalid(sampling, self._vocab_size)

    def _end_cancelled(self) -> None:
        for ring in self._producer.take_cancelled():
            live = self.live.get(ring)
            if live is not None:  # else it was refused in this very step
                self.finish(live, FinishReason.ABORT)

    def _end_overdue(self, now: int) -> None:
        """End the sequences whose deadline has passed, also those that never ran."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, live = heapq.heappop(self._deadlines)
            if not live.ended:
                self.finish(live, FinishReason.DEADLINE)

    def _drop_ended_deadlines(self) -> None:
        """Free ended requests, which the heap would keep in memory until their deadlines."""
        if len(self._deadlines) > 2 * len(self.live) + _MANY_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if not entry[2].ended]
            heapq.heapify(self._deadlines)

    def _take_built(self) -> None:
        """Let those run whose grammar is built by now."""
        for ring, live in list(self._building.items()):
            constraint = live.constraint
            assert constraint is not None, "it is being built"
            if not constraint.built:
                continue
            del self._building[ring]
            if constraint.failure:
                self.fail_grammar(live, constraint.failure)
            else:
                live.row = live.row._replace(mask=constraint.mask)

    def _pause_full_rings(self, now: int) -> list[Live]:
        """Pause sequences whose ring is too full for a step and return them; bound the chunks of scored prompts.

        Those that are held, or whose grammar is being built, are paused too, and not returned: their time as slow
        readers begins when that is over.

        A step adds a token with its side records, or, for each token of a chunk but a prompt's last, the side records
        that score the next.
        """
        full = []
        for ring, live in self.live.items():
            sequence = live.sequence
            if ring in self._held or ring in self._building:
                sequence.paused, live.full_since_ns = True, now
                continue
            room = self._producer.free_space(ring) - live.num_side_records - live.report_cached
            if sequence.scores_prompt:
                room //= 1 + (sequence.sampling.num_prompt_logprobs or 0)
                sequence.max_chunk = min(room, _MAX_SCORED_TOKENS)
            else:
                sequence.max_chunk = 0
            if room > 0:
                sequence.paused = False
                continue
            full.append(live)
            if not sequence.paused:
                sequence.paused, live.full_since_ns = True, now
        return full

    def _end_slow_readers(self, full: list[Live], now: int) -> None:
        """End the sequences whose ring has been full without a break for the timeout."""
        for live in full:
            if now - live.full_since_ns >= self._slow_reader_ns:
                self.finish(live, FinishReason.SLOW_READER)
