"""The prompts of one request for vectors, in front of an engine that a test drives by hand."""

from __future__ import annotations

import asyncio
import contextlib
import time

import numpy as np
import pytest

from rbee.messages import SIDE_RECORD, FinishReason, Submit
from rbee.pooling_params import PoolingParams
from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from rbee.server.link.admission import ANYONE, Admission, Requester
from rbee.server.streams.embeddings import AT_ONCE, Embeddings, EmbeddingsAccount, submit
from rbee.server.streams.exchange import Backend
from tests.fakes import RecordingWriter
from tests.server.link.link_parts import DIED, RINGS, running_engine, until

pytestmark = pytest.mark.anyio

PATIENCE = 20.0  # seconds
SHARE = RINGS // 4
ALICE = Requester(1, "here")


class Supervisor:
    """Of an engine that is ready."""

    def __init__(self, engine):
        self.client = engine.client

    def check_ready(self):
        """It is."""


def backend_of(engine):
    """What a request needs of a server: its engine."""
    return Backend(Supervisor(engine), None, None)  # type: ignore[arg-type] # a fake, and what vectors do not need


class Request:
    """A request for `number` vectors, and the engine's side of it; prompt n is the token n."""

    def __init__(self, engine, number, requester=ANYONE, **options):
        self.engine = engine
        self.writer = RecordingWriter()
        self.embeddings = Embeddings(
            received_ns=time.monotonic_ns(),
            prompts=[[n] for n in range(number)],
            pooling=PoolingParams(method="last"),
            **options,
        )
        self.account = EmbeddingsAccount(self.embeddings, "embd-1")
        self.requester = requester
        self.rings = {}  # of prompts that run

    async def start(self):
        """Submit the first prompts; the request goes on by itself."""
        self.reply = await submit(backend_of(self.engine), self.embeddings, self.account, self.writer, self.requester)
        self.take()
        self.answer = asyncio.ensure_future(asyncio.wait_for(self.reply.collect(self.writer), PATIENCE))
        await asyncio.sleep(0)

    def take(self):
        """Open the rings of what was submitted since; the numbers of those prompts."""
        records = [record for record in self.engine.sent if isinstance(record, Submit)]
        self.engine.sent.clear()
        for record in records:
            self.engine.producer.open(record.ring, record.generation)
            self.rings[int.from_bytes(record.prompt, "little")] = record.ring
        return [int.from_bytes(record.prompt, "little") for record in records]

    async def end(self, *prompts, reason=FinishReason.STOP):
        """One step that publishes the vector [n, n + 0.5] of each of these prompts n, and ends it."""
        rings = np.array([self.rings.pop(n) for n in prompts], np.uint32)
        values = np.array([[n, n + 0.5] for n in prompts], np.float32)
        self.engine.producer.commit(
            rings.repeat(2),
            np.tile(np.array([0, 1], np.uint32) | SIDE_RECORD, len(prompts)),
            values.ravel(),
            rings,
            np.full(len(prompts), reason, np.uint32),
        )
        in_use = self.engine.client.rings_in_use
        await until(lambda: self.engine.sent or self.engine.client.rings_in_use < in_use)

    async def run(self):
        """End everything, the last submitted first; the vectors."""
        while self.rings:
            await self.end(*reversed(self.rings))
            self.take()
        return [vector.tolist() for vector in await self.answer]


def expected(number):
    """The vectors of so many prompts."""
    return [[n, n + 0.5] for n in range(number)]


@pytest.mark.parametrize("number", [1, 2, SHARE, SHARE + 1, 5 * SHARE + 3])
async def test_vectors_come_in_the_order_of_their_prompts(number):
    """However many there are, and in whatever order they end; no ring is left."""
    with running_engine() as engine:
        request = Request(engine, number)
        await request.start()
        assert await request.run() == expected(number)
        assert engine.client.rings_in_use == 0
        await engine.client.wait_idle()


async def test_a_request_takes_a_share_of_the_places():
    """Each end makes room for the next prompt at once, and for no other request; beyond that it waits."""
    with running_engine() as engine:
        request = Request(engine, SHARE + 5)
        await request.start()
        assert list(request.rings) == list(range(SHARE))
        await request.end(3)
        assert request.take() == [SHARE]
        await request.end(0, 1, 2)
        assert request.take() == [SHARE + 1, SHARE + 2, SHARE + 3]
        assert engine.client.rings_in_use == SHARE
        assert await request.run() == expected(SHARE + 5)
        assert SHARE < AT_ONCE, "which more rings would allow"


async def test_a_key_at_its_limit_gets_what_is_left():
    """One at a time if that is all that its limit leaves; 429 without even that."""
    with running_engine(admission=Admission(max_requests_per_key=3)) as engine:
        engine.submit(requester=ALICE)
        engine.submit(requester=ALICE)
        request = Request(engine, 4, ALICE)
        await request.start()
        assert list(request.rings) == [0]
        other = Request(engine, 1, ALICE)
        with pytest.raises(Refusal) as caught:
            await other.start()
        assert (status_of(caught.value), caught.value.code) == (429, "key_limit")
        assert await request.run() == expected(4)


