"""What a model is, read from the headers and small files that it has.

Owns the facts and where they stand in a GGUF file and in a folder. Loads no weights and converts nothing but a
catalogue model, which is what its first start would do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from rbee.config import EngineConfig
from rbee.engine.memory import available_memory
from rbee.engine.runners.context_length import default_cache_bytes
from rbee.engine.runners.interface import Unsupported
from rbee.engine.runners.native.spec import read_spec
from rbee.errors import ModelError
from rbee.models import gguf_of, list_catalogue, prepare
from rbee.models.chat_templates import read_templates
from rbee.models.find import find
from rbee.models.folder import read_config, text_config, weights_files
from rbee.models.gguf import open_gguf
from rbee.models.gguf.config import config_of
from rbee.models.gguf.small_files import sampling_of, special_tokens_of, templates_of
from rbee.models.json_files import read_object
from rbee.models.safetensors_header import read_safetensors_header
from rbee.models.sampling_defaults import sampling_defaults

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from rbee.models.progress import Progress
    from rbee.models.stored_tensor import StoredTensor

_KV_BYTES, _FLOAT_BYTES = 2, 4  # of a number in the native runner's KV cache, and in all that the torch runner holds


class Tensors(msgspec.Struct, frozen=True):
    """All tensors of one type."""

    type: str
    count: int
    parameters: int
    bytes: int


class Vocabulary(msgspec.Struct, frozen=True):
    """The tokenizer."""

    size: int  # tokens
    kind: str  # "BPE", "Unigram" ..., in a GGUF llama.cpp's word: "gpt2", "llama" ...
    split: str | None  # how text is split before: GGUF's tokenizer.ggml.pre, or the kind of pre-tokenizer


class Memory(msgspec.Struct, frozen=True):
    """What the model takes at its start, in bytes, by its own numbers; None where it does not say them."""

    weights: int
    kv_cache: int | None  # with default options
    kv_cache_per_token: int | None


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A model, described."""

    name: str
    path: str  # of its folder
    format: str  # "gguf" or "safetensors"
    architecture: str | None
    parameters: int
    context_length: int | None  # tokens that it was made for
    tensors: list[Tensors]
    vocabulary: Vocabulary
    special_tokens: dict[str, str]
    chat_templates: dict[str, str]  # by name
    sampling_defaults: dict[str, float]
    runner: str | None  # which one `--runner auto` takes on a CPU; None: none can
    reason: str | None  # why not the native one, or none
    memory: Memory
    files: dict[str, int]  # bytes, by name


class _Shape(msgspec.Struct, frozen=True):
    """What the KV cache's size follows from; None where it is not known."""

    context_length: int | None
    kv_width: int | None  # numbers that one token has in the cache, over all layers


def describe(model: str, *, progress: Progress) -> ModelFacts:
    """Describe the model that the user calls `model`, fetching it if need be.

    Raises:
        ModelError: there is no such model, or its files cannot be read.
    """
    if any(known.name == model for known in list_catalogue()):
        ready = prepare(model, progress=progress)
        gguf = gguf_of(ready.path)
        return _of_gguf(model, gguf) if gguf else _of_folder(model, ready.path)
    name, path = find(model, progress=progress)
    return _of_folder(name, path) if path.is_dir() else _of_gguf(name, path)


def _of_gguf(name: str, path: Path) -> ModelFacts:
    model = open_gguf(path)
    metadata = model.metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    tensors = _by_type(placed.stored for placed in model.tensors.values())
    runner, reason, shape = None, None, _Shape(None, None)
    try:
        config = config_of(model)
    except ModelError as refusal:
        reason = str(refusal)
    else:
        runner, reason = _runner(config)
        shape = _shape_of_config(config)
    return ModelFacts(
        name=name,
        path=str(path.parent),
        format="gguf",
        architecture=metadata["general.architecture"],
        parameters=sum(kind.parameters for kind in tensors),
        context_length=shape.context_length,
        tensors=tensors,
        vocabulary=Vocabulary(
            len(tokens) if isinstance(tokens, list) else 0,
            str(metadata.get("tokenizer.ggml.model")),
            metadata.get("tokenizer.ggml.pre"),
        ),
        special_tokens=special_tokens_of(metadata),
        chat_templates=templates_of(metadata),
        sampling_defaults=sampling_defaults(sampling_of(metadata)),
        runner=runner,
        reason=reason,
        memory=_memory(tensors, shape, runner),
        files={file.name: file.stat().st_size for file in model.files},
    )


