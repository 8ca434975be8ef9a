"""OpenVINO GenAI behind `engine_peer.py`: its pipeline for continuous batching, which reads GGUF files.

It computes weights of four bits as they are, and activations as its CPU plugin chooses; its KV cache has 8 bits, its
default on a CPU. A step is `step()`, which samples too (greedily) and schedules: the library has no call for the model
alone, and none for its logits.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found] # it is in the peer's environment only
import openvino_genai as genai  # type: ignore[import-not-found]

_CACHE_GB = 2
_LARGEST_STEP = 16384  # tokens: all prompts in one
_MOST_SEQUENCES = 64


class OpenVinoPeer:
    """See `engine_peer.Peer`."""

    def __init__(self, gguf: str, threads: int) -> None:
        scheduling = genai.SchedulerConfig()
        scheduling.cache_size = _CACHE_GB
        scheduling.max_num_batched_tokens = _LARGEST_STEP
        scheduling.max_num_seqs = _MOST_SEQUENCES
        scheduling.enable_prefix_caching = True  # so that a prompt that is held costs one step
        self._pipeline = genai.ContinuousBatchingPipeline(gguf, scheduling, "CPU", {"INFERENCE_NUM_THREADS": threads})
        self._threads = threads
        self._prompts: list[list[int]] = []
        self._number = 0

    def hello(self) -> dict[str, Any]:
        """Versions and threads."""
        return {"version": genai.__version__, "system": "OpenVINO's CPU plugin", "threads": self._threads}

    def hold(self, prompts: list[list[int]], num_tokens: int) -> dict[str, Any]:
        """Have them in the prefix cache; it has room for all lengths."""
        del num_tokens
        self._prompts = prompts
        for prompt in prompts:
            self._add(prompt, 1)
            self._run()
        return {}

    def decode(self, batch: int, steps: int) -> dict[str, Any]:
        """A step for the prompts, one for warmth, and those that are timed."""
        handles = [self._add(prompt, steps + 2) for prompt in self._prompts[:batch]]
        ms = [1e3 * self._step() for _ in range(steps + 2)]
        assert not self._pipeline.has_non_finished_requests(), "not all prompts ended in one step"
        assert all(len(handle.read_all()[0].generated_ids) == steps + 2 for handle in handles)
        return {"ms": ms[2:]}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """All steps until its first token."""
        self._add(prompt, 1)
        return {"ms": 1e3 * self._run()}

    def logits(self, **_: Any) -> dict[str, Any]:
        """The library shows none."""
        raise SystemExit("OpenVINO GenAI shows no logits: leave it out here.")

    def _add(self, prompt: list[int], num_tokens: int) -> Any:
        options = genai.GenerationConfig()
        options.max_new_tokens = num_tokens
        options.ignore_eos = True
        options.do_sample = False
        self._number += 1
        return self._pipeline.add_request(self._number, openvino.Tensor(np.array([prompt], np.int64)), options)

    def _step(self) -> float:
        started = time.perf_counter()
        self._pipeline.step()
        return time.perf_counter() - started

    def _run(self) -> float:
        seconds = 0.0
        while self._pipeline.has_non_finished_requests():
            seconds += self._step()
        return seconds


def load(gguf: str, threads: int) -> OpenVinoPeer:
    """OpenVINO with this model."""
    return OpenVinoPeer(gguf, threads)
