"""Requests without a token when their engine dies, which the next engine runs."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from rbee.messages import FinishReason, Hold, Submit
from rbee.sampling_params import SamplingParams
from rbee.server.errors import RefusalKind
from rbee.server.link.sequences import Choice, DirectTarget
from rbee.server.link.unbegun import UnbegunSequences
from tests.fakes import RecordingDirectSink, RecordingSink
from tests.server.link.link_parts import DIED, RINGS, direct_target, running_engine, until

if TYPE_CHECKING:
    from rbee.server.link.sequences import SequenceHandle
    from tests.server.link.link_parts import Engine

pytestmark = pytest.mark.anyio


class Ends:
    """A place where sequences wait, and what it counted."""

    def __init__(self) -> None:
        self.reasons: list[int] = []
        self.unbegun = UnbegunSequences(lambda reason, _: self.reasons.append(reason))


def submit(engine: Engine, sink: Any, **options: Any) -> SequenceHandle:
    """One sequence, which the engine has opened."""
    choice = Choice(SamplingParams(max_tokens=5, seed=3), sink)
    received_ns = time.monotonic_ns()
    [handle] = engine.client.submit_all("r", [1, 2, 3], [choice], received_ns=received_ns, **options)
    record = engine.sent[-1]
    assert isinstance(record, Submit)
    engine.producer.open(record.ring, record.generation)
    return handle


def rings(engine: Engine) -> list[int]:
    """Of what was submitted, in order; the engine opens them."""
    records = [record for record in engine.sent if isinstance(record, Submit)]
    for record in records:
        engine.producer.open(record.ring, record.generation)
    return [record.ring for record in records]


async def test_what_has_no_token_goes_to_the_next_engine_in_order() -> None:
    """With all that was asked for; what had a token ends with the error, and what had ended is left alone."""
    ends, sinks = Ends(), [RecordingSink() for _ in range(5)]
    with running_engine(keep_unbegun=True) as old, running_engine(keep_unbegun=True) as new:
        for n, sink in enumerate(sinks):
            submit(old, sink, priority=n, deadline_ns=2**62, cache_salt="salt")
        begun, ended = rings_of(old)[1], rings_of(old)[2]
        old.commit([(begun, 7)], [(ended, FinishReason.STOP)])
        old.client.engine_died(DIED, ends.unbegun.keep)
        assert [sink.ends for sink in sinks] == [[], [DIED], [FinishReason.STOP], [], []]
        assert len(ends.unbegun) == 3
        old_records = {record.priority: record for record in old.sent if isinstance(record, Submit)}

        ends.unbegun.submit_all(new.client.submit)
        records = [record for record in new.sent if isinstance(record, Submit)]
        assert [record.priority for record in records] == [0, 3, 4]
        for record in records:
            before = old_records[record.priority]
            assert (record.prompt, record.sampling, record.received_ns) == (
                before.prompt,
                before.sampling,
                before.received_ns,
            )
            assert (record.deadline_ns, record.cache_salt) == (2**62, "salt")
        new.commit([(ring, 8) for ring in rings(new)])
        await until(lambda: sinks[4].token_ids)
        assert [sink.token_ids for sink in sinks] == [[8], [7], [], [8], [8]]
    assert ends.reasons == []


def rings_of(engine: Engine) -> list[int]:
    """Of what was submitted, in order."""
    return [record.ring for record in engine.sent if isinstance(record, Submit)]


async def test_sequence_that_kills_engines_kills_two() -> None:
    """The second death without a token ends it; one that is new goes on."""
    ends, first, second = Ends(), RecordingSink(), RecordingSink()
    with running_engine(keep_unbegun=True) as one, running_engine(keep_unbegun=True) as two:
        submit(one, first)
        one.client.engine_died(DIED, ends.unbegun.keep)
        ends.unbegun.submit_all(two.client.submit)
        submit(two, second)
        two.client.engine_died(DIED, ends.unbegun.keep)
        assert (first.ends, second.ends, len(ends.unbegun)) == ([DIED], [], 1)


async def test_without_the_option_everything_ends() -> None:
    """Nothing is remembered then."""
    ends, sink = Ends(), RecordingSink()
    with running_engine() as engine:
        submit(engine, sink)
        engine.client.engine_died(DIED, ends.unbegun.keep)
        assert (sink.ends, len(ends.unbegun)) == ([DIED], 0)


async def test_client_that_leaves_meanwhile_is_not_submitted() -> None:
    """Its handle cancels where the sequence is, before, between and after."""
    ends, gone, stays = Ends(), RecordingSink(), RecordingSink()
    with running_engine(keep_unbegun=True) as old, running_engine(keep_unbegun=True) as new:
        leaving, staying = submit(old, gone), submit(old, stays)
        old.client.engine_died(DIED, ends.unbegun.keep)
        leaving.cancel()
        leaving.cancel()
        assert (ends.reasons, len(ends.unbegun)) == ([FinishReason.ABORT], 1)
        ends.unbegun.submit_all(new.client.submit)
        [ring] = rings(new)
        leaving.cancel()
        staying.cancel()
        assert new.producer.take_cancelled() == [ring]
        assert (gone.ends, stays.ends) == ([], [])


async def test_error_of_one_choice_takes_those_that_wait_along() -> None:
    """A request is one answer: a reply cancels its other choices when one fails."""
    ends, waiting = Ends(), RecordingSink()
    with running_engine(keep_unbegun=True) as engine:

        class Reply(RecordingSink):
            def fail(self, error: Exception) -> None:
                super().fail(error)
                handle.cancel()

        submit(engine, reply := Reply())
        handle = submit(engine, waiting)
        engine.commit([(rings_of(engine)[0], 7)])
        engine.client.engine_died(DIED, ends.unbegun.keep)
        assert (reply.ends, waiting.ends, len(ends.unbegun)) == ([DIED], [], 0)


async def test_no_other_engine_ends_them() -> None:
    """Each once; what the failure of one cancels is not failed too."""
    ends, sinks = Ends(), [RecordingSink() for _ in range(3)]
    with running_engine(keep_unbegun=True) as engine:

        class Reply(RecordingSink):
            def fail(self, error: Exception) -> None:
                super().fail(error)
                other.cancel()

        submit(engine, reply := Reply())
        other = submit(engine, cancelled := RecordingSink())
        for sink in sinks:
            submit(engine, sink)
        engine.client.engine_died(DIED, ends.unbegun.keep)
        ends.unbegun.fail_all(DIED)
        ends.unbegun.fail_all(DIED)
        assert [sink.ends for sink in (reply, *sinks)] == [[DIED]] * 4
        assert cancelled.ends == []
        assert ends.reasons == [FinishReason.ERROR, FinishReason.ABORT, *[FinishReason.ERROR] * 3]


async def test_deadline_passes_while_there_is_no_engine() -> None:
    """It does not wait for one; the others do."""
    ends, overdue, patient = Ends(), RecordingSink(), RecordingSink()
    with running_engine(keep_unbegun=True) as engine:
        submit(engine, overdue, deadline_ns=1)
        submit(engine, patient, deadline_ns=2**62)
        engine.client.engine_died(DIED, ends.unbegun.keep)
        await until(lambda: overdue.ends)
        [refusal] = overdue.ends
        assert (refusal.kind, refusal.code) == (RefusalKind.TIMED_OUT, "REQUEST_TIMEOUT")
        assert (ends.reasons, patient.ends) == ([FinishReason.DEADLINE], [])
        ends.unbegun.fail_all(DIED)


async def test_paused_and_redirected_sequence_is_so_with_the_next_engine() -> None:
    """A reader that pauses before, or takes the stream over meanwhile, finds it as it left it."""
    ends, first, second = Ends(), RecordingSink(), RecordingSink()
    with running_engine(keep_unbegun=True) as old, running_engine(keep_unbegun=True) as new:
        handle = submit(old, first)
        handle.pause()
        old.client.engine_died(DIED, ends.unbegun.keep)
        handle.redirect(second)
        ends.unbegun.submit_all(new.client.submit)
        [ring] = rings(new)
        new.commit([(ring, 8)])
        for _ in range(10):
            await asyncio.sleep(0)
        assert second.token_ids == []
        handle.resume()
        await until(lambda: second.token_ids)
        assert first.token_ids == []


async def test_orphan_is_one_with_the_next_engine() -> None:
    """It is held there; one whose client came back meanwhile is not."""
    ends, sinks = Ends(), [RecordingSink() for _ in range(2)]
    with running_engine(keep_unbegun=True) as old, running_engine(keep_unbegun=True) as new:
        handles = [submit(old, sink) for sink in sinks]
        for handle in handles:
            handle.orphan()
        old.client.engine_died(DIED, ends.unbegun.keep)
        handles[1].adopt()
        handles[1].resume()
        ends.unbegun.submit_all(new.client.submit)
        held, other = rings(new)
        assert [record.ring for record in new.sent if isinstance(record, Hold)] == [held]
        new.commit([(held, 8), (other, 8)])
        await until(lambda: sinks[1].token_ids)
        assert sinks[0].token_ids == []
        waiting = asyncio.ensure_future(new.client.make_room(RINGS - 1, 3))
        await until(lambda: new.producer.take_cancelled() == [held])
        new.commit([], [(held, FinishReason.ABORT)])
        await waiting
        assert [end.code for end in sinks[0].ends] == ["stream_given_up"]


async def test_stream_of_the_native_drain_goes_on_with_the_next_engine() -> None:
    """Also one whose connection was paused when the engine died."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ends, sink = Ends(), RecordingDirectSink()
    theirs.settimeout(20)
    with ours, theirs, running_engine(keep_unbegun=True) as old, running_engine(keep_unbegun=True) as new:
        target = direct_target(ours, sink)
        assert isinstance(target, DirectTarget)
        handle = submit(old, target)
        handle.pause()
        old.client.engine_died(DIED, ends.unbegun.keep)
        ends.unbegun.submit_all(new.client.submit)
        handle.resume()
        [ring] = rings(new)
        new.commit([(ring, 0)], [(ring, FinishReason.STOP)])
        await until(lambda: sink.calls)
        assert sink.calls == [("finish", FinishReason.STOP, 0)]
        assert b'<"a">' in theirs.recv(1000)
