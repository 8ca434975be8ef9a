"""What a model's digest depends on."""

from __future__ import annotations

import json

import pytest

from rbee.models.cache import MANIFEST
from rbee.models.digest import model_digest


def write(folder, **files):
    """A folder with these files; _ in a name is a dot."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
MODEL = {"config_json": b"{}", "tokenizer_json": b"[]", "model_safetensors": WEIGHTS}


def test_it_does_not_depend_on_the_place(tmp_path):
    """Nor on what is beside the model."""
    one = model_digest(write(tmp_path / "a", **MODEL))
    assert one == model_digest(write(tmp_path / "b", **MODEL, README_md=b"x", generation_json=b"{}"))
    assert len(one) == 64


@pytest.mark.parametrize("name", MODEL)
def test_each_file_counts(name, tmp_path):
    """Another content is another model, and so is a file that is missing."""
    whole = model_digest(write(tmp_path / "a", **MODEL))
    assert model_digest(write(tmp_path / "b", **MODEL | {name: MODEL[name] + b" "})) != whole
    assert model_digest(write(tmp_path / "c", **{key: MODEL[key] for key in MODEL if key != name})) != whole


def test_weights_count_from_their_beginning_to_their_end(tmp_path):
    """Other weights of the same shapes differ everywhere, and so in the samples."""
    whole = model_digest(write(tmp_path / "a", **MODEL))
    middle = len(WEIGHTS) // 2
    for start in (0, middle, middle + 128 * 1024):
        other = WEIGHTS[:start] + bytes(64 * 1024) + WEIGHTS[start + 64 * 1024 :]
        assert model_digest(write(tmp_path / "b", **MODEL | {"model_safetensors": other})) != whole


def test_a_gguf_file_is_sampled_where_it_is(tmp_path):
    """The folder that stands for it has its name alone."""

    def digest(place, weights):
        folder = write(tmp_path / place, config_json=b"{}", tokenizer_json=b"[]")
        gguf = write(tmp_path / f"{place}.files", model_gguf=weights) / "model.gguf"
        (folder / MANIFEST).write_text(json.dumps({"gguf": str(gguf)}))
        return model_digest(folder)

    assert digest("a", WEIGHTS) == digest("b", WEIGHTS) != digest("c", bytes(len(WEIGHTS)))