def _of_folder(name: str, folder: Path) -> ModelFacts:
    config = read_config(folder)
    settings = read_object(folder / "tokenizer_config.json")
    headers = [read_safetensors_header(file) for file in weights_files(folder)]
    tensors = _by_type(tensor for header in headers for tensor in header.values())
    runner, reason = _runner(config)
    shape = _shape_of_config(config)
    contents = {key: token.get("content") if isinstance(token, dict) else token for key, token in settings.items()}
    return ModelFacts(
        name=name,
        path=str(folder),
        format="safetensors",
        architecture=config.get("model_type"),
        parameters=sum(kind.parameters for kind in tensors),
        context_length=shape.context_length,
        tensors=tensors,
        vocabulary=_vocabulary(folder / "tokenizer.json"),
        special_tokens={
            key: text for key, text in contents.items() if key.endswith("_token") and isinstance(text, str)
        },
        chat_templates=read_templates(folder),
        sampling_defaults=sampling_defaults(read_object(folder / "generation_config.json")),
        runner=runner,
        reason=reason,
        memory=_memory(tensors, shape, runner),
        files={file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()},
    )


def _by_type(tensors: Iterable[StoredTensor]) -> list[Tensors]:
    """The tensors summed up, the types with the most bytes first."""
    sums: dict[str, Tensors] = {}
    for tensor in tensors:
        so_far = sums.get(tensor.type, Tensors(tensor.type, 0, 0, 0))
        parameters = so_far.parameters + math.prod(tensor.shape)
        sums[tensor.type] = Tensors(tensor.type, so_far.count + 1, parameters, so_far.bytes + tensor.size)
    return sorted(sums.values(), key=lambda kind: -kind.bytes)


def _vocabulary(path: Path) -> Vocabulary:
    tokenizer = read_object(path)
    try:
        model, split = tokenizer["model"], tokenizer.get("pre_tokenizer") or {}
        texts = {token if isinstance(token, str) else token[0] for token in model.get("vocab") or ()}
        texts |= {token["content"] for token in tokenizer.get("added_tokens") or ()}
        parts = split.get("pretokenizers") or [split]
        names = [part["type"] for part in parts if "type" in part]
        return Vocabulary(len(texts), str(model.get("type")), " + ".join(names) or None)
    except (LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} cannot be read as a tokenizer ({error!r}). Copy or download the model again."
        ) from error


def _runner(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The runner that `--runner auto` takes on a CPU, and why it is not the native one."""
    try:
        read_spec(config)
    except Unsupported as reason:
        return "torch", str(reason)
    return "native", None


def _shape_of_config(config: Mapping[str, Any]) -> _Shape:
    text = text_config(config)

    def number(key: str) -> int | None:
        value = text.get(key)
        return value if isinstance(value, int) and value > 0 else None

    layers, heads, width = number("num_hidden_layers"), number("num_attention_heads"), number("hidden_size")
    head = number("head_dim") or (width // heads if width and heads else None)
    kv_heads = number("num_key_value_heads") or heads
    kv_width = 2 * layers * kv_heads * head if layers and kv_heads and head else None
    return _Shape(number("max_position_embeddings"), kv_width)


def _memory(tensors: list[Tensors], shape: _Shape, runner: str | None) -> Memory:
    """What the weights take as they are stored or, in torch, in float32; and the KV cache of the default options."""
    torch = runner == "torch"
    weights = sum(_FLOAT_BYTES * kind.parameters if torch else kind.bytes for kind in tensors)
    if shape.kv_width is None:
        return Memory(weights, None, None)
    per_token = shape.kv_width * (_FLOAT_BYTES if torch else _KV_BYTES)
    options = EngineConfig()
    cache = default_cache_bytes(weights, available=available_memory())
    if shape.context_length:
        cache = min(cache, per_token * shape.context_length * options.max_num_seqs)
    return Memory(weights, cache, per_token)
