"""One engine step, and what an ended sequence means.

Owns the set of live sequences, and how long a full ring may keep one alive. Does not know processes, sockets or how
long a step takes; the loop around it is `process`, which also steps now and then when all that live are paused.
"""

from __future__ import annotations

import array
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from rbee.engine import sampler
from rbee.engine.input_batch import InputBatch
from rbee.engine.sequence import Sequence
from rbee.messages import FinishReason, Stats

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.engine.model_runner import ModelRunner
    from rbee.engine.publisher import Publisher
    from rbee.engine.scheduler import Scheduler
    from rbee.messages import Submit
    from rbee.transport import Producer

logger = logging.getLogger(__name__)


class EngineCore:
    """Turns submissions into published tokens, one step at a time; every submission ends with one finish reason."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        producer: Producer,
        publisher: Publisher,
        *,
        slow_reader_timeout: float,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Start with nothing to do.

        Args:
            runner: computes the logits.
            scheduler: decides who runs.
            producer: of the arena; it says which rings are full and which requests are cancelled.
            publisher: takes what a step has to say.
            slow_reader_timeout: seconds after which a ring that is full without a break ends its sequence.
            now_ns: the clock for that.
        """
        self._slow_reader_ns = round(slow_reader_timeout * 1e9)
        self._now_ns = now_ns
        self._runner = runner
        self._scheduler = scheduler
        self._producer = producer
        self._publisher = publisher
        self._submitted: deque[Submit] = deque()
        self._live: dict[int, Sequence] = {}  # by ring
        self._num_arrivals = 0
        self._num_steps = 0

    def submit(self, submission: Submit) -> None:
        """Take a request; the next step looks at it."""
        self._submitted.append(submission)

    def step(self) -> bool:
        """One step. False when there was nothing to do: no sequence, or all of them wait for ring space."""
        self._take_submissions()
        self._take_cancels()
        self._note_full_rings()

        scheduled = self._scheduler.schedule()
        if not scheduled:
            return self._publisher.commit()

        batch = InputBatch.build(scheduled, self._scheduler.block_manager.block_size)
        logits = self._runner.execute(batch)
        sampled = sampler.sample(
            logits, sampler.SamplingBatch.of((sequence.sampling, sequence.num_tokens) for sequence in batch.sampling)
        )
        self._scheduler.update(scheduled)
        self._take_tokens(batch, sampled)

        rings = np.array([sequence.ring for sequence in batch.sampling], np.uint32)[sampled.valid]
        self._publisher.commit(rings, sampled.token_ids[sampled.valid], sampled.logprobs[sampled.valid])
        self._num_steps += 1
        return True

    def end_all(self, reason: FinishReason) -> None:
        """End every sequence, also those only submitted, and publish that."""
        self._take_submissions()
        for sequence in list(self._live.values()):
            self._finish(sequence, reason)
        self._publisher.commit()

    def stats(self) -> Stats:
        """Where things stand between two steps."""
        return Stats(
            num_blocks=self._scheduler.block_manager.num_blocks,
            num_free_blocks=self._scheduler.block_manager.num_free,
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting) + len(self._submitted),
            num_preemptions=self._scheduler.num_preemptions,
            num_steps=self._num_steps,
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
                arrival=self._num_arrivals,
                token_ids=array.array("I", submission.prompt),
                sampling=submission.sampling,
            )
            self._num_arrivals += 1
            self._live[sequence.ring] = sequence
            self._scheduler.add(sequence)

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
        return sampler.invalid(submission.sampling)

    def _take_cancels(self) -> None:
        for ring in self._producer.take_cancelled():
            sequence = self._live.get(ring)
            if sequence is not None:  # else it was refused in this very step
                self._finish(sequence, FinishReason.ABORT)

    def _note_full_rings(self) -> None:
        """Pause the sequences whose ring is full, and end those that have waited for a reader for too long."""
        now = self._now_ns()
        for ring, sequence in list(self._live.items()):
            if self._producer.free_space(ring) != 0:
                sequence.paused = False
            elif not sequence.paused:
                sequence.paused, sequence.paused_ns = True, now
            elif now - sequence.paused_ns >= self._slow_reader_ns:
                self._finish(sequence, FinishReason.DEADLINE)

    def _take_tokens(self, batch: InputBatch, sampled: sampler.Sampled) -> None:
        """Append what was sampled, and end the sequences that this ends."""
        for sequence, token, valid in zip(
            batch.sampling, sampled.token_ids.tolist(), sampled.valid.tolist(), strict=True
        ):
            if not valid:
                logger.error("request %s ends: its logits are not finite numbers.", sequence.request_id)
                self._finish(sequence, FinishReason.ERROR)
                continue
            sequence.token_ids.append(token)
            if token in sequence.sampling.stop_token_ids:
                self._finish(sequence, FinishReason.STOP)
            elif (
                sequence.num_output_tokens == sequence.sampling.max_tokens
                or sequence.num_tokens == self._runner.max_model_len
            ):
                self._finish(sequence, FinishReason.LENGTH)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._scheduler.remove(sequence)
        del self._live[sequence.ring]
        self._publisher.finish(sequence.ring, reason)
