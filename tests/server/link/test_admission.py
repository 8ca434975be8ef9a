"""What one API key may hold, and how many prompt tokens may wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rbee.messages import FinishReason, Submit
from rbee.sampling_params import SamplingParams
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.link.admission import Admission, Requester
from rbee.server.link.sequences import Choice
from tests.fakes import RecordingSink
from tests.server.link.link_parts import DIED, RINGS, running_engine, until

if TYPE_CHECKING:
    from rbee.server.link.sequences import SequenceHandle
    from tests.server.link.link_parts import Engine

pytestmark = pytest.mark.anyio

ALICE, BOB = Requester(0, ("alice", 1)), Requester(1, ("bob", 1))
PER_KEY = Admission(max_requests_per_key=2)
TOKENS = Admission(max_queued_tokens=100)


def submit(
    engine: Engine, who: Requester = ALICE, *, n: int = 1, tokens: int = 1, **options: Any
) -> tuple[list[SequenceHandle], list[int]]:
    """A request that the engine has opened; its handles and rings."""
    choices = [Choice(SamplingParams(max_tokens=5), RecordingSink()) for _ in range(n)]
    handles = engine.client.submit_all("r", [1] * tokens, choices, received_ns=9, requester=who, **options)
    submitted = engine.sent[-n:]
    engine.sent.clear()
    rings = [record.ring for record in submitted if isinstance(record, Submit)]
    for record in submitted:
        assert isinstance(record, Submit)
        engine.producer.open(record.ring, record.generation)
    return handles, rings


def refusal(engine: Engine, who: Requester = ALICE, **options: Any) -> Refusal:
    """Why a request is refused."""
    with pytest.raises(Refusal) as caught:
        submit(engine, who, **options)
    assert engine.sent == []
    return caught.value


async def test_key_at_its_limit_costs_no_other_key_anything() -> None:
    """Its further requests get a code of their own and a time to come back; the other key's are taken."""
    with running_engine(admission=PER_KEY) as engine:
        submit(engine)
        submit(engine)
        for _ in range(3):
            refused = refusal(engine)
            assert (refused.kind, refused.code, refused.retry_after) == (RefusalKind.OVERLOADED, "key_limit", 1)
            assert "2 requests" in refused.message
            assert "--max-requests-per-key" in refused.message
        submit(engine, BOB)
        assert engine.client.held_by_key() == {0: 2, 1: 1}


