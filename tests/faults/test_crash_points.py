"""A process that dies or stops between any two stores of the transport: real servers, real engines, 16 streams."""

import asyncio
import contextlib
import signal
import threading
import time

import httpx
import psutil
import pytest

from tests.faults.crash_parts import CrashSite, build_native, load, native_points, points
from tests.faults.faults_parts import held, until_held
from tests.server.server_parts import PATIENCE

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

OPTIONS = ["--model", "synthetic", "--synthetic-step-ms", "0.5", "--ring-capacity", "128", "--max-requests", "64"]
OPTIONS += ["--max-restarts", "1000", "--restart-window", "1", "--hang-timeout", "0"]
# What a client may be told when the engine died: before, or after its request was taken.
TOLD = {"engine_died", "engine_dead", "engine_starting", "engine_loading"}
ROUNDS = 10  # of 16 streams, in which each point must be passed
ENGINE, SERVER = points("engine"), points("server")


@pytest.fixture(scope="module")
def native():
    """The native module with crash points."""
    return build_native()


@pytest.fixture
def site(native, tmp_path):
    """Where servers with crash points start."""
    return CrashSite(tmp_path, native)


async def until_replaced(server):
    """Wait until the engine that died last has been replaced by one that serves; the server answers all the time."""
    while "it is started again" not in server.log.read_text().rpartition("crash point")[2]:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.005)
    async with asyncio.timeout(PATIENCE), httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
        while (await client.get("/ready")).status_code != 200:
            assert (await client.get("/health")).status_code == 200
            await asyncio.sleep(0.005)


def test_every_native_point_is_visited():
    """The list in the header is the list that these tests go through."""
    visited = {(point.name, point.process) for point in [*ENGINE, *SERVER]}
    assert set(native_points()) <= visited
    assert len(native_points()) > 20


async def test_engine_killed_at_each_point(launch, site):
    """Each stream has one end and a prefix of its tokens; the next engine serves; nothing is left, each time."""
    with launch(site.command(*OPTIONS)) as server:
        before = await held(server)
        site.plan("engine", ENGINE[0].order(signal.SIGKILL))
        server.engine.kill()
        for point, following in zip(ENGINE, [*ENGINE[1:], None], strict=True):
            # This point's engine is being started, over and over if it dies there; the one after it has the next plan.
            if point.at_start:
                async with asyncio.timeout(PATIENCE):
                    while not point.passed_by(server):  # noqa: ASYNC110 - another process
                        await asyncio.sleep(0.005)
            else:
                await until_replaced(server)
                await until_held(server, before)  # of the point before
            site.plan("engine", *([following.order(signal.SIGKILL)] if following else []))
            for _ in range(ROUNDS):
                if not point.passed_by(server):
                    ends = {answer.end() for answer in await load(server, slow=point.asleep)}
                    assert ends <= TOLD | {"whole", "left"}, point
            assert point.passed_by(server), point
        await until_replaced(server)
        assert sorted(answer.end() for answer in await load(server)) == ["left"] + ["whole"] * 15
        await until_held(server, before)
        assert server.stop() == 0
    await asyncio.to_thread(site.wait_until_empty, server.pid)


@pytest.mark.parametrize("point", SERVER, ids=lambda point: f"{point.name}-{point.passage}")
async def test_server_killed_at_each_point(launch, site, point):
    """Whatever clients have got is a prefix of their tokens; the engine goes too, and nothing is left."""
    site.plan("server", point.order(signal.SIGKILL))
    with launch(site.command(*OPTIONS), until=None) as server:
        server.url = await asyncio.to_thread(url_of, server)
        for _ in range(ROUNDS if server.url else 0):
            if server.process.poll() is None:
                ends = {answer.end() for answer in await load(server, slow=point.asleep)}
                assert ends <= {"whole", "left", "cut"}
        assert point.passed_by(server)
        assert server.wait() == -signal.SIGKILL
        await asyncio.to_thread(site.wait_until_empty, server.pid)


def url_of(server):
    """Where a server serves, or "" if it has ended before it did."""
    url = ""
    for line in server.process.stdout:
        if "listening" in line:
            url = line.split()[-1]
        if "ready" in line:
            return url
    return ""


@contextlib.contextmanager
def waking(server):
    """Let a server and its engine go on when they have stopped, after a while in which others do what they can."""
    process = psutil.Process(server.pid)
    over = threading.Event()

    def wake():
        while not over.is_set():
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in [process, *process.children()]:
                    if one.status() == psutil.STATUS_STOPPED:
                        time.sleep(0.02)
                        one.resume()
            time.sleep(0.01)

    thread = threading.Thread(target=wake)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("process", ["engine", "server"])
async def test_stopped_at_each_point(launch, site, process):
    """A process that is stopped at every one of its points, and goes on, loses nothing: every stream is whole."""
    stops = ENGINE if process == "engine" else SERVER
    site.plan(process, *(point.order(signal.SIGSTOP) for point in stops))
    with launch(site.command(*OPTIONS), until=None) as server, waking(server):
        server.url = await asyncio.to_thread(url_of, server)
        before = await held(server)
        missing = stops
        for _ in range(ROUNDS):
            if missing:
                ends = sorted(answer.end() for answer in await load(server, slow=True))
                assert ends == ["left"] + ["whole"] * 15
                missing = [point for point in stops if not point.passed_by(server)]
        assert not missing
        await until_held(server, before)
        assert server.log.read_text().count("crash point") == len(stops)
        assert server.stop() == 0
    await asyncio.to_thread(site.wait_until_empty, server.pid)
