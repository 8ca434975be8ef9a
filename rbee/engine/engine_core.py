"""One engine step: take -> schedule -> execute -> sample -> update -> publish.

Owns the order of a step, and what ends a sequence from within: a stop token, its length, its grammar, logits that are
not finite.
Does not know processes, sockets or what computes.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rbee.engine import sampler
from rbee.engine.input_batch import InputBatch
from rbee.engine.step_clock import StepClock
from rbee.messages import FinishReason

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rbee.engine.grammars import Constraint
    from rbee.engine.intake import Intake, Live
    from rbee.engine.publisher import Publisher
    from rbee.engine.request_times import RequestTimes
    from rbee.engine.runners.interface import ModelRunner
    from rbee.engine.scheduling.scheduler import Scheduler
    from rbee.engine.scheduling.step_cost import StepCost
    from rbee.engine.step_clock import PhaseTimes
    from rbee.messages import Submit

logger = logging.getLogger(__name__)

_MASK_PATIENCE = 0.002  # seconds that a step waits for masks when the model has been computed
_IDLE_PATIENCE = 0.02  # the same if no sequence could go on without them; the dearest mask takes less


class EngineGauges(NamedTuple):
    """Gauges between two steps; preemptions and prompt tokens count from the engine's start."""

    sequences_running: int
    sequences_waiting: int
    kv_blocks: int
    kv_blocks_used: int
    preemptions: int
    prompt_tokens: int
    cached_prompt_tokens: int


