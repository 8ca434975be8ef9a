"""What the engine expects of a model runner, whatever computes.

Owns the interface, and the words in which a runner refuses a model. Does not know any runner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from rbee.engine.input_batch import InputBatch
    from rbee.engine.sampler import ThreadPool

    Progress = Callable[[str, int, int], None]
    """Called with (stage, parts done, parts in all) for each part of the work while a model loads."""

    OnProgress = Callable[[], None]
    """Called after each chunk of work within a step, so that a long step is not taken for a hang."""


class Unsupported(Exception):  # noqa: N818 - no failure: another runner may serve the model
    """A runner cannot serve a model; the argument completes a sentence after "because"."""


class StepOutput(NamedTuple):
    """A row for each of the batch's R `logits_rows`; the next step may overwrite the memory.

    A row of logits that the model could not compute properly is not finite; the other rows do not depend on it.
    """

    logits: NDArray[np.float32]  # float32 [R, vocab_size], C-contiguous
    hidden_states: NDArray[np.float32] | None = None  # float32 [R, hidden_size], the head's input; None: not kept


class ModelRunner(Protocol):
    """A loaded model with a KV cache of `num_blocks` blocks."""

    name: str  # "native", "torch" or "synthetic", for people
    device: str  # where it computes, for people
    dtype: str  # precision of weights and KV cache, for people
    vocab_size: int  # width of the logits; prompt tokens must be smaller
    max_model_len: int  # tokens that one sequence may have, prompt plus output; they fit the KV cache
    num_blocks: int  # blocks in the KV cache

    @property
    def pool(self) -> ThreadPool | None:
        """The runner's threads, which the sampler may use between two steps; None: it shares none."""

    def execute(self, batch: InputBatch) -> StepOutput:
        """Compute a step."""
        ...
