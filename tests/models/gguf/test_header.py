"""Reading GGUF headers, whole and damaged."""

from __future__ import annotations

import contextlib
import os
import struct

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.errors import ModelError
from rbee.models.gguf.header import _TYPES, read_header
from rbee.models.stored_tensor import StoredTensor


@pytest.fixture(scope="module")
def layout(tiny_gguf):
    """The tiny file's bytes, where its data begins and where its last tensor ends, as the gguf package sees them."""
    reader = gguf.GGUFReader(tiny_gguf)
    end = max(tensor.data_offset + tensor.n_bytes for tensor in reader.tensors)
    return tiny_gguf.read_bytes(), reader.data_offset, end


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A file for damaged copies."""
    return tmp_path_factory.mktemp("scratch") / "damaged.gguf"


def test_a_whole_file_gives_its_metadata_and_tensors(tiny_gguf):
    """The header agrees with the gguf package's reader."""
    header = read_header(tiny_gguf)
    reader = gguf.GGUFReader(tiny_gguf)
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["tokenizer.ggml.pre"] == "smollm"
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
        assert list(header.metadata[key]) == reader.fields[key].contents()
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    assert set(header.metadata) == {name for name in reader.fields if not name.startswith("GGUF.")}
    assert header.tensors == {
        tensor.name: StoredTensor(
            tensor.tensor_type.name, tuple(tensor.shape.tolist()[::-1]), int(tensor.data_offset), int(tensor.n_bytes)
        )
        for tensor in reader.tensors
    }


def test_types_are_those_of_the_gguf_package():
    """Our own table has all types that the package knows, with the same blocks; ggml has newer ones."""
    theirs = {int(kind): (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {number: _TYPES[number] for number in theirs} == theirs
    assert {name for number, (name, _, _) in _TYPES.items() if number not in theirs} == {"Q2_0"}


def test_rows_that_are_not_whole_blocks_are_refused(tmp_path):
    """Blocks run along a row; a tensor of whole blocks whose rows are not is none that ggml can use."""
    path = tmp_path / "rows.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("some.weight", np.zeros((4, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_header(path).tensors["some.weight"].shape == (4, 32)
    content = path.read_bytes()
    shape = content.index(b"some.weight") + len(b"some.weight") + 4
    path.write_bytes(content[:shape] + struct.pack("<QQ", 16, 8) + content[shape + 16 :])
    with pytest.raises(ModelError, match=r"'some\.weight' has rows of 16 weights, which is no multiple of 32"):
        read_header(path)


def test_a_file_cut_anywhere_is_refused(layout, scratch):
    """At every offset of the header, and at many in the data, the sentence names the file and what is wrong."""
    content, data_start, end = layout
    scratch.write_bytes(content[:end])
    read_header(scratch)
    for size in [end - 1, *range(end - 2, data_start, -997), *range(data_start, -1, -1)]:
        os.truncate(scratch, size)
        with pytest.raises(ModelError, match=r"damaged\.gguf is not a GGUF file that can be used") as caught:
            read_header(scratch)
        if size >= data_start:
            assert f"but the file has only {size} bytes" in str(caught.value)


@settings(max_examples=500)
@given(data=st.data())
def test_any_changed_bytes_in_the_header_are_read_or_refused(data, layout, scratch):
    """A damaged header gives a ModelError or a header, never another error and never an endless walk."""
    content, data_start, _ = layout
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, data_start - 1))] = data.draw(st.integers(0, 255))
    scratch.write_bytes(damaged)
    with contextlib.suppress(ModelError):
        read_header(scratch)


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type"])
def test_an_array_longer_than_the_file_is_refused_at_once(key, layout, scratch):
    """A wrong length of 2**40 elements is seen from the file's size, not by walking there."""
    content, *_ = layout
    damaged = bytearray(content)
    length = content.index(key.encode()) + len(key) + 4 + 4
    damaged[length + 5] = 1
    scratch.write_bytes(damaged)
    with pytest.raises(ModelError, match="ends in the middle of its header"):
        read_header(scratch)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04 something else entirely", "does not begin with the letters GGUF"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(16), "its version is 1"),
    ],
)
def test_what_is_no_gguf_is_refused_with_the_reason(content, reason, scratch):
    """Empty, foreign, old and hollow files each get their own reason."""
    scratch.write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        read_header(scratch)


def test_a_tensor_of_a_type_from_the_future_is_refused(tmp_path):
    """A type that is not known here is named."""
    path = tmp_path / "future.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("some.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = bytearray(path.read_bytes())
    kind = content.index(b"some.weight") + len(b"some.weight") + 4 + 8
    content[kind] = 200
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"'some\.weight' has type 200, .*\. .* in another quantization\.$"):
        read_header(path)


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path):
    """A folder in the place of a file gives the system's reason."""
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        read_header(tmp_path)
