"""What is wrong with a grammar, found out by the process that compiles; whatever it does, others get their answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from rbee.config import SYNTHETIC
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.text.grammars import LARGEST, GrammarChecks, Suspect, Suspects
from tests.server.server_parts import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

pytestmark = pytest.mark.anyio


def seconds_computed() -> float:
    """By the processes that this one has started, those of its workers among them."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


async def put_off(limit: asyncio.Timeout) -> None:
    """As long as they compute: they are nice to all others, so that on a busy machine seconds of it take minutes."""
    before = -1.0
    while (computed := seconds_computed()) != before:
        before = computed
        limit.reschedule(asyncio.get_running_loop().time() + PATIENCE)
        await asyncio.sleep(PATIENCE / 2)


@pytest.fixture
async def checks() -> AsyncIterator[GrammarChecks]:
    """For the synthetic model, whose vocabulary is small."""
    with contextlib.closing(GrammarChecks(SYNTHETIC)) as grammars:
        async with asyncio.timeout(None) as limit:
            watch = asyncio.create_task(put_off(limit))
            try:
                yield grammars
            finally:
                watch.cancel()


async def problem(checks: GrammarChecks, source: str) -> str:
    """What is wrong with it."""
    [found] = await asyncio.gather(checks.check(source, "the_field"), return_exceptions=True)
    if found is None:
        return ""
    assert isinstance(found, Refusal)
    assert (found.kind, found.param, found.code) == (RefusalKind.INVALID, "the_field", "invalid_grammar")
    assert found.message.startswith("the_field cannot be enforced: ")
    assert found.message.endswith(". Change or simplify it, or leave it out.")
    return found.message


def schema(**keywords: object) -> str:
    """Its grammar."""
    return f"start: %json {json.dumps(keywords)}"


def workers() -> list[psutil.Process]:
    """The processes of this one that compile grammars and have not ended."""
    return [child for child in psutil.Process().children() if is_worker(child)]


def is_worker(process: psutil.Process) -> bool:
    """Whether it compiles grammars, and has not ended."""
    try:
        return "rbee.grammars.worker" in process.cmdline()
    except psutil.NoSuchProcess:  # it has ended; of other tests' processes that may be at any time
        return False


def worker() -> psutil.Process:
    """The process that compiles."""
    [found] = workers()
    return found


async def test_what_compiles_has_no_problem(checks):
    """In both languages."""
    assert await problem(checks, schema(type="object", minProperties=1)) == ""
    assert await problem(checks, 'start: "a" | /[0-9]+/') == ""
    assert await problem(checks, '%gbnf\nroot ::= "a" | [0-9]+\n') == ""


REASONS = {
    "start: nowhere": 'unknown name: "nowhere"',
    "start: /(?=a)b/": "look-around, including look-ahead and look-behind, is not supported",
    schema(type="array", uniqueItems=True): 'Unimplemented keys: ["uniqueItems"]',
    schema(type="string", format="knitting"): "Unknown format: knitting",
    schema(**{"$ref": "#"}): "it allows no output at all",
    "%gbnf\nroot ::= (": "line 1",
    "%gbnf\nroot ::= " + "(" * 3000 + '"a"' + ")" * 3000: "recursion",
    'start: "' + "x" * LARGEST + '"': f"at most {LARGEST} are possible",
}


async def test_what_is_no_grammar_is_a_reason_on_one_line(checks):
    """It names what is wrong, and repeats no source."""
    for source, reason in REASONS.items():
        found = await problem(checks, source)
        assert reason in found
        assert "\n" not in found
        assert len(found) < 400


async def test_limits_end_one_compilation(checks):
    """Time, memory and stack: the process that compiles goes on, and has its answers for others meanwhile."""
    chain = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(1000)}
    deep = schema(**{"$defs": chain | {"d1000": {}}, "$ref": "#/$defs/d0"})
    slow = schema(type="object", properties={f"p{i}": {"type": "string"} for i in range(8000)})
    large = schema(type="integer", multipleOf=9_999_991)
    sources = [slow, deep, large, schema(type="object"), slow]
    found = await asyncio.gather(*[problem(checks, source) for source in sources])
    assert worker().is_running(), "the same for all"
    assert "it takes more than 1 s of computing" in found[0]
    assert "it is nested too deeply" in found[1]
    assert "it takes more than" in found[2]
    assert found[3:] == ["", found[0]]


async def blamed(checks: GrammarChecks, source: str, *parts: Sequence[str]) -> tuple[str, list[tuple[int, int, int]]]:
    """The beginning of the refusal, and which of which parts have been looked at."""
    asked: list[tuple[int, int, int]] = []

    def suspects(number: int, sources: Sequence[str]) -> Suspects:
        def of(first: int, end: int) -> str:
            asked.append((number, first, end))
            rules = [f"r{index}: {sources[index]}" for index in range(first, end)]
            return "\n".join([f"start: {' '.join(rule[:2] for rule in rules)}", *rules])

        return Suspects([Suspect(f"p{number}[{index}]", ", a part,") for index in range(len(sources))], of)

    with pytest.raises(Refusal, match="cannot be enforced") as caught:
        await checks.check(source, "whole", [suspects(number, some) for number, some in enumerate(parts)])
    assert caught.value.param == caught.value.message.partition(" ")[0].rstrip(",")
    return caught.value.message.partition(" cannot")[0], asked


