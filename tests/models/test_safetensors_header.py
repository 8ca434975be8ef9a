"""Reading safetensors headers, whole and damaged."""

from __future__ import annotations

import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from rbee.errors import ModelError
from rbee.models.safetensors_header import read_safetensors_header

TENSORS: dict[str, np.ndarray] = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.ones(5, np.float16),
    "numbers": np.zeros((2, 2, 2), np.int64),
    "scalar": np.array(3, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A whole file; do not change it."""
    path = tmp_path_factory.mktemp("whole") / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A file for damaged copies."""
    return tmp_path_factory.mktemp("scratch") / "damaged.safetensors"


def test_a_whole_file_gives_its_tensors(file):
    """Names, types, shapes and bytes are those that the safetensors package reads."""
    tensors = read_safetensors_header(file)
    content = file.read_bytes()
    with safe_open(file, framework="np") as whole:
        assert set(tensors) == set(whole.keys())
        for name, tensor in tensors.items():
            stored = whole.get_slice(name)
            assert (tensor.type, list(tensor.shape)) == (stored.get_dtype(), stored.get_shape())
            assert content[tensor.offset : tensor.offset + tensor.size] == TENSORS[name].tobytes()


@settings(max_examples=500)
@given(data=st.data())
def test_any_changed_bytes_in_the_header_are_read_or_refused(data, file, scratch):
    """A damaged header gives a ModelError, or tensors that lie within the file and have the bytes of their shape."""
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, start - 1))] = data.draw(st.integers(0, 255))
    scratch.write_bytes(content)
    with contextlib.suppress(ModelError):
        for tensor in read_safetensors_header(scratch).values():
            assert 0 <= tensor.offset <= tensor.offset + tensor.size <= len(content)
            if tensor.type in ("F32", "F16", "I64"):
                assert tensor.size == math.prod(tensor.shape) * {"F32": 4, "F16": 2, "I64": 8}[tensor.type]


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [3], "data_offsets": [-4, 8]},
        {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [10**4000, 10**4000], "data_offsets": [0, 10**4000]},
        {"dtype": "ODD", "shape": [1] * 1000, "data_offsets": [8, 8]},
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(entry, scratch):
    """Each with the file's name."""
    header = json.dumps({"whole": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "odd": entry}).encode()
    scratch.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ModelError, match=rf"The weights file {scratch} is (damaged|cut short or no safetensors file)"):
        read_safetensors_header(scratch)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "1" * 5000, "null", "[]", "\xff"])
def test_a_header_of_any_other_json_is_refused(text, scratch):
    """Also if it is nested too deep for the parser."""
    header = text.encode("latin-1")
    scratch.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="is cut short or no safetensors file"):
        read_safetensors_header(scratch)


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path):
    """A folder, for example."""
    with pytest.raises(ModelError, match=rf"The weights file {tmp_path} cannot be read: Is a directory\."):
        read_safetensors_header(tmp_path)