async def test_line_of_a_key_is_its_own() -> None:
    """However many clients of a key wait for its limit, those who wait for the server are told the same."""
    now = [0.0]
    with running_engine(admission=PER_KEY, clock=lambda: now[0]) as engine:
        _, [ring] = submit(engine)
        now[0] = 20.0
        engine.commit([], [(ring, FinishReason.STOP)])
        await until(lambda: engine.client.rings_in_use == 0)
        submit(engine, n=2)
        assert [refusal(engine, Requester(0, ("alice", port))).retry_after for port in range(3)] == [20, 20, 40]
        for _ in range(RINGS // 2 - 1):
            submit(engine, Requester(), n=2)
        assert refusal(engine, BOB).retry_after == 20


async def test_choices_count_and_too_many_never_fit() -> None:
    """Each choice is one; a request that asks for more than a key may hold is told so instead of to wait."""
    with running_engine(admission=PER_KEY) as engine:
        submit(engine)
        assert refusal(engine, n=2).code == "key_limit"
        refused = refusal(engine, n=3)
        assert (refused.kind, refused.param) == (RefusalKind.INVALID, "n")
        submit(engine, BOB, n=2)


async def test_callers_without_a_key_have_no_limit() -> None:
    """There are no keys then."""
    with running_engine(admission=PER_KEY) as engine:
        for _ in range(5):
            submit(engine, Requester(None, ("somebody", 1)))


async def test_each_end_frees_a_place_of_the_key_once() -> None:
    """A finish, a cancel, a cancel after the finish, and a failure of the sink."""
    with running_engine(admission=PER_KEY) as engine:
        [finished], [ring] = submit(engine)
        [cancelled], _ = submit(engine)
        engine.commit([], [(ring, FinishReason.STOP)])
        await until(lambda: engine.client.held_by_key() == {0: 1})
        finished.cancel()
        cancelled.cancel()
        cancelled.cancel()
        assert engine.client.held_by_key() == {}
        submit(engine)
        [_], [ring] = submit(engine)
        assert refusal(engine).code == "key_limit"
        engine.client.fail_all(DIED)
        assert engine.client.held_by_key() == {}


async def test_death_of_the_engine_frees_all_places_of_a_key() -> None:
    """Its next requests are the next engine's."""
    with running_engine(admission=PER_KEY) as engine:
        submit(engine, n=2)
        engine.client.engine_died(DIED)
        assert engine.client.held_by_key() == {}


async def test_key_that_cancels_all_the_time_takes_no_more_than_twice_its_limit() -> None:
    """The rings of cancelled sequences are in use until the engine's next step, and others need rings too."""
    with running_engine(admission=PER_KEY) as engine:
        rings = []
        for _ in range(4):
            [handle], [ring] = submit(engine)
            handle.cancel()
            engine.sent.clear()
            rings.append(ring)
        assert refusal(engine).code == "key_limit"
        submit(engine, BOB)
        engine.commit([], [(rings[0], FinishReason.ABORT)])
        await until(lambda: engine.client.rings_in_use == 4)
        submit(engine)


async def test_queue_is_bounded_by_tokens() -> None:
    """Each choice has the whole prompt. What fits is taken; what does not is told when to come back."""
    with running_engine(admission=TOKENS) as engine:
        _, [first] = submit(engine, tokens=40)
        submit(engine, tokens=25, n=2)
        assert engine.client.queued_tokens == 90
        refused = refusal(engine, tokens=11)
        assert (refused.kind, refused.code) == (RefusalKind.OVERLOADED, "queue_full")
        assert "have 90 tokens" in refused.message
        assert "--max-queued-tokens" in refused.message
        assert refusal(engine, tokens=6, n=2).code == "queue_full"
        submit(engine, tokens=10)
        engine.commit([(first, 1)])
        await until(lambda: engine.client.queued_tokens == 60)
        submit(engine, tokens=40)


async def test_prompt_longer_than_the_limit_is_taken_when_nothing_waits() -> None:
    """It could never run otherwise."""
    with running_engine(admission=TOKENS) as engine:
        [handle], _ = submit(engine, tokens=500)
        assert refusal(engine, tokens=500).code == "queue_full"
        handle.cancel()
        engine.sent.clear()
        submit(engine, tokens=500)


async def test_a_paused_sequence_that_has_begun_does_not_wait() -> None:
    """The engine has computed its prompt, though nobody reads its tokens."""
    with running_engine(admission=TOKENS) as engine:
        [handle], [ring] = submit(engine, tokens=100)
        handle.pause()
        engine.commit([(ring, 1)])
        await until(lambda: engine.client.queued_tokens == 0)
        submit(engine, tokens=100)


async def test_retry_after_is_the_time_that_sequences_take() -> None:
    """The last ones took forty seconds: of a full house the oldest, of thirty seconds, has ten left."""
    now = [0.0]
    with running_engine(clock=lambda: now[0]) as engine:
        _, rings = submit(engine, n=4)
        now[0] = 40.0
        engine.commit([], [(ring, FinishReason.STOP) for ring in rings])
        await until(lambda: engine.client.rings_in_use == 0)
        submit(engine)
        now[0] = 70.0
        submit(engine, n=RINGS - 1)
        assert refusal(engine).retry_after == 10
        assert refusal(engine, BOB).retry_after == 11
        assert refusal(engine, Requester(2, ("carol", 1)), n=2).retry_after == 40


async def test_newcomers_leave_places_to_those_who_were_told_to_come_back() -> None:
    """A few, for a short while, and the reason says so."""
    now = [0.0]
    newcomers = [Requester(None, ("new", port)) for port in range(3)]
    with running_engine(clock=lambda: now[0]) as engine:

        async def end(number: int) -> None:
            engine.commit([], [(rings.pop(), FinishReason.STOP) for _ in range(number)])
            await until(lambda: engine.client.rings_in_use == RINGS - number)

        _, rings = submit(engine, newcomers[0], n=RINGS)
        now[0] = 10.0
        told = [refusal(engine, who).retry_after or 0 for who in (ALICE, BOB)]
        await end(3)
        now[0] = 10.0 + max(told)
        submit(engine, newcomers[0])
        assert "kept for clients that were told to come back by now: 2." in refusal(engine, newcomers[1]).message
        submit(engine, ALICE)
        assert "by now: 1." in refusal(engine, newcomers[1]).message
        now[0] += 2.5
        submit(engine, newcomers[2])
        assert "kept" not in refusal(engine, BOB).message