async def test_the_part_that_is_wrong_is_blamed(checks):
    """The first one of them, found by halves; where each is right by itself, the whole."""
    good, bad = '"a"', "nowhere"
    assert await blamed(checks, "start: x", [good], [good, bad, good, good, bad]) == (
        "p1[1], a part,",
        [(0, 0, 1), (1, 0, 2), (1, 0, 1), (1, 1, 2)],
    )
    assert (await blamed(checks, "start: x", [bad], [bad]))[0] == "p0[0], a part,"
    for number in range(5):
        parts = [bad if index == number else good for index in range(5)]
        assert (await blamed(checks, "start: x", parts))[0] == f"p0[{number}], a part,"
    assert await blamed(checks, "start: x", [good] * 4) == ("whole", [(0, 0, 2), (0, 2, 3), (0, 3, 4)])
    assert await blamed(checks, "start: x") == ("whole", [])


async def test_results_are_remembered(checks):
    """Also those that are wrong: the process is not needed any more."""
    sources = [schema(type="object"), "start: nowhere"]
    found = [await problem(checks, source) for source in sources]
    worker().send_signal(signal.SIGSTOP)
    assert [await problem(checks, source) for source in sources] == found


async def test_another_process_is_started(checks):
    """Who waits when the first one ends is told to try again."""
    assert await problem(checks, 'start: "a"') == ""
    child = worker()
    child.send_signal(signal.SIGSTOP)
    waiting = asyncio.create_task(checks.check('start: "b"', "the_field"))
    await asyncio.sleep(0)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(Refusal, match="has ended; try again") as caught:
        await waiting
    assert caught.value.kind == RefusalKind.UNAVAILABLE
    assert await problem(checks, 'start: "b"') == ""


async def test_a_vocabulary_that_cannot_be_used_is_the_reason(tmp_path):
    """A model whose tokens stand for nothing by themselves has no grammars."""
    with contextlib.closing(GrammarChecks(str(tmp_path))) as checks:
        assert f"the tokenizer of {tmp_path} cannot be read" in await problem(checks, 'start: "a"')


async def test_who_leaves_does_not_take_the_result_along(checks):
    """Two wait for the same grammar; one is cancelled."""
    first, second = (asyncio.create_task(problem(checks, 'start: "a"')) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == ""


def unused_descriptors(process: psutil.Process) -> list[int]:
    """The lowest, in order."""
    used = {int(path.name) for path in Path(f"/proc/{process.pid}/fd").iterdir()}
    return sorted(set(range(len(used) + 2)) - used)


async def stopped(checks: GrammarChecks) -> psutil.Process:
    """The process that compiles, when it has started and stands still."""
    assert await problem(checks, 'start: "a"') == ""
    child = worker()
    child.suspend()
    return child


async def test_nobody_waits_behind_a_deadline(checks):
    """A compilation may wait for its turn for longer."""
    child = await stopped(checks)
    with pytest.raises(Refusal) as caught:
        await checks.check('start: "b"', "the_field", deadline_ns=1)
    assert caught.value.code == "REQUEST_TIMEOUT"
    child.resume()
    assert await problem(checks, 'start: "b"') == ""


async def test_what_nobody_wants_any_more_is_not_compiled(checks):
    """Clients that have left, and sent one grammar after the other, do not delay those behind them."""
    child = await stopped(checks)
    async with asyncio.TaskGroup() as group:
        for source in ('start: "b"', 'start: "c"'):  # these take both turns
            group.create_task(checks.check(source, "the_field"))
        group.create_task(checks.check("start: nowhere", "the_field", wanted=lambda: False))
        await asyncio.sleep(0)
        child.resume()
    assert 'unknown name: "nowhere"' in await problem(checks, "start: nowhere")


async def test_no_process_is_started_at_the_end(checks):
    """Who waits for a turn when the server ends is refused too."""
    await stopped(checks)
    waiting = [asyncio.create_task(checks.check(f"start: /{number}/", "the_field")) for number in range(4)]
    await asyncio.sleep(0)
    checks.close()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [refusal.code for refusal in found if isinstance(refusal, Refusal)] == ["grammars_gone"] * 4
    assert not workers()


async def test_no_process_is_left_of_one_that_was_being_started():
    """Wherever its start is when the server ends."""
    for turns in range(1, 6):
        checks = GrammarChecks(SYNTHETIC)
        waiting = asyncio.create_task(checks.check('start: "a"', "the_field"))
        for _ in range(turns):
            await asyncio.sleep(0)
        checks.close()
        with pytest.raises(Refusal, match="has ended"):
            await waiting
        assert not workers()


async def test_a_process_that_cannot_be_started_is_no_fault_of_the_grammar(checks):
    """Without a free descriptor a client is told to try again."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(Refusal) as caught:
            await checks.check('start: "a"', "the_field")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.kind == RefusalKind.UNAVAILABLE
    assert await problem(checks, 'start: "a"') == ""


async def test_what_may_end_otherwise_another_time_is_not_remembered(checks):
    """Here a compilation has no descriptor left, which is no fault of the grammar."""
    assert await problem(checks, 'start: "a"') == ""
    child = worker()
    limits = child.rlimit(psutil.RLIMIT_NOFILE)
    _, last, *_ = unused_descriptors(child)  # the pipe for its answer has these two
    child.rlimit(psutil.RLIMIT_NOFILE, (last + 1, limits[1]))
    assert "it cannot be compiled now" in await problem(checks, 'start: "b"')
    child.rlimit(psutil.RLIMIT_NOFILE, limits)
    assert await problem(checks, 'start: "b"') == ""
