"""Which tensors of a GGUF file the parameters of transformers' model are made of, and the account of all tensors.

Owns the names, the order of rows, and the refusal of a file with a tensor too few or one that nothing reads. Does not
know how tensors are stored, nor what is computed.

Modules of a GGUF file are called as in llama.cpp's src/llama-arch.cpp, without "blk.N." and ".weight".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rbee.errors import ModelError
from rbee.models.gguf import rope
from rbee.models.gguf.tensor_names import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rbee.models.gguf.files import GGUFModel

# llama.cpp's converter reorders the rows of queries and keys of these, so that those turned together are neighbours:
# row i of the first half of a head becomes row 2i, and of the second half row 2i + 1. (Others that llama.cpp turns so
# are turned so by transformers too, and a few are never reordered.)
_REORDERED = frozenset(
    {"llama", "mistral3", "granite", "granitemoe", "smollm3", "arcee", "internlm2", "minicpm", "olmo"}
)
_HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
_ATTENTION = ("attn_q", "attn_k", "attn_v")
_EXPERTS = ("ffn_gate_exps", "ffn_up_exps")
_ONE_OF_ALL = {_ATTENTION: "attn_qkv", _EXPERTS: "ffn_gate_up_exps"}  # what a file may have in their place
_HARMLESS = re.compile(r"v\.|mm\.")  # of images and sound: text goes without


class Piece(NamedTuple):
    """Rows of a GGUF tensor. A vector has a row for each value. Of experts, each has these rows."""

    tensor: str
    first_row: int = 0
    num_rows: int = -1  # -1: all that follow
    heads: int = 0  # that the rows are of, if llama.cpp reordered them


@dataclass(frozen=True)
class Parameter:
    """A parameter of transformers' model: the rows of all pieces, one piece after the other."""

    name: str
    pieces: tuple[Piece, ...]
    offset: float = 0.0  # is added to each value of the file
    experts: bool = False  # the first dimension counts experts, and pieces are joined within each of them
    transposed: bool = False  # a row of the file is a column here
    interleaved: bool = False  # the rows of two pieces alternate


@dataclass(frozen=True)
class Tensors:
    """What becomes of a model's tensors."""

    parameters: tuple[Parameter, ...]
    ignored: tuple[str, ...]  # of parts of the model that generate no text, or only faster


def tensors_of(config: Mapping[str, Any], model: GGUFModel) -> Tensors:
    """What each parameter of the model with this config (of `config_of`) is made of.

    Raises:
        ModelError: a tensor is missing, or there is one that no parameter is made of.
    """
    parameters = tuple(_Plan(config, model).parameters())
    wanted = [piece.tensor for parameter in parameters for piece in parameter.pieces]
    if missing := [name for name in wanted if name not in model.tensors]:
        raise ModelError(
            f"{model.files[0]} is incomplete: it lacks {_listed(missing)}. Download or convert the model again."
        )
    read = {*wanted, *(rope.TENSORS if "rope_type" in config.get("rope_parameters", {}) else ())}
    check_all_read(config, model, read)
    return Tensors(parameters, tuple(sorted(name for name in model.tensors if _is_harmless(name, config))))


def check_all_read(config: Mapping[str, Any], model: GGUFModel, read: Iterable[str]) -> None:
    """Raise ModelError if `model` has a tensor that is not in `read` and may change what the model computes."""
    unread = [name for name in model.tensors.keys() - set(read) if not _is_harmless(name, config)]
    if unread:
        raise ModelError(
            f"{model.files[0]} cannot be served: nothing would read {_listed(sorted(unread))}, so that other tokens "
            f"would come out than the model's. rbee serves {config['architectures'][0]} without it."
        )


def _is_harmless(name: str, config: Mapping[str, Any]) -> bool:
    layer = re.match(r"blk\.(\d+)\.", name)
    return bool(_HARMLESS.match(name)) or (layer is not None and _is_predictor(int(layer[1]), config))


def _is_predictor(layer: int, config: Mapping[str, Any]) -> bool:
    """Whether the layer predicts tokens behind the next one, which transformers' models leave out."""
    first: int = config["num_hidden_layers"]
    return first <= layer < first + int(config.get("num_nextn_predict_layers", 0))


class _Plan:
    """Makes the parameters of a model, from first to last."""

    def __init__(self, config: Mapping[str, Any], model: GGUFModel) -> None:
        self._names = NAMES[config["model_type"]]
        self._config = config
        self._tensors = model.tensors
        self._reordered = model.metadata["general.architecture"] in _REORDERED

    def parameters(self) -> Iterator[Parameter]:
        names, config = self._names, self._config
        biased = names.biased(config)
        for ours, module in names.whole.items():
            if ours != names.head or not config["tie_word_embeddings"]:
                yield from self._module(ours, module, "", biased=ours in biased)
        for layer in range(config["num_hidden_layers"]):
            before, prefix = f"{names.layers}.{layer}.", f"blk.{layer}."
            for ours, modules in names.layer_modules(config).items():
                yield from self._module(before + ours, modules, prefix, biased=ours in biased)
            for ours, modules in names.bare.items():
                yield self._joined(before + ours, modules, prefix, ".bias" if ours.endswith("_bias") else ".weight")
            for ours, module in names.norms_of_heads(config).items():
                for head in range(config[_HEADS[module.removesuffix("_norm")]]):
                    piece = Piece(f"{prefix}{module}.weight", head, 1)
                    yield Parameter(f"{before}{ours}.norms.{head}.weight", (piece,))

    def _module(self, ours: str, modules: str, prefix: str, *, biased: bool) -> Iterator[Parameter]:
        """The weight of a module, and its bias if it has one."""
        for suffix in (".weight", ".bias")[: 1 + biased]:
            yield self._joined(ours + suffix, modules, prefix, suffix)

    def _joined(self, full: str, modules: str, prefix: str, suffix: str) -> Parameter:
        experts, is_weight, swapped = ".experts." in full, suffix == ".weight", self._names.swapped
        return Parameter(
            full,
            tuple(self._piece(module, prefix, suffix) for module in modules.split()),
            offset=-1.0 if self._names.unit_offset_norms and "norm" in full and is_weight else 0.0,
            experts=experts,
            transposed=swapped and is_weight and (experts or "c_" in full),
            interleaved=swapped and experts and "gate_up" in full,
        )

    def _piece(self, module: str, prefix: str, suffix: str) -> Piece:
        """The module's own tensor, or its rows in the one that it is fused into."""
        heads = self._config[_HEADS[module]] if self._reordered and module in _HEADS else 0
        own = f"{prefix}{module}{suffix}"
        for parts, fused in _ONE_OF_ALL.items():
            name = f"{prefix}{fused}{suffix}"
            if module in parts and own not in self._tensors and name in self._tensors:
                sizes = _sizes(parts, self._config)
                place = parts.index(module)
                return Piece(name, sum(sizes[:place]), sizes[place], heads)
        return Piece(own, heads=heads)


def _sizes(parts: tuple[str, ...], config: Mapping[str, Any]) -> list[int]:
    if parts == _EXPERTS:
        return [config.get("moe_intermediate_size", config["intermediate_size"])] * 2
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    return [count * config["head_dim"] for count in (heads, kv_heads, kv_heads)]


def _listed(names: list[str]) -> str:
    return f"the tensor {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
