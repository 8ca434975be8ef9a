"""What a GGUF's metadata says besides its configuration and vocabulary: chat templates, special tokens, sampling.

Owns the keys (gguf-py, constants.py), and how the same facts stand in a model folder. Writes no file.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rbee.models.chat_templates import DEFAULT
from rbee.models.pooling import POOLING_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TEMPLATE = "tokenizer.chat_template"
_SPECIAL_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # as gguf spells it
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}
_POOLING = {1: "mean", 2: "cls", 3: "lasttoken", 4: "rank"}  # llama.h, llama_pooling_type; 0 is none
_SAMPLING = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


def templates_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name, as `rbee.models.chat_templates` has them."""
    found = {
        key.removeprefix(_TEMPLATE).removeprefix(".") or DEFAULT: text
        for key, text in metadata.items()
        if (key == _TEMPLATE or key.startswith(_TEMPLATE + ".")) and isinstance(text, str) and text
    }
    return dict(sorted(found.items(), key=lambda item: (item[0] != DEFAULT, item[0])))


def special_tokens_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the special tokens, by their names in tokenizer_config.json."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL_TOKENS.items()}
    if not isinstance(tokens, list):
        return {}
    return {name: tokens[at] for name, at in ids.items() if isinstance(at, int) and 0 <= at < len(tokens)}


def sampling_of(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The recommended sampling parameters, by their names in generation_config.json."""
    given = {name: metadata.get(f"general.sampling.{key}") for name, key in _SAMPLING.items()}
    # A binary32 of 0.6 is not 0.6 in Python; seven digits are what it has.
    return {
        name: float(f"{value:.7g}") if isinstance(value, float) else value
        for name, value in given.items()
        if isinstance(value, int | float)
    }


def files_of(metadata: Mapping[str, Any], *, eos_ids: Sequence[int], bos_id: int | None) -> dict[str, bytes]:
    """The contents of a model folder's small files by name, as transformers writes them.

    `eos_ids` end an answer; `bos_id` begins a text, None if there is no such token.
    """
    settings: dict[str, Any] = dict(special_tokens_of(metadata))
    for key in ("add_bos_token", "add_eos_token"):
        if isinstance(value := metadata.get(f"tokenizer.ggml.{key}"), bool):
            settings[key] = value
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if isinstance(length, int):
        settings["model_max_length"] = length
    templates = templates_of(metadata)
    if templates.keys() - {DEFAULT}:
        settings["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    generation: dict[str, Any] = dict(sampling_of(metadata))
    if eos_ids:
        generation["eos_token_id"] = eos_ids[0] if len(eos_ids) == 1 else list(eos_ids)
    if bos_id is not None:
        generation["bos_token_id"] = bos_id
    padding = metadata.get("tokenizer.ggml.padding_token_id")
    if isinstance(padding, int):
        generation["pad_token_id"] = padding
    files = {"tokenizer_config.json": _json(settings), "generation_config.json": _json(generation)}
    if mode := _POOLING.get(metadata.get(f"{metadata.get('general.architecture')}.pooling_type", 0)):
        files[POOLING_FILE] = _json({"pooling_mode": mode})
    if DEFAULT in templates:
        files["chat_template.jinja"] = templates[DEFAULT].encode()
    return files


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
