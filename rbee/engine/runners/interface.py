"""The interface of a model runner.

Owns the interface and the exception with which a runner refuses a model. Does not know any runner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from rbee.engine.input_batch import InputBatch
    from rbee.engine.sampler import ThreadPool

    OnProgress = Callable[[], None]  # after each chunk of work within a step, so that a long step is no hang


class OnLoading(Protocol):
    """Called for each part of loading."""

    def __call__(self, stage: str, done: int, total: int, layers_loaded: int = 0, layers_total: int = 0, /) -> None:
        """`done` of `total` parts of a stage, and layers of the model; `layers_total` 0: not known yet."""


class Unsupported(Exception):  # noqa: N818 - no failure: another runner may serve the model
    """A runner cannot serve a model; the argument completes a sentence after "because"."""


class StepOutput(NamedTuple):
    """A row for each of the batch's R `logits_rows` and H `hidden_rows`. The next step may overwrite the memory.

    A row that could not be computed is not finite; the other rows do not depend on it.
    """

    logits: NDArray[np.float32]  # float32 [R, vocab_size], C-contiguous
    hidden_states: NDArray[np.float32] | None = None  # float32 [H, hidden_size], the head's input; None: H is 0


class ModelRunner(Protocol):
    """A loaded model with a KV cache of `num_blocks` blocks."""

    name: str  # "native", "torch" or "synthetic", for log lines
    device: str  # where it computes, for log lines
    dtype: str  # precision of weights and KV cache, for log lines
    kernels: str  # which code computes: with model and dtype it decides the tokens, bit for bit
    vocab_size: int  # width of the logits; prompt tokens must be smaller
    hidden_size: int  # width of the hidden states; 0: it gives none
    has_head: bool  # False: its logits mean nothing, as those of a decoder that was saved without a head
    max_model_len: int  # tokens that one sequence may have, prompt plus output; they fit the KV cache
    num_blocks: int  # blocks in the KV cache
    window: (
        int  # positions that a token reads of the KV cache at most, in any layer, its own included; 0: all before it
    )

    @property
    def pool(self) -> ThreadPool | None:
        """The runner's threads, which the sampler may use between two steps; None: it shares none."""

    def execute(self, batch: InputBatch) -> StepOutput: ...
