"""What the drain loop takes, what it refuses, and what it sends to the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rbee.messages import FinishReason, Submit, pack_token_ids
from rbee.sampling_params import SamplingParams
from rbee.server.errors import Refusal
from rbee.server.link.admission import Admission
from rbee.server.link.sequences import Choice
from tests.fakes import RecordingSink
from tests.server.link.link_parts import RINGS, running_engine, until

if TYPE_CHECKING:
    from tests.server.link.link_parts import Engine

pytestmark = pytest.mark.anyio

ADMISSION = Admission(max_num_seqs=4, max_queued_requests=3)


def choices(number: int) -> list[Choice]:
    """So many choices of one request, each with a seed of its own."""
    return [Choice(SamplingParams(max_tokens=5, seed=n), RecordingSink()) for n in range(number)]


async def test_submission_has_everything_that_the_engine_needs(engine: Engine) -> None:
    """All of a request is in its record; the time is that of the submission."""
    choice = Choice(SamplingParams(max_tokens=5, seed=9), RecordingSink())
    engine.client.submit_all("name", [1, 2], [choice], received_ns=9, priority=-3, deadline_ns=123, cache_salt="salt")
    [submitted] = engine.sent
    assert isinstance(submitted, Submit)
    assert (submitted.request_id, submitted.prompt) == ("name", pack_token_ids([1, 2]))
    assert submitted.sampling == SamplingParams(max_tokens=5, seed=9)
    assert (submitted.priority, submitted.deadline_ns, submitted.cache_salt) == (-3, 123, "salt")
    assert submitted.received_ns == 9


async def test_choices_are_sequences_of_their_own(engine: Engine) -> None:
    """Each has its ring, its parameters and its tokens, and can be cancelled alone; what they share is in each."""
    asked = choices(3)
    streams = engine.client.submit_all("r", [7], asked, received_ns=9, priority=2, deadline_ns=5, cache_salt="s")
    submitted = [record for record in engine.sent if isinstance(record, Submit)]
    assert [record.sampling for record in submitted] == [choice.sampling for choice in asked]
    assert len({record.ring for record in submitted}) == engine.client.rings_in_use == 3
    for n, record in enumerate(submitted):
        assert (record.priority, record.deadline_ns, record.cache_salt) == (2, 5, "s")
        assert record.prompt == pack_token_ids([7])
        engine.producer.open(record.ring, record.generation)
        engine.commit([(record.ring, n)])
    await until(lambda: all(choice.sink.token_ids for choice in asked))
    assert [choice.sink.token_ids for choice in asked] == [[0], [1], [2]]
    streams[1].cancel()
    assert engine.producer.take_cancelled() == [submitted[1].ring]


async def test_all_choices_or_none(engine: Engine) -> None:
    """When there are rings for some only, nothing is taken and nothing is sent to the engine."""
    engine.client.submit_all("r", [1], choices(RINGS - 2), received_ns=9)
    engine.sent.clear()
    with pytest.raises(Refusal, match=f"holds {RINGS - 2} requests"):
        engine.client.submit_all("r", [1], choices(3), received_ns=9)
    assert (engine.sent, engine.client.rings_in_use) == ([], RINGS - 2)
    assert len(engine.client.submit_all("r", [1], choices(2), received_ns=9)) == 2


async def test_queue_is_bounded_by_what_the_engine_reports() -> None:
    """With so many waiting that no more may, a request is refused; when the engine has taken one up it is not."""
    with running_engine(admission=ADMISSION) as engine:
        engine.report(3)
        with pytest.raises(Refusal, match="3 requests or more wait"):
            engine.submit()
        assert (engine.sent, engine.client.rings_in_use) == ([], 0)
        engine.report(2)
        engine.submit()


async def test_queue_is_bounded_within_a_step() -> None:
    """Before the engine has reported anything, as many are taken as run and wait; a finish makes room."""
    with running_engine(admission=ADMISSION) as engine:
        rings = [engine.submit()[1] for _ in range(4 + 3)]
        with pytest.raises(Refusal, match="--max-queued-requests"):
            engine.submit()
        engine.commit([], [(rings[0], FinishReason.STOP)])
        await until(lambda: engine.client.rings_in_use == 6)
        engine.submit()


async def test_full_house_is_refused(engine: Engine) -> None:
    """When every ring is taken there is an error that gives their number, and a finish makes room."""
    rings = [engine.submit()[1] for _ in range(RINGS)]
    with pytest.raises(Refusal, match="64 requests"):
        engine.submit()
    engine.commit([], [(rings[5], FinishReason.STOP)])
    await until(lambda: engine.client.rings_in_use == RINGS - 1)
    assert engine.submit()[1] == rings[5]
