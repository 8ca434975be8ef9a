"""An engine in the benchmark's own process: the real core, scheduler, runner, sampler and rings, without a server."""

from __future__ import annotations

import array
import dataclasses
import os
import random
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rbee import messages
from rbee.config import DEFAULT_MODEL, SYNTHETIC, EngineConfig
from rbee.engine.engine_core import EngineCore
from rbee.engine.grammars import Grammars
from rbee.engine.input_batch import InputBatch
from rbee.engine.intake import Intake
from rbee.engine.publisher import Publisher
from rbee.engine.request_times import RequestTimes
from rbee.engine.runners import choice as model_runner
from rbee.engine.runners.context_length import CacheSize
from rbee.engine.runners.native.spec import read_spec
from rbee.engine.scheduling.block_manager import BlockManager
from rbee.engine.scheduling.scheduler import Scheduled, Scheduler
from rbee.engine.scheduling.sequence import Sequence
from rbee.engine.scheduling.step_cost import StepCost
from rbee.grammars import vocabulary
from rbee.models import ConsoleProgress, gguf_of, prepare
from rbee.models.folder import read_config
from rbee.sampling_params import SamplingParams
from rbee.transport import Arena, Consumer, Producer, create_doorbell

if TYPE_CHECKING:
    import argparse
    import contextlib
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rbee.engine.runners.interface import ModelRunner
    from rbee.grammars.vocabulary import Vocabulary

_BLOCK_SIZE = 16
_FLOATS = Path(__file__).parent.parent / "build" / "float32"


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
        block_size: int = _BLOCK_SIZE,
        load_vocabulary: Callable[[], Vocabulary] | None = None,
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
            BlockManager(runner.num_blocks, block_size, prefix_caching=prefix_caching, window=runner.window),
            max_num_seqs=64,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=runner.max_model_len,
        )
        publisher, times = Publisher(producer), RequestTimes(producer)
        self.grammars = Grammars(load_vocabulary or partial(vocabulary.load, SYNTHETIC))
        stack.callback(self.grammars.close)
        intake = Intake(
            self.scheduler,
            producer,
            publisher,
            times,
            vocab_size=runner.vocab_size,
            max_model_len=runner.max_model_len,
            slow_reader_timeout=1e6,
            grammars=self.grammars,
        )
        self.core = EngineCore(
            runner, self.scheduler, intake, publisher, times, step_cost=StepCost(max_decode_slowdown)
        )
        self._streams: dict[int, Stream] = {}

    def submit(self, prompt: list[int], now_ns: int, **sampling: Any) -> Stream:
        """Hand a request to the core; greedy without `sampling`."""
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
    """Add the options for the model, its runner and how that computes."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help="as `rbee serve` takes it")
    parser.add_argument(
        "--runner", choices=["auto", "native", "torch"], default="auto", help="as `rbee serve` takes it"
    )
    parser.add_argument("--exact", action="store_true", help="native: activations in fp32")
    parser.add_argument(
        "--quantize", choices=["none", "q4", "q8"], default="none", help="native: of weights stored as floats"
    )
    parser.add_argument(
        "--kv-cache-dtype", choices=["auto", "f16", "q8"], default="auto", help="as `rbee serve` takes it"
    )
    parser.add_argument(
        "--instruction-set",
        choices=["auto", "avx512", "avx2", "portable"],
        default="auto",
        help="native: the kernels to take (default: the best that the processor has)",
    )
    parser.add_argument("--threads", type=int, default=0, help="that compute; 0: one per core")


def variant(options: argparse.Namespace) -> str:
    """What of `add_model_options` is not the default, as an end for a result's name: "", "_torch", "_exact_avx2"."""
    kv_cache = "auto" if options.kv_cache_dtype == "auto" else f"{options.kv_cache_dtype}-kv"
    exact = "exact" if options.exact else "auto"
    chosen = [options.runner, exact, options.quantize, kv_cache, options.instruction_set]
    return "".join(f"_{choice}" for choice in chosen if choice not in {"auto", "native", "none"})


def label(runner: ModelRunner, options: argparse.Namespace) -> str:
    """What computes, for people: "native, q4 weights, int8 activations, avx2, 2 threads"."""
    kernels = getattr(runner, "instruction_set", "")
    return ", ".join(filter(None, [runner.name, runner.dtype, kernels, f"{num_threads(options)} threads"]))


def num_threads(options: argparse.Namespace) -> int:
    """How many compute."""
    return options.threads or len(os.sched_getaffinity(0))


