# ruff: noqa: PYI021 - this file is where the native module is documented
"""The CPU kernels in C++ (`native/kernels/`). They compute without the GIL.

Formats of weights are the numbers of WeightFormat in `rbee_kernels/weights.h`.

Results are written to arrays of the caller's. All arrays are C-contiguous. With a `pool` its threads share the work of
a call, and `portable` avoids this machine's vector instructions; the results are the same bit for bit.
"""

from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rbee.transport import Progress

class ThreadPool:
    """The compute threads: the caller of whatever takes a pool, and workers.

    Workers look for the next thing to do for a fifth of a millisecond, giving way to other processes, and then sleep.
    What runs on a pool takes it as an argument. Of several callers at once, one runs and the others wait.
    """

    def __init__(self, threads: int) -> None:
        """Start threads - 1 threads.

        Raises:
            ValueError: less than 1 or more than 1024.
            RuntimeError: the system has no more threads.
        """

    @property
    def threads(self) -> int:
        """How many, the calling one among them."""

def pack(
    source: NDArray[np.uint8],
    source_type: int,
    rows: int,
    cols: int,
    *,
    format: int,  # noqa: A002 - as in weights.h
    row_order: NDArray[np.uint32] | None = None,
    packed: NDArray[np.uint8],
    first_row: int = 0,
    end_row: int | None = None,
) -> None:
    """Write a matrix [rows, cols] of a file in the layout that the kernels read (`rbee_kernels/weights.h`).

    `source` has the bytes of all rows, one after the other, in the type that ggml gives this number; it may be a
    read-only map of a file, at any address. The packed row i is its row `row_order[i]`. `packed` has `packed_bytes` and
    is written from `first_row`, a multiple of 16, to `end_row`, another one or `rows`: threads can pack ranges of the
    same matrix at once. `rbee_kernels/pack.h` has what is lost, if anything.

    Raises:
        ValueError: sizes, types and rows that do not fit, or a format that would lose more than `pack.h` lists.
        TypeError: an array of another type, with strides, or that cannot be written to.
    """

def dequantize(
    source: NDArray[np.uint8],
    source_type: int,
    rows: int,
    cols: int,
    *,
    row_order: NDArray[np.uint32] | None = None,
    first_row: int = 0,
    end_row: int | None = None,
) -> NDArray[np.float32]:
    """Rows `first_row` to `end_row` of a matrix of a file as a new array, as ggml makes floats of them.

    The arguments are those of `pack`. A zero may have another sign, and infinity may be NaN.

    Raises:
        ValueError: sizes, types and rows that do not fit.
        TypeError: an array of another type.
    """

SOURCE_TYPES: Final[tuple[str, ...]]
"""ggml's names of all types that can be packed and dequantized."""

def held_by(source_type: int) -> int:
    """The format that holds a type without loss.

    Raises:
        ValueError: a type that cannot be read.
    """

def packed_bytes(format: int, rows: int, cols: int) -> int:  # noqa: A002 - as in weights.h
    """The size of a packed matrix, whose rows are filled up to a multiple of 16.

    Raises:
        ValueError: a format or size that does not exist.
    """

def unpack(packed: NDArray[np.uint8], format: int, rows: int, cols: int) -> NDArray[np.float32]:  # noqa: A002
    """The weights of a packed matrix as a new array [rows, cols].

    Raises:
        ValueError: `packed` is not of this matrix's size.
    """

WEIGHT_FORMATS: Final[tuple[str, ...]]
"""The names of the formats, by their numbers; `native/kernels/rbee_kernels/weights.h` has the layouts."""

