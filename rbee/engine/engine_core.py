"""One engine step, and what an ended sequence means.

Owns the set of live sequences, how long a full ring may keep one alive, and their deadlines. Does not know processes,
sockets or what computes; the loop around it is `process`, which also steps now and then when all that live are paused.
"""

from __future__ import annotations

import array
import heapq
import itertools
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rbee.engine import sampler
from rbee.engine.input_batch import InputBatch
from rbee.engine.scheduling.sequence import PRIORITY_NS, Sequence
from rbee.messages import FinishReason, Stats

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rbee.engine.publisher import Publisher
    from rbee.engine.runners.choice import ModelRunner
    from rbee.engine.scheduling.scheduler import Scheduler
    from rbee.engine.scheduling.step_cost import StepCost
    from rbee.messages import Submit
    from rbee.transport import Producer

logger = logging.getLogger(__name__)

_MAX_SCORED_TOKENS = 64  # of a prompt in one step: each takes a row of logits, as wide as the vocabulary
_MANY_DEADLINES = 64  # of requests that have ended


class PhaseTimes(NamedTuple):
    """Where the time of steps goes, each in ns since the start; a step without anything to run counts nowhere."""

    steps: int = 0
    schedule: int = 0
    prepare: int = 0
    forward: int = 0
    sample: int = 0
    publish: int = 0


