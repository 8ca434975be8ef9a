"""A transformers model filled with the weights of GGUF files, one tensor after the other.

Owns the way of a tensor's rows into a parameter; beside the model it needs memory for a few rows alone. Does not know
which tensors a parameter is made of: that is in `rbee.models.gguf.tensors`.

The model is made without memory, then gets its buffers from transformers (frequencies of the rope among them, which no
file has), and its parameters from the files.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from rbee.engine import _kernels
from rbee.engine.runners.torch.model import (
    ATTENTION,
    TorchModel,
    first_line,
    reason_of,
    register_attention,
    settle_ropes,
)
from rbee.errors import ModelError
from rbee.models.gguf import GGML_TYPES
from rbee.models.gguf.tensors import tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from rbee.models.gguf import GGUFModel
    from rbee.models.gguf.tensors import Parameter, Piece
    from rbee.models.stored_tensor import PlacedTensor

_VALUES_AT_ONCE = 1 << 20


class _Rows(NamedTuple):
    """How a piece's tensor is cut: `num_rows` from `first_row` on, of `columns` values, for each of the experts."""

    placed: PlacedTensor
    experts: int
    first_row: int
    num_rows: int
    columns: int


def load_gguf_model(
    config: Mapping[str, Any], model: GGUFModel, *, dtype: torch.dtype | None, device: str, max_model_len: int = 0
) -> TorchModel:
    """Load the weights in `model` for inference, in the config's dtype if `dtype` is None.

    `config` is what `rbee.models.gguf.config_of` gives, from a config.json or directly. `max_model_len` is the longest
    sequence that may come, 0: as the model allows. Some ropes depend on it.

    Raises:
        ModelError: the tensors are not those of such a model, or damaged, or of a type that cannot be read.
    """
    path = model.files[0]
    parameters = tensors_of(config, model).parameters
    register_attention()
    made: Any = _make(config, path, dtype, max_model_len)
    wanted = dict(made.named_parameters())
    if strange := wanted.keys() ^ {parameter.name for parameter in parameters}:
        raise ModelError(
            f"{path} cannot be served with this version of transformers: its {type(made).__name__} has other weights, "
            f"{min(strange)} among them."
        )
    for parameter in parameters:
        _check_shape(parameter, model, wanted[parameter.name], path)
    _make_buffers(made, path)
    try:
        for parameter in parameters:
            target = torch.empty(wanted[parameter.name].shape, dtype=wanted[parameter.name].dtype, device=device)
            _fill(target, parameter, model)
            module, _, name = parameter.name.rpartition(".")
            setattr(made.get_submodule(module), name, torch.nn.Parameter(target, requires_grad=False))
        made.tie_weights()
        return TorchModel(made.to(device).eval())
    except (RuntimeError, MemoryError) as error:
        raise ModelError(f"The model {path} cannot be moved to --device {device}: {first_line(error)}.") from error


def _make(config: Mapping[str, Any], path: Path, dtype: torch.dtype | None, max_model_len: int) -> PreTrainedModel:
    """The model without memory for its parameters and buffers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            of_class: PretrainedConfig = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(dict(config)))
    except Exception as error:  # whatever transformers finds wrong is the reason we pass on
        raise ModelError(f"{path} cannot be used with this version of transformers: {first_line(error)}.") from error
    settle_ropes(of_class, max_model_len)
    chosen = getattr(torch, config["dtype"]) if dtype is None else dtype
    make: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            return make(of_class, dtype=chosen, attn_implementation=ATTENTION)
    except Exception as error:
        raise ModelError(f"The model {path} cannot be loaded: {reason_of(error, of_class)}.") from error


def _make_buffers(model: PreTrainedModel, path: Path) -> None:
    """Give buffers memory and their values. Parameters have no memory yet, so that initializing them costs nothing."""
    buffers = []
    for module in model.modules():
        for name, empty in module.named_buffers(recurse=False):
            nothing = math.nan if empty.is_floating_point() else 0
            buffers.append(torch.full_like(empty, nothing, device="cpu"))
            setattr(module, name, buffers[-1])
    initialize: Callable[[], None] = model.initialize_weights
    try:
        with torch.no_grad():
            initialize()
        problem = None if all(buffer.isfinite().all() for buffer in buffers) else "they are not finite"
    except (ArithmeticError, ValueError, RuntimeError) as error:
        problem = first_line(error)
    if problem is not None:
        raise ModelError(
            f"The model {path} cannot be used: the frequencies of its rope cannot be computed ({problem})."
        )


def _check_shape(parameter: Parameter, model: GGUFModel, wanted: torch.Tensor, path: Path) -> None:
    """Raise ModelError unless the tensors have as many rows and columns as the parameter needs."""
    pieces = [_rows(piece, parameter, model) for piece in parameter.pieces]
    total = sum(rows.num_rows for rows in pieces)
    matrices = {(rows.columns, total) if parameter.transposed else (total, rows.columns) for rows in pieces}
    shapes = {_squeezed((rows.experts, *matrix)) for rows in pieces for matrix in matrices}
    if any(rows.num_rows < 1 for rows in pieces) or shapes != {_squeezed(wanted.shape)}:
        names = " and ".join(
            f"{piece.tensor} of shape {list(model.tensors[piece.tensor].stored.shape)}" for piece in parameter.pieces
        )
        raise ModelError(
            f"The tensors in {path} do not fit its metadata: {names} cannot become {parameter.name} of shape "
            f"{list(wanted.shape)}. Download or convert the model again."
        )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without dimensions of 1: a vector is a row or a column, and what has no experts has one of them."""
    return tuple(size for size in shape if size != 1)


