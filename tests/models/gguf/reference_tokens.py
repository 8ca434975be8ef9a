"""Write data/llama_cpp_tokens.json: what llama.cpp makes of the texts, for each vocabulary and each way to split words.

    python -m tests.models.gguf.reference_tokens FOLDER MODEL.gguf

in an environment with rbee and llama-cpp-python 0.3.36. FOLDER has llama.cpp's ggml-vocab-*.gguf; MODEL is the default
model's file.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp  # type: ignore[import-not-found]  # where the reference is made, only

from rbee.models.gguf.header import read_header
from tests.models.gguf.token_texts import (
    NUM_SPLIT_TEXTS,
    REFERENCE,
    byte_level_splits,
    comparable_ids,
    digest_of_pieces,
    digests,
    texts,
    vocabulary_texts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def main() -> None:
    """Tokenize everything and write the digests."""
    folder, default_model = map(Path, sys.argv[1:])
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p())
    files = {path.stem.removeprefix("ggml-vocab-"): path for path in sorted(folder.glob("ggml-vocab-*.gguf"))}
    files["default-model"] = default_model
    with tempfile.TemporaryDirectory() as scratch:
        vocabularies = {name: _reference(name, path) for name, path in files.items()}
        shared, path = files["gpt-2"].read_bytes(), Path(scratch) / "split.gguf"
        splits = {}
        for name in byte_level_splits():
            path.write_bytes(_with_pre(shared, name))
            with _vocabulary(path) as vocabulary:
                splits[name] = digests(_tokenize(vocabulary, texts(NUM_SPLIT_TEXTS)))
    lines = json.dumps({"vocabularies": vocabularies, "splits": splits}).replace("], ", "],\n").replace("}, ", "},\n")
    REFERENCE.write_text(lines + "\n", encoding="utf-8")


def _reference(name: str, path: Path) -> dict[str, object]:
    """What the tests of one vocabulary compare."""
    metadata = read_header(path).metadata
    all_ids = range(len(metadata["tokenizer.ggml.tokens"]))
    with _vocabulary(path) as vocabulary:
        pieces = [_piece(vocabulary, token_id) for token_id in comparable_ids(metadata)]
        ends = [token_id for token_id in all_ids if llama_cpp.llama_vocab_is_eog(vocabulary, token_id)]
        ids = [int(get(vocabulary)) for get in (llama_cpp.llama_vocab_bos, llama_cpp.llama_vocab_eos)]
        return {
            "tokens": digests(_tokenize(vocabulary, vocabulary_texts(name, metadata))),
            "pieces": digest_of_pieces(pieces),
            "special_ids": [None if token_id < 0 else token_id for token_id in ids],
            "ends": ends,
        }


@llama_cpp.llama_log_callback
def _SILENT(*_: object) -> None:  # noqa: N802 - a constant
    """Drop llama.cpp's log."""


@contextlib.contextmanager
def _vocabulary(path: Path) -> Iterator[Any]:
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        sys.exit(f"llama.cpp cannot load {path}.")
    yield llama_cpp.llama_model_get_vocab(model)
    llama_cpp.llama_model_free(model)


def _tokenize(vocabulary: Any, strings: list[str]) -> list[list[int]]:
    """llama_tokenize with add_special and parse_special."""
    result = []
    for string in strings:
        data = string.encode()
        buffer = (llama_cpp.llama_token * (len(data) + 16))()
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), buffer, len(buffer), True, True)
        result.append(buffer[:count])
    return result


def _piece(vocabulary: Any, token_id: int) -> bytes:
    buffer = ctypes.create_string_buffer(4096)
    count = llama_cpp.llama_token_to_piece(vocabulary, token_id, buffer, len(buffer), 0, True)
    return buffer.raw[:count]


def _with_pre(content: bytes, pre: str) -> bytes:
    """A GGUF file with another value of tokenizer.ggml.pre; it has no tensors, so that nothing else needs to move."""
    start = content.index(b"tokenizer.ggml.pre") + len(b"tokenizer.ggml.pre") + 4
    [length] = struct.unpack_from("<Q", content, start)
    return content[:start] + struct.pack("<Q", len(pre)) + pre.encode() + content[start + 8 + length :]


if __name__ == "__main__":
    main()
