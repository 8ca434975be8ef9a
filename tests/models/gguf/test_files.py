"""Models of one GGUF file and of several."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from rbee.errors import ModelError
from rbee.models.gguf import open_gguf

NAMES = ("blk.0.a", "blk.0.b", "blk.1.a", "blk.1.b")


def write(path, tensors, *, architecture="llama", split=None):
    """A GGUF file of small float32 tensors; `split` is the number of the shard and how many there are."""
    writer = gguf.GGUFWriter(path, architecture)
    for number, name in enumerate(tensors):
        writer.add_tensor(name, np.full((2, 32), number, np.float32))
    if split is not None:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
        writer.add_int32("split.tensors.count", len(NAMES))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def shards(tmp_path):
    """A model in three files, the first of which has metadata alone."""
    parts = [(), NAMES[:1], NAMES[1:]]
    return [
        write(tmp_path / f"m-{number + 1:05}-of-00003.gguf", part, split=(number, 3))
        for number, part in enumerate(parts)
    ]


def test_any_shard_names_the_whole_model(shards):
    """The first one's metadata, the tensors of all, each with the file that it is in."""
    for path in shards:
        model = open_gguf(path)
        assert model.files == tuple(shards)
        assert model.metadata["general.architecture"] == "llama"
        assert [model.tensors[name].path for name in NAMES] == [shards[1], shards[2], shards[2], shards[2]]


def test_a_single_file_is_a_model(tmp_path):
    """A name like a shard's does not make it one when it is alone, nor does split.count 1."""
    path = write(tmp_path / "one.gguf", NAMES, split=(0, 1))
    assert open_gguf(path).files == (path,)
    alone = write(tmp_path / "m-00001-of-00001.gguf", NAMES)
    assert open_gguf(alone).tensors.keys() == set(NAMES)


def test_what_is_missing_or_mixed_up_is_named(shards, tmp_path):
    """A shard that is not there, one in the place of another, a tensor in two, a shard under another name."""
    shards[1].rename(tmp_path / "away")
    with pytest.raises(ModelError, match=r"3 files, and 1 are missing, m-00002-of-00003\.gguf among them"):
        open_gguf(shards[0])
    shards[2].rename(shards[1])
    (tmp_path / "away").rename(shards[2])
    with pytest.raises(ModelError, match="is part 3 of 3 by its own header, and part 2 of 3 was expected"):
        open_gguf(shards[0])
    shards[2].rename(tmp_path / "stray.gguf")
    with pytest.raises(ModelError, match="is part 2 of 3 by its own header, and part 1 of 1 was expected"):
        open_gguf(tmp_path / "stray.gguf")
    for number in (1, 2):
        write(shards[number], NAMES, split=(number, 3))
    with pytest.raises(ModelError, match=r"holds the tensor 'blk\.\d\.\w', which .*m-00002-of-00003\.gguf holds too"):
        open_gguf(shards[0])


def test_a_vocabulary_alone_is_no_model(tmp_path):
    """Nor is a file that does not exist."""
    path = write(tmp_path / "vocabulary.gguf", ())
    with pytest.raises(ModelError, match="a vocabulary without a model"):
        open_gguf(path)
    with pytest.raises(ModelError, match="There is no model file"):
        open_gguf(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    ("architecture", "kind", "sentence"),
    [
        ("llama", gguf.GGUFType.ADAPTER, "is no model but a LoRA adapter: merge it into its model"),
        ("clip", gguf.GGUFType.MMPROJ, "is no model but the vision or audio part of a model"),
        ("clip", None, "is no model but the vision or audio part of a model"),
        ("llama", gguf.GGUFType.IMATRIX, "is no model but an importance matrix"),
        ("controlvector", None, "is no model but a control vector"),
    ],
)
def test_what_belongs_beside_a_model_is_no_model(architecture, kind, sentence, tmp_path):
    """By the file's own words, whatever its name."""
    path = tmp_path / "innocent.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    if kind is not None:
        writer.add_type(kind)
    writer.add_tensor("a", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=rf"{path} {sentence}"):
        open_gguf(path)