def _rows(piece: Piece, parameter: Parameter, model: GGUFModel) -> _Rows:
    placed = model.tensors[piece.tensor]
    shape = placed.stored.shape
    outer = shape[:1] if parameter.experts else (1,)
    rest = shape[1:] if parameter.experts else shape
    rows, columns = (rest[0], math.prod(rest[1:])) if rest else (1, 1)
    count = rows - piece.first_row if piece.num_rows < 0 else piece.num_rows
    return _Rows(placed, outer[0], piece.first_row, count if piece.first_row + count <= rows else 0, columns)


def _fill(target: torch.Tensor, parameter: Parameter, model: GGUFModel) -> None:
    """Write the values of all pieces into `target`."""
    start, step = 0, len(parameter.pieces) if parameter.interleaved else 1
    for number, piece in enumerate(parameter.pieces):
        rows = _rows(piece, parameter, model)
        view = _as_rows(target, parameter, rows.columns)
        order = torch.arange(rows.num_rows, device=target.device)
        if piece.heads:
            order = order.view(piece.heads, 2, -1).transpose(1, 2).reshape(-1)
        order = order * step + (number if parameter.interleaved else start)
        with rows.placed.path.open("rb") as file:
            for expert, first, values in _chunks(file, rows, piece.tensor):
                chunk = torch.from_numpy(values + np.float32(parameter.offset)).to(target.device, target.dtype)
                view[expert, order[first : first + len(values)]] = chunk
        start += rows.num_rows


def _as_rows(target: torch.Tensor, parameter: Parameter, columns: int) -> torch.Tensor:
    """A view [experts, rows, columns] in which a row is one of the file's."""
    turned = target.transpose(-1, -2) if parameter.transposed else target
    if turned.dim() == 3:
        return turned
    if parameter.experts:
        return turned.unsqueeze(-1)
    return turned.unsqueeze(0) if parameter.transposed else turned.view(1, -1, columns)


def _chunks(file: BinaryIO, rows: _Rows, name: str) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Expert, first row and the values of a few rows at a time, float32 [rows, columns]."""
    stored = rows.placed.stored
    in_all = math.prod(stored.shape) // rows.columns
    row_bytes, per_expert = stored.size // in_all, in_all // rows.experts
    at_once = max(_VALUES_AT_ONCE // rows.columns, 1)
    for expert, first in itertools.product(range(rows.experts), range(0, rows.num_rows, at_once)):
        count = min(at_once, rows.num_rows - first)
        file.seek(stored.offset + (expert * per_expert + rows.first_row + first) * row_bytes)
        data = np.frombuffer(file.read(count * row_bytes), np.uint8)
        values = _unpack(data.reshape(count, row_bytes), rows, name)
        if not np.isfinite(values).all():
            raise ModelError(
                f"{rows.placed.path} is damaged: its tensor {name} holds infinite or undefined values. Download or "
                "convert the model again."
            )
        yield expert, first, values


def _unpack(data: NDArray[np.uint8], rows: _Rows, name: str) -> NDArray[np.float32]:
    """The values of rows of blocks, or a ModelError if there is no reader for them."""
    path, stored = rows.placed
    if stored.type in _kernels.SOURCE_TYPES:
        with contextlib.suppress(ValueError):  # rows that are no whole blocks
            return _kernels.dequantize(data.reshape(-1), GGML_TYPES[stored.type], len(data), rows.columns)
    raise ModelError(
        f"{path} cannot be served: its tensor {name} of shape {list(stored.shape)} is of the type {stored.type}, which "
        "cannot be read here. Get the model in another quantization."
    )
