"""What the engine's tests share: an engine core over real rings in this process, the engine as a process, and fakes."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from rbee import messages
from rbee.config import SYNTHETIC
from rbee.engine.engine_core import EngineCore
from rbee.engine.grammars import Grammars
from rbee.engine.intake import Intake
from rbee.engine.publisher import Publisher
from rbee.engine.request_times import RequestTimes
from rbee.engine.runners.context_length import CacheSize
from rbee.engine.runners.interface import StepOutput
from rbee.engine.runners.synthetic import SyntheticRunner
from rbee.engine.scheduling.block_manager import BlockManager
from rbee.engine.scheduling.scheduler import Scheduler
from rbee.engine.scheduling.step_cost import StepCost
from rbee.grammars import vocabulary
from rbee.messages import FinishReason
from rbee.sampling_params import SamplingParams
from rbee.transport import Arena, Consumer, LifeLine, Producer, create_doorbell
from rbee.transport.control import FrameDecoder, frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rbee.config import EngineConfig
    from rbee.engine.input_batch import InputBatch
    from rbee.engine.runners.interface import ModelRunner
    from rbee.engine.sampler import ThreadPool
    from rbee.engine.step_clock import StepClock
    from rbee.grammars.vocabulary import Vocabulary

_SUBMIT_OPTIONS = frozenset({"received_ns", "priority", "deadline_ns", "cache_salt", "report_cached", "pooling"})

PATIENCE = 60.0  # seconds after which something that never comes fails a test


def synthetic() -> SyntheticRunner:
    """The synthetic model without waiting."""
    return SyntheticRunner(CacheSize(block_size=16, kv_cache_mib=64), step_seconds=0)


class ScriptedRunner:
    """A fake model: greedy decoding counts up from a prompt's last token; `react` may spoil a step's logits."""

    name = "scripted"
    device = "cpu"
    dtype = "float32"
    kernels = "numpy"
    pool: ThreadPool | None = None

    def __init__(self, react: Callable[[InputBatch, np.ndarray], None] | None = None) -> None:
        self.vocab_size = 64
        self.hidden_size = 4
        self.has_head = True
        self.window = 0
        self.max_model_len = 128
        self.num_blocks = 64
        self.batches: list[InputBatch] = []
        self._react = react

    def execute(self, batch: InputBatch) -> StepOutput:
        """One-hot rows where it samples."""
        self.batches.append(batch)
        logits = np.zeros((len(batch.logits_rows), self.vocab_size), np.float32)
        for row, sequence in enumerate(batch.row_sequences[: batch.num_sampling]):
            logits[row, (sequence.token_ids[-1] + 1) % self.vocab_size] = 9
        if self._react is not None:
            self._react(batch, logits)
        return StepOutput(logits)


class Unlimited(StepCost):
    """Lets a step have all the prompt tokens that it can take."""

    def __init__(self) -> None:
        super().__init__(2.0)

    def prompt_budget(self, num_decodes: int, num_prompts: int = 1) -> int:  # noqa: ARG002 - as StepCost has it
        """See StepCost."""
        return sys.maxsize


class Request:
    """What the server's side knows of a request."""

    def __init__(self, ring: int) -> None:
        self.ring = ring
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.finish: FinishReason | None = None
        self.cached_tokens: int | None = None