async def test_a_full_house_refuses_it_before_anything_is_submitted():
    """With the status that is true then; an account that never began has ended."""
    with running_engine() as engine:
        for _ in range(RINGS - 1):
            engine.submit()
        request = Request(engine, 2)
        with pytest.raises(Refusal) as caught:
            await request.start()
        assert (status_of(caught.value), caught.value.code) == (429, "queue_full")
        assert engine.sent == []
        ended = []
        request.account.when_ended(lambda: ended.append(True))
        assert ended


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (FinishReason.ERROR, 500, "engine_error"),
        (FinishReason.ABORT, 503, "aborted"),
        (FinishReason.DEADLINE, 408, "REQUEST_TIMEOUT"),
        (FinishReason.SLOW_READER, 408, "slow_reader"),
    ],
)
async def test_one_that_fails_ends_the_request(reason, status, code):
    """The others are cancelled, and none that waits is submitted."""
    with running_engine() as engine:
        request = Request(engine, SHARE + 9)
        await request.start()
        await request.end(5, reason=reason)
        with pytest.raises(Refusal) as caught:
            await request.answer
        assert (status_of(caught.value), caught.value.code) == (status, code)
        assert request.take() == []
        assert set(engine.producer.take_cancelled()) == set(request.rings.values())
        assert request.account.figures().refusal == code
        engine.commit([], [(ring, FinishReason.ABORT) for ring in request.rings.values()])
        await until(lambda: engine.client.rings_in_use == 0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_one_that_fails_beside_one_that_ends(order):
    """The end of one submits no other if one of the same drain fails, whichever is delivered first."""
    with running_engine() as engine:
        request = Request(engine, SHARE + 9)
        await request.start()
        good, bad = (request.rings[n] for n in order)
        engine.commit([], [(good, FinishReason.STOP), (bad, FinishReason.ERROR)])
        with pytest.raises(Refusal):
            await request.answer
        assert request.take() == []


async def test_a_client_that_leaves():
    """Everything is cancelled, and its places are free."""
    with running_engine() as engine:
        request = Request(engine, SHARE + 9)
        await request.start()
        await request.end(0)
        request.take()
        request.writer.closed = True
        request.reply.on_closed()
        assert await request.answer is None
        assert set(engine.producer.take_cancelled()) == set(request.rings.values())
        await engine.client.wait_idle()


async def test_an_engine_that_dies_ends_the_request_once():
    """Also if the dead engine's last step has ended some, whose places the next prompts have taken."""
    with running_engine() as engine:
        request = Request(engine, SHARE + 9)
        await request.start()
        engine.client.stop()  # nothing is drained before the death
        engine.commit([], [(request.rings[0], FinishReason.STOP)])
        engine.client.engine_died(DIED)
        with pytest.raises(Refusal) as caught:
            await request.answer
        assert caught.value.code == "engine_died"
        await engine.client.wait_idle()


async def test_the_server_is_not_idle_between_two_prompts():
    """A request that has one at a time keeps a server that stops from going before it is through."""
    with running_engine(admission=Admission(max_requests_per_key=1)) as engine:
        request = Request(engine, 3, ALICE)
        await request.start()
        idle = asyncio.ensure_future(engine.client.wait_idle())
        await request.end(0)
        assert request.take() == [1]
        for _ in range(5):
            await asyncio.sleep(0)
        assert not idle.done()
        assert await request.run() == expected(3)
        await idle


async def test_a_deadline_that_has_passed():
    """Nothing is submitted any more."""
    with running_engine() as engine:
        with pytest.raises(Refusal) as caught:
            await Request(engine, 2, deadline_ns=1).start()
        assert caught.value.code == "REQUEST_TIMEOUT"
        assert engine.sent == []


async def test_a_client_that_has_left_before():
    """Nothing is submitted for it."""
    with running_engine() as engine:
        request = Request(engine, 2)
        request.writer.closed = True
        with contextlib.suppress(AttributeError):  # there is no reply
            await request.start()
        assert request.reply is None
        assert engine.sent == []


async def test_what_the_engine_is_asked():
    """The parameters of the request, in the record of each of its prompts."""
    with running_engine() as engine:
        request = Request(engine, 2, ALICE, priority=3, deadline_ns=2**62, cache_salt="s")
        await submit(backend_of(engine), request.embeddings, request.account, request.writer, ALICE)
        for record in engine.sent:
            assert record.request_id == "embd-1"
            assert record.pooling == PoolingParams(method="last")
            assert (record.priority, record.deadline_ns, record.cache_salt) == (3, 2**62, "1:s")
            assert record.received_ns == request.embeddings.received_ns


async def test_account_of_a_request():
    """Its prompts' tokens and the cached ones among them, its first start, each way that one ended, and one end."""
    with running_engine() as engine:
        request, ended = Request(engine, SHARE + 2), []
        await request.start()
        request.account.when_ended(lambda: ended.append(True))
        for ring in request.rings.values():
            engine.producer.note_start(ring)
        await request.run()
        await until(lambda: ended)
        figures = request.account.figures()
        assert ended == [True]
        assert (figures.prompt_tokens, figures.completion_tokens, figures.cached_tokens) == (SHARE + 2, 0, 0)
        assert figures.finish == "stop"
        assert figures.started_ns >= figures.received_ns > 0
        assert (figures.prefill_ns, figures.ttft_ns, figures.decode_ns, figures.sampling) == (None, None, None, None)