def add_gguf_option(parser: argparse.ArgumentParser) -> None:
    """Add --gguf, the path of the model's GGUF file."""
    parser.add_argument(
        "--gguf",
        type=Path,
        metavar="FILE",
        help="the same model for llama.cpp; by default the one that --model is",
    )


def gguf_file(folder: Path, options: argparse.Namespace) -> Path | None:
    """The GGUF file of the model in `folder`: --gguf, or the one with the weights of the folder; None: neither."""
    given: Path | None = options.gguf
    return given or gguf_of(folder)


def gguf_for_peers(folder: Path, options: argparse.Namespace) -> Path:
    """The same; ends the program if there is none."""
    if gguf := gguf_file(folder, options):
        return gguf
    raise SystemExit(f"{folder} stands for no GGUF file, and llama.cpp needs one: give --gguf FILE.")


def model_folder(name: str) -> Path:
    """The ready folder of a model, fetched if need be."""
    with ConsoleProgress() as progress:
        return prepare(name, progress=progress).path


def float_folder(folder: Path) -> Path:
    """A folder that transformers reads, with the weights in float32: of a GGUF, as transformers itself reads it."""
    gguf = gguf_of(folder)
    if gguf is None:
        return folder
    target = _FLOATS / folder.name
    if not (target / "config.json").exists():
        import torch  # noqa: PLC0415 - takes seconds
        from transformers import AutoModelForCausalLM  # noqa: PLC0415

        partial = target.with_name(f"{target.name}.partial")
        shutil.copytree(folder, partial, ignore=shutil.ignore_patterns("*.gguf", "rbee.json"), dirs_exist_ok=True)
        load: Any = AutoModelForCausalLM.from_pretrained
        model = load(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # Its weights are floats now, but it still says that it is quantized, and that is not saved.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(partial)
        partial.rename(target)
    return target


def load_runner(folder: Path, options: argparse.Namespace, *, kv_cache_mib: int = 1024) -> ModelRunner:
    """The runner of the options of `add_model_options`, on a ready folder; torch computes in fp32."""
    config = EngineConfig(
        model=str(folder),
        runner=options.runner,
        exact=options.exact,
        quantize=options.quantize,
        kv_cache_dtype=options.kv_cache_dtype,
        threads=options.threads,
        max_num_seqs=64,
        block_size=_BLOCK_SIZE,
        kv_cache_mib=kv_cache_mib,
    )
    if options.instruction_set == "auto":
        return model_runner.load(config, _no_progress)
    if options.runner == "torch":
        raise SystemExit("--instruction-set is the native runner's: leave --runner torch out.")
    # `rbee serve` has no option for the kernels to take.
    from rbee.engine.runners.native.runner import NativeRunner  # noqa: PLC0415 - `--help` stays instant

    return NativeRunner(
        folder,
        read_spec(read_config(folder)),
        CacheSize(block_size=_BLOCK_SIZE, kv_cache_mib=kv_cache_mib, max_num_seqs=64),
        quantize=config.quantize,
        exact=config.exact,
        kv_cache="f16" if config.kv_cache_dtype == "auto" else config.kv_cache_dtype,
        threads=config.threads,
        on_loading=_no_progress,
        instruction_set=options.instruction_set,
    )


def _no_progress(*_: object) -> None:
    pass


def random_prompts(count: int, tokens: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Prompts of so many random tokens."""
    pick = random.Random(seed)
    return [[pick.randrange(vocab_size) for _ in range(tokens)] for _ in range(count)]


def logits_of(runner: ModelRunner, token_ids: list[int], chunks: list[int]) -> NDArray[np.float32]:
    """Every token's logits, [tokens, vocabulary], computed in chunks of these sizes as steps of one sequence."""
    blocks = BlockManager(runner.num_blocks, _BLOCK_SIZE, prefix_caching=False)
    sequence = Sequence("", 0, (0, 0), array.array("I", token_ids), SamplingParams(max_tokens=1))
    admitted = blocks.admit(sequence, blocks.find(sequence))
    assert admitted, "the KV cache is too small"
    rows = []
    for size in chunks:
        batch = InputBatch.build([Scheduled(sequence, size)], _BLOCK_SIZE)
        rows.append(runner.execute(dataclasses.replace(batch, logits_rows=np.arange(size))).logits.copy())
        blocks.advance(sequence, size)
    return np.concatenate(rows)