class Rings:
    """The server's side of an arena: assigns rings and drains them."""

    def __init__(self, *, ring_capacity: int = 1024) -> None:
        self.arena = Arena.create(num_rings=64, ring_capacity=ring_capacity, epoch=1)
        self.doorbell = create_doorbell()
        self.consumer = Consumer(self.arena, self.doorbell)
        self._requests: dict[int, Request] = {}

    def submission(self, prompt: list[int], **options: Any) -> tuple[Request, messages.Submit]:
        """A new request on a free ring, and the record that submits it; greedy unless it says otherwise.

        Options are members of Submit, or else of SamplingParams.
        """
        members = {name: options.pop(name) for name in _SUBMIT_OPTIONS & options.keys()}
        assigned = self.consumer.assign()
        assert assigned is not None
        ring, generation = assigned
        assert ring not in self._requests, "the ring was not free"
        request = self._requests[ring] = Request(ring)
        return request, messages.Submit(
            request_id=f"{ring}/{generation}",
            ring=ring,
            generation=generation,
            prompt=messages.pack_token_ids(prompt),
            sampling=SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **options}),
            **{"received_ns": 0, **members},
        )

    def drain(self) -> bool:
        """Take everything that is there. True: the engine sleeps and waits for the space that is there now."""
        needs_wake = False
        while True:
            drained = self.consumer.drain()
            needs_wake |= drained.needs_wake
            start = 0
            for ring, end, finish in zip(drained.rings, drained.ends, drained.finishes, strict=True):
                request = self._requests[ring]
                assert request.finish is None, "nothing may come after the finish"
                request.tokens += drained.tokens[start:end]
                request.logprobs += drained.logprobs[start:end]
                start = end
                if finish:
                    request.finish, request.cached_tokens = FinishReason(finish & 0xFF), finish >> 8
                    del self._requests[ring]
            if not drained.more:
                return needs_wake

    def close(self) -> None:
        """Leave nothing behind."""
        self.consumer.close()
        self.arena.unlink()
        self.arena.close()
        os.close(self.doorbell)


class InProcessEngine:
    """A real core, scheduler, publisher and rings around a runner; the test decides when a step is taken.

    Attributes:
        now_ns: the core's clock, which stands still unless the test moves it.
    """

    def __init__(
        self,
        runner: ModelRunner,
        *,
        num_blocks: int | None = None,
        block_size: int = 16,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        ring_capacity: int = 1024,
        slow_reader_timeout: float = 60.0,
        prefix_caching: bool = True,
        step_cost: StepCost | None = None,
        step_clock: StepClock | None = None,
        load_vocabulary: Callable[[], Vocabulary] | None = None,
        grammar_threads: int = 1,
    ) -> None:
        self.now_ns = 0
        self.rings = Rings(ring_capacity=ring_capacity)
        self.producer = Producer(self.rings.arena, self.rings.doorbell)
        self.scheduler = Scheduler(
            BlockManager(
                num_blocks or runner.num_blocks, block_size, prefix_caching=prefix_caching, window=runner.window
            ),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=min(runner.max_model_len, (num_blocks or runner.num_blocks) * block_size),
        )
        self.publisher = Publisher(self.producer)
        self.grammars = Grammars(load_vocabulary or partial(vocabulary.load, SYNTHETIC), threads=grammar_threads)
        times = RequestTimes(self.producer, now_ns=lambda: self.now_ns)
        self.intake = Intake(
            self.scheduler,
            self.producer,
            self.publisher,
            times,
            vocab_size=runner.vocab_size,
            max_model_len=runner.max_model_len,
            slow_reader_timeout=slow_reader_timeout,
            grammars=self.grammars,
            now_ns=lambda: self.now_ns,
        )
        self.core = EngineCore(
            runner,
            self.scheduler,
            self.intake,
            self.publisher,
            times,
            step_cost=step_cost or Unlimited(),
            step_clock=step_clock,
        )

    def submit(self, prompt: list[int], **options: Any) -> Request:
        """Hand a request to the core."""
        request, record = self.rings.submission(prompt, **options)
        self.core.submit(record)
        return request

    def run(self) -> None:
        """Step and drain until there is nothing left to do, also no grammar to build."""
        while True:
            while self.core.step():
                self.rings.drain()
            self.rings.drain()
            if not self.intake.num_building:
                return
            select.select([self.grammars.descriptor], [], [], PATIENCE)
            self.grammars.clear_descriptor()

    def assert_at_baseline(self) -> None:
        """Nothing lives: all blocks and rings are free."""
        gauges = self.core.gauges()
        assert (gauges.sequences_running, gauges.sequences_waiting, self.intake.live) == (0, 0, {})
        assert gauges.kv_blocks_used == 0
        assert self.rings.consumer.in_use == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.grammars.close()
        self.producer.close()
        self.rings.close()