class EngineCore:
    """Turns submissions into published tokens, one step at a time; every submission ends with one finish reason."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        producer: Producer,
        publisher: Publisher,
        *,
        step_cost: StepCost,
        slow_reader_timeout: float,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Start with nothing to do.

        Args:
            runner: computes the logits.
            scheduler: decides who runs.
            producer: of the arena; it says which rings are full and which requests are cancelled.
            publisher: takes what a step has to say.
            step_cost: says how many tokens of prompts a step can take beside those that decode.
            slow_reader_timeout: seconds after which a ring that is full without a break ends its sequence.
            now_ns: the clock for that, and for deadlines.
        """
        self._slow_reader_ns = round(slow_reader_timeout * 1e9)
        self._now_ns = now_ns
        self._runner = runner
        self._scheduler = scheduler
        self._producer = producer
        self._publisher = publisher
        self._step_cost = step_cost
        self._submitted: deque[Submit] = deque()
        self._live: dict[int, Sequence] = {}  # by ring
        self._rows: dict[int, sampler.Row] = {}  # by ring: what the sampler needs of each
        self._num_side_records: dict[int, int] = {}  # by ring: with each token, for those that get any
        self._to_report: dict[int, Sequence] = {}  # by ring: whose number of cached tokens is yet to be published
        self._deadlines: list[tuple[int, int, Sequence]] = []  # a heap: when, rank of submission, whose
        self._num_arrivals = 0
        self.times = PhaseTimes()

    def submit(self, submission: Submit) -> None:
        """Take a request; the next step looks at it."""
        self._submitted.append(submission)

    def step(self) -> bool:
        """One step. False when there was nothing to do: no sequence, or all of them wait for ring space."""
        started = time.monotonic_ns()
        now = self._now_ns()
        self._take_submissions()
        self._take_cancels()
        self._end_overdue(now)
        self._look_at_rings(now)
        budget = self._step_cost.prompt_budget(self._scheduler.num_decodes, self._scheduler.num_prompts)
        scheduled = self._scheduler.schedule(budget)
        if not scheduled:
            return self._publisher.commit()

        chosen = time.monotonic_ns()
        batch = InputBatch.build(scheduled, self._scheduler.block_manager.block_size)
        prepared = time.monotonic_ns()
        logits = self._runner.execute(batch)
        computed = time.monotonic_ns()
        self._scheduler.update(scheduled)
        self._report_cached()
        num_sampling = len(batch.sampling)
        sampled = sampler.sample(
            logits[:num_sampling],
            [self._rows[sequence.ring] for sequence in batch.sampling],
            most_logprobs=max(self._num_side_records.values(), default=0),
            pool=self._runner.pool,
        )
        self._score_prompts(batch, logits[num_sampling:])
        drawn = time.monotonic_ns()
        self._take_tokens(batch, sampled)
        self._publisher.commit()
        self._count(batch, started, chosen, prepared, computed, drawn, time.monotonic_ns())
        return True

    def end_all(self, reason: FinishReason) -> None:
        """End every sequence, also those only submitted, and publish that."""
        self._take_submissions()
        for sequence in list(self._live.values()):
            self._finish(sequence, reason)
        self._publisher.commit()

    def stats(self) -> Stats:
        """Where things stand between two steps."""
        blocks = self._scheduler.block_manager
        return Stats(
            num_blocks=blocks.num_blocks,
            num_free_blocks=blocks.num_free,
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting) + len(self._submitted),
            num_preemptions=self._scheduler.num_preemptions,
            num_steps=self.times.steps,
            num_prompt_tokens=blocks.prefix_queries,
            num_cached_prompt_tokens=blocks.prefix_hits,
        )

    def _take_submissions(self) -> None:
        while self._submitted:
            submission = self._submitted.popleft()
            self._producer.open(submission.ring, submission.generation)
            problem = self._problem(submission)
            if problem is not None:
                logger.error("request %s cannot run: %s", submission.request_id, problem)
                self._publisher.finish(submission.ring, FinishReason.ERROR)
                continue
            sequence = Sequence(
                request_id=submission.request_id,
                ring=submission.ring,
                rank=(submission.received_ns + submission.priority * PRIORITY_NS, self._num_arrivals),
                token_ids=array.array("I", submission.prompt),
                sampling=submission.sampling,
                deadline_ns=submission.deadline_ns,
                cache_salt=submission.cache_salt,
            )
            self._live[sequence.ring] = sequence
            self._rows[sequence.ring] = sampler.Row(
                sampler.RowSampler(sequence.sampling), sequence.token_ids, sequence.num_prompt_tokens
            )
            if sequence.sampling.num_logprobs:
                self._num_side_records[sequence.ring] = sequence.sampling.num_logprobs
            if submission.report_cached:
                self._to_report[sequence.ring] = sequence
            if sequence.deadline_ns:
                self._forget_ended_deadlines()
                heapq.heappush(self._deadlines, (sequence.deadline_ns, self._num_arrivals, sequence))
            self._scheduler.add(sequence)
            self._num_arrivals += 1

    def _problem(self, submission: Submit) -> str | None:
        """Why a submission cannot run, or None. The server checks first; this keeps a mistake from hurting others."""
        size, remainder = divmod(len(submission.prompt), 4)
        if size == 0 or remainder:
            return f"its prompt is {len(submission.prompt)} bytes, which is no token ids."
        if size + 1 > self._runner.max_model_len:
            return f"its prompt has {size} tokens, and with one more exceeds the limit of {self._runner.max_model_len}."
        highest = int(np.frombuffer(submission.prompt, "<u4").max())
        if highest >= self._runner.vocab_size:
            return f"its prompt has token {highest}, but the vocabulary ends at {self._runner.vocab_size - 1}."
        sampling = submission.sampling
        records = 1 + (sampling.num_logprobs or 0) + (sampling.num_prompt_logprobs or 0) + submission.report_cached
        capacity = self._producer.free_space(submission.ring)
        if records > capacity:
            return f"it wants {records} records in a step, but its ring holds {capacity}."
        return sampler.invalid(sampling, self._runner.vocab_size)

    def _take_cancels(self) -> None:
        for ring in self._producer.take_cancelled():
            sequence = self._live.get(ring)
            if sequence is not None:  # else it was refused in this very step
                self._finish(sequence, FinishReason.ABORT)

    def _end_overdue(self, now: int) -> None:
        """End the sequences whose deadline has come, also those that never ran."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, sequence = heapq.heappop(self._deadlines)
            if self._live.get(sequence.ring) is sequence:
                self._finish(sequence, FinishReason.DEADLINE)

    def _forget_ended_deadlines(self) -> None:
        """Most requests end long before their deadline, which would keep them in memory; now and then look for them."""
        if len(self._deadlines) > 2 * len(self._live) + _MANY_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if self._live.get(entry[2].ring) is entry[2]]
            heapq.heapify(self._deadlines)

    def _look_at_rings(self, now: int) -> None:
        """Pause the sequences whose ring is too full for a step, and end those that have waited for too long.

        A step adds a token with its side records, or for each token of a chunk but a prompt's last one those of the
        next.
        """
        for ring, sequence in list(self._live.items()):
            room = self._producer.free_space(ring) - self._num_side_records.get(ring, 0) - (ring in self._to_report)
            if sequence.scores_prompt:
                room //= 1 + (sequence.sampling.num_prompt_logprobs or 0)
                sequence.max_chunk = min(room, _MAX_SCORED_TOKENS)
            else:
                sequence.max_chunk = 0
            if room > 0:
                sequence.paused = False
            elif not sequence.paused:
                sequence.paused, sequence.paused_ns = True, now
            elif now - sequence.paused_ns >= self._slow_reader_ns:
                self._finish(sequence, FinishReason.SLOW_READER)

    def _report_cached(self) -> None:
        """For those that have run for the first time and want it: how much of their prompt they found in the cache."""
        for ring, sequence in list(self._to_report.items()):
            if sequence.num_computed_tokens:
                self._publisher.number(ring, sequence.num_cached_tokens)
                del self._to_report[ring]

    def _score_prompts(self, batch: InputBatch, logits: NDArray[np.float32]) -> None:
        """Publish the logprobs of the prompt tokens that this step has scored; `logits` has a row for each."""
        first = 0
        for _, sequence, start, end in batch.scoring:
            rows = logits[first : first + end - start]
            first += end - start
            token_ids = np.array(sequence.token_ids[start:end], np.uint32)
            num_logprobs = sequence.sampling.num_prompt_logprobs or 0
            scored = sampler.score(rows, token_ids, num_logprobs, pool=self._runner.pool)
            if np.isnan(scored.logprobs).any():
                self._fail(sequence)
                continue
            self._publisher.side_records(
                sequence.ring, token_ids, scored.logprobs, top_ids=scored.top_ids, top_logprobs=scored.top_logprobs
            )
            sequence.num_scored_tokens = end

    def _take_tokens(self, batch: InputBatch, sampled: sampler.Sampled) -> None:
        """Append what was sampled, publish it, and end the sequences that this ends."""
        taken = []
        for row, (sequence, token, valid) in enumerate(
            zip(batch.sampling, sampled.token_ids.tolist(), sampled.valid.tolist(), strict=True)
        ):
            if self._live.get(sequence.ring) is not sequence:  # failed when its prompt was scored
                continue
            if not valid:
                self._fail(sequence)
                continue
            taken.append(row)
            sequence.token_ids.append(token)
            if token in sequence.sampling.stop_token_ids:
                self._finish(sequence, FinishReason.STOP)
            elif (
                sequence.num_output_tokens == sequence.sampling.max_tokens
                or sequence.num_tokens == self._runner.max_model_len
            ):
                self._finish(sequence, FinishReason.LENGTH)
        self._publish(batch, sampled, taken)

    def _publish(self, batch: InputBatch, sampled: sampler.Sampled, rows: list[int]) -> None:
        """Publish the tokens of these of the sampling rows."""
        if not rows:
            return
        if len(rows) == len(batch.sampling):  # as a rule
            taken: slice | list[int] = slice(None)
        else:
            taken = rows
        rings = np.array([batch.sampling[row].ring for row in rows], np.uint32)
        tokens, logprobs = sampled.token_ids[taken], sampled.logprobs[taken]
        if sampled.top_ids.shape[1] == 0:
            self._publisher.tokens(rings, tokens, logprobs)
            return
        num_side_records = np.array([batch.sampling[row].sampling.num_logprobs or 0 for row in rows])
        self._publisher.tokens_with_side_records(
            rings,
            tokens,
            logprobs,
            top_ids=sampled.top_ids[taken],
            top_logprobs=sampled.top_logprobs[taken],
            num_side_records=num_side_records,
        )

    def _fail(self, sequence: Sequence) -> None:
        """End a sequence whose logits leave nothing to draw, and let nobody share what it computed."""
        logger.error("request %s ends: its logits leave no token to draw.", sequence.request_id)
        self._finish(sequence, FinishReason.ERROR, poisoned=True)

    def _finish(self, sequence: Sequence, reason: FinishReason, *, poisoned: bool = False) -> None:
        self._scheduler.remove(sequence, poisoned=poisoned)
        del self._live[sequence.ring]
        del self._rows[sequence.ring]
        self._num_side_records.pop(sequence.ring, None)
        self._to_report.pop(sequence.ring, None)
        self._publisher.finish(sequence.ring, reason, sequence.num_cached_tokens)

    def _count(self, batch: InputBatch, *moments: int) -> None:
        """Learn from a step: `moments` are when it began and when each of its phases ended."""
        phases = (end - start for start, end in itertools.pairwise(moments))
        self.times = PhaseTimes(*(sum(pair) for pair in zip(self.times, (1, *phases), strict=True)))
        seconds = (moments[-1] - moments[0]) / 1e9
        self._step_cost.observe(batch.num_decodes, len(batch.token_ids) - batch.num_decodes, seconds)