class EngineCore:
    """Turns submissions into published tokens, one step at a time; every submission ends with one finish reason."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        intake: Intake,
        publisher: Publisher,
        times: RequestTimes,
        *,
        step_cost: StepCost,
        step_clock: StepClock | None = None,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._intake = intake
        self._live = intake.live
        self._publisher = publisher
        self._request_times = times
        self._step_cost = step_cost
        self._clock = step_clock or StepClock()

    @property
    def times(self) -> PhaseTimes:
        return self._clock.times

    def submit(self, submission: Submit) -> None:
        self._intake.submit(submission)

    def hold(self, ring: int) -> None:
        self._intake.hold(ring)

    def release(self, ring: int) -> None:
        self._intake.release(ring)

    def step(self) -> bool:
        """Run one step. False: there was nothing to do, as when all live sequences are held or wait for ring space."""
        clock = self._clock
        clock.begin()
        self._intake.take()
        scheduled = self._scheduler.schedule(self._prompt_budget())
        if not scheduled:
            self._intake.publish_vectors()
            return self._publisher.commit()
        if admitted := [sequence for sequence in self._scheduler.admitted if not sequence.num_preemptions]:
            self._request_times.on_admitted([self._live[sequence.ring].moments for sequence in admitted])
            for sequence in admitted:
                self._publisher.start(sequence.ring)
        clock.lap()
        batch = InputBatch.build(scheduled, self._scheduler.block_manager.block_size)
        clock.lap()
        logits, hidden_states = self._runner.execute(batch)
        clock.lap()
        lives = [self._live[sequence.ring] for sequence in batch.row_sequences[: batch.num_sampling]]
        rows = logits[: len(lives)]
        drawing = lives
        if not self._intake.constrained:
            self._scheduler.update(scheduled)
        else:
            late = self._late(lives)
            # A mask that comes late delays its own sequence only, which computes its last token again.
            self._scheduler.update(scheduled, [live.sequence for live in late])
            if len(chosen := self._drawing(lives, late)) < len(lives):
                drawing, rows = [lives[row] for row in chosen], logits[chosen]
        sampled = self._sample(drawing, rows)
        self._score_prompts(batch, logits)
        clock.lap()
        self._take_tokens(drawing, sampled, rows)
        for live in lives if len(drawing) < len(lives) else ():
            if live.constraint is not None and not live.ended:
                self._end_by_grammar(live, live.constraint)
        self._pool(batch, hidden_states)
        self._publisher.commit()
        seconds = clock.end()
        self._step_cost.observe(batch.num_decodes, len(batch.token_ids) - batch.num_decodes, seconds)
        return True

    def end_all(self, reason: FinishReason) -> None:
        """End every sequence, also those only submitted, and publish that."""
        self._intake.take_submissions()
        for live in list(self._live.values()):
            self._intake.finish(live, reason)
        self._publisher.commit()

    def gauges(self) -> EngineGauges:
        blocks = self._scheduler.block_manager
        return EngineGauges(
            sequences_running=len(self._scheduler.running),
            sequences_waiting=len(self._scheduler.waiting) + self._intake.num_submitted,
            kv_blocks=blocks.num_blocks,
            kv_blocks_used=blocks.num_blocks - blocks.num_free,
            preemptions=self._scheduler.num_preemptions,
            prompt_tokens=blocks.prefix_queries,
            cached_prompt_tokens=blocks.prefix_hits,
        )

    def _prompt_budget(self) -> int:
        return self._step_cost.prompt_budget(self._scheduler.num_decodes, self._scheduler.num_prompts)

    def _drawing(self, lives: list[Live], late: list[Live]) -> list[int]:
        """Which of the rows sample now: those whose mask is there and allows a token, and those without a grammar."""
        return [
            row
            for row, live in enumerate(lives)
            if live.constraint is None or not (live in late or live.constraint.complete or live.constraint.failure)
        ]

    def _late(self, lives: list[Live]) -> list[Live]:
        """Those whose mask is not ready, even after some patience."""
        late = [live for live in lives if not live.wait_for_mask(0.0)]
        for patience in (_MASK_PATIENCE, _IDLE_PATIENCE) if late else ():
            until = time.monotonic() + patience
            late = [live for live in late if not live.wait_for_mask(max(0.0, until - time.monotonic()))]
            if len(late) < len(lives):  # else the step would be for nothing
                break
        return late

    def _sample(self, lives: list[Live], logits: NDArray[np.float32]) -> sampler.Sampled:
        """Draw a token for each row."""
        rows = [live.row for live in lives]
        if self._intake.budgeted:
            rows = [live.row if live.reasoning is None else live.reasoning.applied(live.row) for live in lives]
        return sampler.sample(
            logits,
            rows,
            most_logprobs=max([live.num_side_records for live in lives], default=0),
            pool=self._runner.pool,
        )

    def _score_prompts(self, batch: InputBatch, logits: NDArray[np.float32]) -> None:
        """Publish the logprobs of the prompt tokens that this step has scored."""
        for sequence, rows in batch.scoring():
            live = self._live[sequence.ring]
            start = int(batch.positions[batch.logits_rows[rows.start]]) + 1
            end = start + rows.stop - rows.start
            token_ids = np.array(sequence.token_ids[start:end], np.uint32)
            num_logprobs = sequence.sampling.num_prompt_logprobs or 0
            scored = sampler.score(logits[rows], token_ids, num_logprobs, pool=self._runner.pool)
            if np.isnan(scored.logprobs).any():
                self._fail(live)
                continue
            self._report_cached(live)
            self._publisher.prompt_scores(sequence.ring, scored)
            sequence.num_scored_tokens = end

    def _take_tokens(self, lives: list[Live], sampled: sampler.Sampled, logits: NDArray[np.float32]) -> None:
        """Append the sampled tokens, publish them, and end the sequences that they end."""
        max_model_len = self._runner.max_model_len
        taken: list[int] = []
        for row, (live, token, valid) in enumerate(
            zip(lives, sampled.token_ids.tolist(), sampled.valid.tolist(), strict=True)
        ):
            if live.ended:  # when its prompt was scored
                continue
            if not valid:
                self._fail_row(live, logits[row])
                continue
            taken.append(row)
            if live.report_cached:
                self._report_cached(live)
            sequence = live.sequence
            sequence.token_ids.append(token)
            if token in sequence.sampling.stop_token_ids:
                self._intake.finish(live, FinishReason.STOP)
                continue
            if live.constraint is not None:
                live.constraint.take(token)
                if self._end_by_grammar(live, live.constraint):
                    continue
            if sequence.num_output_tokens == sequence.sampling.max_tokens or sequence.num_tokens == max_model_len:
                self._intake.finish(live, FinishReason.LENGTH)
        if self._intake.constrained:
            for live in [lives[row] for row in taken]:
                if live.constraint is not None and not live.ended:
                    live.constraint.ask()  # its thread then has the processor that took the tokens
        if len(taken) < len(lives):
            lives, sampled = [lives[row] for row in taken], sampled.only(taken)
        if lives:
            rings = [live.sequence.ring for live in lives]
            self._publisher.tokens(rings, sampled, [live.num_side_records for live in lives])
        self._request_times.on_tokens()

    def _pool(self, batch: InputBatch, hidden_states: NDArray[np.float32] | None) -> None:
        """Add this step's hidden states to the vectors that are made of them, and publish those that are complete."""
        for sequence, rows in batch.pooling():
            pool = self._live[sequence.ring].pool
            assert pool is not None, "only such sequences have these rows"
            assert hidden_states is not None, "the batch asks for some"
            pool.add(hidden_states[rows])
            sequence.num_pooled_tokens = sequence.num_computed_tokens
        for sequence in batch.pooled:
            live = self._live[sequence.ring]
            assert live.pool is not None, "the same"
            vector = live.pool.vector()
            if vector is None:
                self._fail(live, "its hidden states are not finite")
            else:
                self._intake.take_vector(live, vector)
        self._intake.publish_vectors()

    def _report_cached(self, live: Live) -> None:
        """Publish how many of a prompt's tokens were cached, once, if the request needs it."""
        if live.report_cached:
            self._publisher.number(live.sequence.ring, live.sequence.num_cached_tokens)
            live.report_cached = False

    def _end_by_grammar(self, live: Live, constraint: Constraint) -> bool:
        """End a sequence that can have no further token: its output is complete, or cannot be followed."""
        if constraint.failure:
            self._intake.fail_grammar(live, constraint.failure)
        elif constraint.complete:
            self._intake.finish(live, FinishReason.STOP)
        else:
            return False
        return True

    def _fail_row(self, live: Live, logits: NDArray[np.float32]) -> None:
        """End a sequence that no token can be drawn for."""
        if live.constraint is not None and not np.isnan(logits).any() and np.isfinite(logits.max()):
            self._intake.fail_grammar(live, "other parameters exclude all tokens that it allows")
        else:
            self._fail(live)

    def _fail(self, live: Live, problem: str = "its logits leave no token to draw") -> None:
        """End a sequence whose logits or hidden states are no numbers to go on with, and share none of its blocks."""
        logger.error("request %s ends: %s.", live.sequence.request_id, problem)
        self._intake.finish(live, FinishReason.ERROR, invalid_kv=True)
