"""An engine in the benchmark's own process: the real core, scheduler, runner, sampler and rings, without a server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rbee import messages
from rbee.engine.block_manager import BlockManager
from rbee.engine.engine_core import EngineCore
from rbee.engine.publisher import Publisher
from rbee.engine.scheduler import Scheduler
from rbee.engine.step_cost import StepCost
from rbee.models import ConsoleProgress, prepare
from rbee.sampling_params import SamplingParams
from rbee.transport import Arena, Consumer, Producer, create_doorbell

if TYPE_CHECKING:
    import argparse
    import contextlib
    from pathlib import Path

    from rbee.engine.model_runner import ModelRunner


class Stream:
    """What came of a request: when each of its tokens was committed, and how it ended."""

    def __init__(self, submitted_ns: int) -> None:
        self.submitted_ns = submitted_ns
        self.commit_ns: list[int] = []
        self.token_ids: list[int] = []
        self.finish = 0

    @property
    def ttft_ms(self) -> float:
        """Submission to the commit of the first token."""
        return (self.commit_ns[0] - self.submitted_ns) / 1e6


class Rig:
    """An engine core, and the consumer of its rings."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        runner: ModelRunner,
        *,
        max_num_batched_tokens: int = 512,
        max_decode_slowdown: float = 2.0,
        prefix_caching: bool = True,
        block_size: int = 16,
    ) -> None:
        arena = Arena.create(num_rings=64, ring_capacity=8192, epoch=1)
        stack.callback(arena.close)
        stack.callback(arena.unlink)
        doorbell = create_doorbell()
        stack.callback(os.close, doorbell)
        self._consumer, producer = Consumer(arena, doorbell), Producer(arena, doorbell)
        stack.callback(self._consumer.close)
        stack.callback(producer.close)
        self.scheduler = Scheduler(
            BlockManager(runner.num_blocks, block_size, prefix_caching=prefix_caching),
            max_num_seqs=64,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=runner.max_model_len,
        )
        self.core = EngineCore(
            runner,
            self.scheduler,
            producer,
            Publisher(producer),
            step_cost=StepCost(max_decode_slowdown),
            slow_reader_timeout=1e6,
        )
        self._streams: dict[int, Stream] = {}

    def submit(self, prompt: list[int], now_ns: int, **sampling: Any) -> Stream:
        """Hand a request to the core; greedy unless `sampling` says otherwise."""
        assigned = self._consumer.assign()
        assert assigned is not None
        ring, generation = assigned
        self._streams[ring] = stream = Stream(now_ns)
        self.core.submit(
            messages.Submit(
                request_id=str(ring),
                ring=ring,
                generation=generation,
                prompt=messages.pack_token_ids(prompt),
                sampling=SamplingParams(**{"temperature": 0.0, **sampling}),
                received_ns=now_ns,
            )
        )
        return stream

    def step(self) -> bool:
        """One step, and a drain."""
        stepped = self.core.step()
        drained = self._consumer.drain()
        start = 0
        for ring, end, finish in zip(drained.rings, drained.ends, drained.finishes, strict=True):
            stream = self._streams[ring]
            stream.commit_ns += drained.commit_ns[start:end]
            stream.token_ids += drained.tokens[start:end]
            stream.finish = finish
            start = end
        return stepped

    def run(self) -> None:
        """Until nothing is left to do."""
        while self.step():
            pass


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what runs: --model and --threads."""
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as `rbee serve` takes it")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: one per core")


def model_folder(name: str) -> Path:
    """The ready folder of a model, fetched and converted if need be."""
    with ConsoleProgress() as progress:
        return prepare(name, progress=progress).path


def load_runner(folder: Path, *, threads: int, kv_cache_mib: int = 1024, max_model_len: int = 0) -> ModelRunner:
    """The torch runner on a ready folder, in fp32."""
    from rbee.engine.torch_runner import TorchRunner  # noqa: PLC0415 - takes seconds: `--help` stays instant

    return TorchRunner(
        folder,
        device="cpu",
        dtype="float32",
        threads=threads,
        max_model_len=max_model_len,
        max_num_seqs=64,
        block_size=16,
        kv_cache_mib=kv_cache_mib,
        progress=lambda _stage, _done, _total: None,
    )
