"""Producer and Consumer against a plain Python model, driven by Hypothesis.

The rules are admit, commit, drain, pause, resume, cancel, sleep and reuse, with indices that wrap around. Beside equal
results a liveness property is checked after every rule: if a ring that is not paused has something for the server,
then the server has been told (the doorbell is readable) or knows (the last drain said `more`, or resume said so).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rbee.errors import TransportError
from tests.transport.conftest import Sides

CAPACITY = 4


@dataclass
class Ring:
    """A ring in use, as both sides should see it."""

    generation: int
    open: bool = False
    records: deque[tuple[int, int]] = field(default_factory=deque)  # (token, commit time) not drained yet
    finish: int = 0
    paused: bool = False
    cancelled: bool = False
    cancel_reported: bool = False

    @property
    def has_something(self) -> bool:
        """Whether a drain would find something."""
        return bool(self.records) or self.finish != 0


class TransportModel(RuleBasedStateMachine):
    """The rules are the calls of both sides, in any order that their documentation allows."""

    @initialize(first_index=st.sampled_from([0, 2**31 - 2, 2**32 - 1, 2**32 - 3]))
    def begin(self, first_index):
        """A fresh arena, whose indices may be about to wrap around."""
        self.sides = Sides(CAPACITY, first_index)
        self.rings: dict[int, Ring] = {}
        self.generations = [0] * 64
        self.next_token = 0
        self.server_knows = False
        self.engine_waits = False

    def teardown(self):
        """Give everything back."""
        if hasattr(self, "sides"):
            self.sides.close()

    @precondition(lambda self: len(self.rings) < 5)
    @rule()
    def admit(self):
        """A request takes a ring: one that is free, with a generation it never had."""
        assigned = self.sides.consumer.assign()
        assert assigned is not None
        ring, generation = assigned
        assert ring not in self.rings
        assert generation == self.generations[ring] + 1
        self.generations[ring] = generation
        self.sides.producer.open(ring, generation)
        self.rings[ring] = Ring(generation, open=True)

    @rule(data=st.data())
    def commit(self, data):
        """A step with some tokens and some finishes; one that does not fit changes nothing."""
        is_open = sorted(ring for ring, state in self.rings.items() if state.open)
        if not is_open:
            return
        rings = data.draw(st.lists(st.sampled_from(is_open), max_size=6))
        finishes = data.draw(st.dictionaries(st.sampled_from(is_open), st.integers(1, 5), max_size=2))
        tokens = list(enumerate(rings, self.next_token))
        step = [(ring, token) for token, ring in tokens]
        if any(len(self.rings[ring].records) + rings.count(ring) > CAPACITY for ring in rings):
            with pytest.raises(TransportError, match="is full"):
                self.sides.commit(step, finishes)
            return
        time = self.sides.commit(step, finishes)
        self.next_token += len(tokens)
        for token, ring in tokens:
            self.rings[ring].records.append((token, time))
        for ring, reason in finishes.items():
            self.rings[ring].finish = reason
            self.rings[ring].open = False
        if step or finishes:
            self.engine_waits = False

    @rule(budget=st.integers(1, 12))
    def drain(self, budget):
        """Every ring's tokens in order, no more than the budget, the finish with the last, nothing of paused rings."""
        drained = self.sides.consumer.drain(budget)
        assert len(drained.tokens) == len(drained.commit_ns) == len(drained.logprobs) <= budget
        assert len(set(drained.rings)) == len(drained.rings) == len(drained.ends) == len(drained.finishes)
        start = 0
        for ring, end, finish in zip(drained.rings, drained.ends, drained.finishes, strict=True):
            state = self.rings[ring]
            assert not state.paused
            assert end > start or finish
            for at in range(start, end):
                assert (drained.tokens[at], drained.commit_ns[at]) == state.records.popleft()
                assert drained.logprobs[at] == pytest.approx(-drained.tokens[at] / 1000)
            start = end
            if finish:
                assert not state.records
                assert finish == state.finish
                del self.rings[ring]
            else:
                assert state.records or not state.finish
        assert start == len(drained.tokens)
        assert drained.more == any(state.has_something and not state.paused for state in self.rings.values())
        assert drained.needs_wake == (bool(drained.tokens) and self.engine_waits)
        self.engine_waits = self.engine_waits and not drained.tokens
        self.server_knows = drained.more

    @precondition(lambda self: self.rings)
    @rule(data=st.data())
    def pause(self, data):
        """The client stopped reading."""
        ring = data.draw(st.sampled_from(sorted(self.rings)))
        self.sides.consumer.pause(ring)
        self.rings[ring].paused = True

    @precondition(lambda self: self.rings)
    @rule(data=st.data())
    def resume(self, data):
        """The client reads again; the answer is True only if there is something."""
        ring = data.draw(st.sampled_from(sorted(self.rings)))
        told = self.sides.consumer.resume(ring)
        self.rings[ring].paused = False
        assert not told or self.rings[ring].has_something
        self.server_knows = self.server_knows or told

    @precondition(lambda self: self.rings)
    @rule(data=st.data())
    def cancel(self, data):
        """The client went away."""
        ring = data.draw(st.sampled_from(sorted(self.rings)))
        assert self.sides.consumer.cancel(ring) == self.engine_waits
        self.engine_waits = False
        self.rings[ring].cancelled = True

    @rule()
    def take_cancelled(self):
        """The engine learns of each cancelled open ring once."""
        expected = [
            r for r, state in self.rings.items() if state.open and state.cancelled and not state.cancel_reported
        ]
        assert sorted(self.sides.producer.take_cancelled()) == sorted(expected)
        for ring in expected:
            self.rings[ring].cancel_reported = True

    @rule()
    def arm_wait(self):
        """The engine is about to sleep."""
        self.sides.producer.arm_wait()
        self.engine_waits = any(state.open for state in self.rings.values())

    @invariant()
    def numbers_agree(self):
        """Both sides count rings and space as the model does."""
        if hasattr(self, "sides"):
            assert self.sides.consumer.in_use == len(self.rings)
            for ring, state in self.rings.items():
                assert self.sides.producer.free_space(ring) == CAPACITY - len(state.records)

    @invariant()
    def nothing_waits_unannounced(self):
        """The server can never sleep beside something it should deliver."""
        if hasattr(self, "sides") and any(s.has_something and not s.paused for s in self.rings.values()):
            assert self.server_knows or self.sides.rung()


TransportModel.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestTransportModel = TransportModel.TestCase