class ModelShape:
    """The sizes of a decoder, and what is the same in all of its layers."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        intermediate_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        epsilon: float,
        activation: str,
        attention_scale: float,
        embedding_scale: float,
        residual_scale: float = 1.0,
        logit_scale: float = 1.0,
        query_growth: float = 0.0,
        query_length: int = 1,
    ) -> None:
        """See `rbee_kernels/decoder.h`. The activation is "silu", "gelu_tanh" or "relu2".

        Raises:
            ValueError: another activation, or a query_length of 0.
        """

    def block_bytes(self, *, num_layers: int, block_size: int, kv_cache: str) -> int:
        """Memory that a block of the KV cache takes in all layers; `kv_cache`: see `Model`."""

class Weights:
    """The weights of a decoder of the Llama family, in the order in which a step reads them."""

    def __init__(
        self,
        shape: ModelShape,
        *,
        layers: list[tuple[int, int]],
        rotaries: list[tuple[list[float], float]],
        matrices: dict[str, tuple[int, int, int, NDArray[np.uint8], int, NDArray[np.uint32] | None]],
        vectors: dict[str, NDArray[np.float32]],
    ) -> None:
        """Copy the vectors, and reserve memory for the matrices, which `pack` fills.

        Args:
            shape: of the model.
            layers: of each its window (positions that a token sees, itself included; 0: all) and its rotary embedding.
            rotaries: of each the inverse frequencies of the pairs that are turned, [0 .. head_dim / 2], and the factor
                of its cosines and sines.
            matrices: by name: format, and rows, columns, data, type and row order as `pack` takes them. The names are
                "embedding", "head" (or the embedding serves as one) and of each layer "layers.0.query", "key", "value",
                "output", "gate", "up" and "down". Without gates the activation is that of "up".
            vectors: "final_norm", of each layer "layers.0.attention_norm" and "mlp_norm", and what a model may have:
                "query_norm", "key_norm", "post_attention_norm", "post_mlp_norm", "query_bias" and the like.

        Raises:
            ValueError: weights that are missing, have another size or cannot be packed like this, or a size that the
                kernels do not support.
            MemoryError: there is not enough.
        """

    @property
    def source_bytes(self) -> int:
        """Of all matrices as they are stored."""

    def pack(self, num_bytes: int, pool: ThreadPool, progress: Progress | None = None) -> int:
        """Pack the next matrices, about `num_bytes` of them as stored; returns the bytes packed so far.

        `progress` is advanced several times per mebibyte.
        """

class Model:
    """A decoder of the Llama family with its KV cache."""

    def __init__(
        self,
        weights: Weights,
        *,
        exact: bool,
        kv_cache: str,
        num_blocks: int,
        block_size: int,
        instruction_set: str,
        pool: ThreadPool,
        progress: Progress | None = None,
    ) -> None:
        """Reserve the cache.

        Args:
            weights: all packed.
            exact: compute with float activations, also where weights are quantized.
            kv_cache: what keys and values are held in: "f32", "f16" or "q8", which has scales.
            num_blocks: in the cache.
            block_size: tokens in a block.
            instruction_set: "avx512", "avx2", "portable", or "auto": what the environment's RBEE_INSTRUCTION_SET names,
                without it the best of this processor.
            pool: threads for every step.
            progress: is advanced several times per layer of a step.

        Raises:
            ValueError: no blocks, another kind of cache, or an instruction set that this processor does not have.
            MemoryError: there is not enough.
        """

    def execute(
        self,
        token_ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        slot_mapping: NDArray[np.int64],
        query_start: NDArray[np.int64],
        context_lens: NDArray[np.int64],
        block_tables: NDArray[np.int64],
        logits_rows: NDArray[np.int64],
        hidden_rows: NDArray[np.int64] | None = None,
        hidden_states: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Compute a step, whose arrays are as in `rbee.engine.input_batch`.

        Writes what the head reads of the tokens in `hidden_rows` to `hidden_states` [len(hidden_rows), hidden_size].

        Returns:
            Logits [len(logits_rows), vocab_size], which the next step overwrites. One thread at a time may compute.

        Raises:
            ValueError: arrays that contradict each other, or lead outside the vocabulary or the cache.
            TypeError: an array of another type.
        """

    def profile(self) -> dict[str, float]:
        """Seconds since the start: threads' work on "linear", "head", "attention" and "other"; "steps" by the clock."""

    @property
    def instruction_set(self) -> str:
        """The one that computes."""

class RowParams:
    """The parameters of a sequence, which `rbee.engine.sampler.invalid` accepts."""

    def __init__(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        frequency_penalty: float,
        presence_penalty: float,
        repetition_penalty: float,
        min_tokens: int,
        seed: int,
        logit_bias: list[tuple[int, float]],
        stop_token_ids: Sequence[int],
        allowed_token_ids: Sequence[int] | None,
        num_logprobs: int | None,
    ) -> None:
        """As in SamplingParams; the seed as an unsigned 64-bit number."""

def sample(
    logits: NDArray[np.float32],
    rows: Sequence[tuple[RowParams, array[int], int, NDArray[np.uint32] | None]],
    *,
    token_ids: NDArray[np.uint32],
    logprobs: NDArray[np.float32],
    valid: NDArray[np.bool_],
    top_ids: NDArray[np.uint32],
    top_logprobs: NDArray[np.float32],
    pool: ThreadPool | None = None,
    portable: bool = False,
) -> None:
    """Sample a token for each row of logits [n, vocab_size]: its parameters, prompt and output, prompt's length, mask.

    For masks see `rbee.engine.sampler.Row`.

    Writes token_ids [n] and valid [n]; and for valid rows that need them logprobs [n] and the first num_logprobs of
    top_ids and top_logprobs [n, at least that many]. The logprob of another row is NaN; all else in the two tables
    stays what it was.

    Raises:
        ValueError: sizes do not fit.
        TypeError: an array of another type.
    """

def score(
    logits: NDArray[np.float32],
    token_ids: NDArray[np.uint32],
    *,
    logprobs: NDArray[np.float32],
    ranks: NDArray[np.uint32],
    top_ids: NDArray[np.uint32],
    top_logprobs: NDArray[np.float32],
    pool: ThreadPool | None = None,
    portable: bool = False,
) -> None:
    """Write logprobs and ranks [m] of one token per row of the logits, and the best k of each row to top_* [m, k].

    NaN, ids of 0, and ranks that mean nothing, in rows that hold NaN or infinity, or nothing but -inf.

    Raises:
        ValueError: sizes do not fit.
        TypeError: an array of another type.
    """

def distribution(
    logits: NDArray[np.float32],
    row: tuple[RowParams, array[int], int, NDArray[np.uint32] | None],
    *,
    probabilities: NDArray[np.float64],
    portable: bool = False,
) -> bool:
    """Write the probabilities [vocab_size] that `sample` draws from, given logits [1, vocab_size].

    False, and zeros, if the row is not valid.
    """

def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that decides what is drawn at this position."""

def choose_instruction_set(name: str) -> str:
    """The instruction set that a `Model` with this one (which may be "auto") computes with.

    Raises:
        ValueError: this processor does not have it.
    """

def read_bandwidth(mib: int, threads: int) -> float:
    """Bytes per second at which `threads` threads together read `mib` MiB, each its share; the best of some passes."""

def peak_macs(instruction_set: str, threads: int) -> float:
    """Products of 4-bit weights and 8-bit activations per second, of all threads together, in registers alone.

    `instruction_set` is as for `Model`.

    Raises:
        ValueError: this processor does not have the instruction set.
    """