class EngineProcess:
    """`python -m rbee.engine`, spoken to as the server speaks to it."""

    def __init__(self, folder: Path, config: EngineConfig, ring_capacity: int, slow_reader_timeout: float) -> None:
        self.rings = Rings(ring_capacity=ring_capacity)
        self.control, engine_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.control.settimeout(PATIENCE)
        self._decoder = FrameDecoder()
        self._records: list[messages.ToServer] = []
        self.log = folder / "engine.log"
        _, life_line = LifeLine.create()
        with self.log.open("wb") as stderr, engine_end, os.fdopen(life_line):
            fds = (engine_end.fileno(), self.rings.doorbell, self.rings.arena.descriptor, life_line)
            self.process = subprocess.Popen(engine_command(*fds, os.getpid()), pass_fds=fds, stderr=stderr)
        self.send(messages.Configure(engine=config, slow_reader_timeout=slow_reader_timeout))

    def send(self, record: messages.ToEngine) -> None:
        """Send one record."""
        self.control.sendall(frame(messages.encode(record)))

    def receive(self) -> messages.ToServer:
        """The next record; EOFError when the engine has closed its end."""
        while not self._records:
            data = self.control.recv(65536)
            if not data:
                raise EOFError(self.log.read_text())
            self._records += map(messages.decode_to_server, self._decoder.feed(data))
        return self._records.pop(0)

    def wait_for(self, kind: type) -> messages.ToServer:
        """The next record of this kind, past others."""
        while not isinstance(record := self.receive(), kind):
            pass
        return record

    def submit(self, prompt: list[int], **options: Any) -> Request:
        """Submit a request over the control channel."""
        request, record = self.rings.submission(prompt, **options)
        self.send(record)
        return request

    def wait_for_counters(self, condition: Callable[[dict[str, int]], bool]) -> None:
        """Look at the arena's counters, which follow a step's tokens, until `condition(counters)`."""
        deadline = time.monotonic() + PATIENCE
        while not condition(counters := self.rings.consumer.counters()):
            assert time.monotonic() < deadline, counters
            time.sleep(0.001)

    def drain_until(self, condition: Callable[[], object]) -> None:
        """Drain, woken by the doorbell alone, until `condition()` is true."""
        while True:
            if self.rings.drain():
                self.send(messages.Wake())
            if condition():
                return
            ready, _, _ = select.select([self.rings.doorbell], [], [], PATIENCE)
            assert ready, f"the doorbell stays silent; log:\n{self.log.read_text()}"

    def close(self) -> None:
        """End it, however it feels."""
        self.control.close()
        self.process.kill()
        self.process.wait()
        self.rings.close()


@contextlib.contextmanager
def engine_process(
    folder: Path, config: EngineConfig, *, ring_capacity: int = 1024, slow_reader_timeout: float = 60
) -> Iterator[EngineProcess]:
    """An engine process for the length of a block."""
    engine = EngineProcess(folder, config, ring_capacity, slow_reader_timeout)
    try:
        yield engine
    finally:
        engine.close()


def engine_command(control_fd: int, doorbell_fd: int, arena_fd: int, life_line_fd: int, parent_pid: int) -> list[str]:
    """The command line of the start protocol."""
    options = {"--control-fd": control_fd, "--doorbell-fd": doorbell_fd, "--arena-fd": arena_fd}
    options |= {"--life-line-fd": life_line_fd, "--parent-pid": parent_pid}
    return [sys.executable, "-m", "rbee.engine", *(str(word) for option in options.items() for word in option)]
