"""How a model's folder says that hidden states become a vector."""

from __future__ import annotations

import json

import pytest

from rbee.errors import ModelError
from rbee.models.pooling import POOLING_FILE, ModelPooling, NoPooling, read_pooling

MODES = {
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": False,
}


def module(kind, path, package="sentence_transformers.models"):
    """An entry of modules.json."""
    return {"idx": 0, "name": "0", "path": path, "type": f"{package}.{kind}"}


TRANSFORMER, POOLING, NORMALIZE = module("Transformer", ""), module("Pooling", "1_Pooling"), module("Normalize", "2")


@pytest.fixture
def folder(tmp_path):
    """Makes a folder with these files."""

    def make(**files):
        for name, content in files.items():
            path = tmp_path / {"pooling": "1_Pooling/config.json"}.get(name, f"{name}.json")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return make


@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize(
    ("name", "key", "method"),
    [
        ("mean", "pooling_mode_mean_tokens", "mean"),
        ("lasttoken", "pooling_mode_lasttoken", "last"),
        ("cls", "pooling_mode_cls_token", "cls"),
    ],
)
def test_sentence_transformers(folder, name, key, method, older):
    """One flag of many, or one name; of length 1 if there is a module for that."""
    config = {"word_embedding_dimension": 8, **MODES, key: True} if older else {"pooling_mode": name}
    package = "sentence_transformers.models" if older else "sentence_transformers.base.modules.some"
    modules = [module("Transformer", "", package), module("Pooling", "1_Pooling", package)]
    assert read_pooling(folder(modules=modules, pooling=config)) == ModelPooling(method, normalize=False)
    modules.append(module("Normalize", "2_Normalize", package))
    assert read_pooling(folder(modules=modules, pooling=config)) == ModelPooling(method)


@pytest.mark.parametrize(("mode", "method"), [("mean", "mean"), ("lasttoken", "last"), ("cls", "cls")])
def test_folder_of_a_gguf(folder, mode, method):
    """Its one word, and length 1 as llama.cpp has it."""
    (folder() / POOLING_FILE).write_text(json.dumps({"pooling_mode": mode}))
    assert read_pooling(folder()) == ModelPooling(method)


def test_a_model_that_says_nothing(folder):
    """It generates text; the reason names the option."""
    found = read_pooling(folder(config={"model_type": "llama"}))
    assert isinstance(found, NoPooling)
    assert "--pooling" in found.reason
    assert read_pooling(folder(modules=[TRANSFORMER, POOLING], pooling={**MODES})) == NoPooling()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**MODES, "pooling_mode_max_tokens": True}, "by max,"),
        ({**MODES, "pooling_mode_weightedmean_tokens": True}, "by weightedmean,"),
        ({**MODES, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "by cls and mean,"),
        ({"pooling_mode": ["mean", "max"]}, "by mean and max,"),
        ({"pooling_mode": "rank"}, "by rank,"),
    ],
)
def test_ways_that_are_not_supported(folder, config, words):
    """They are named."""
    found = read_pooling(folder(modules=[TRANSFORMER, POOLING, NORMALIZE], pooling=config))
    assert isinstance(found, NoPooling)
    assert words in found.reason


def test_modules_that_are_not_supported(folder):
    """What stands behind the pooling changes the vector."""
    modules = [TRANSFORMER, POOLING, module("Dense", "2_Dense"), NORMALIZE]
    found = read_pooling(folder(modules=modules, pooling={"pooling_mode": "mean"}))
    assert isinstance(found, NoPooling)
    assert "a Dense module" in found.reason


@pytest.mark.parametrize("choice", ["mean", "last", "cls"])
def test_the_option_replaces_the_method(folder, choice):
    """Of any model; whether vectors have length 1, and may be cut, is still the model's word."""
    assert read_pooling(folder(), choice) == ModelPooling(choice)
    files = {"modules": [TRANSFORMER, POOLING], "pooling": {"pooling_mode": "max"}, "config": {"is_matryoshka": True}}
    assert read_pooling(folder(**files), choice) == ModelPooling(choice, normalize=False, dimensions=())


@pytest.mark.parametrize(
    ("config", "dimensions"),
    [
        ({"is_matryoshka": True}, ()),
        ({"is_matryoshka": False}, None),
        ({"matryoshka_dimensions": [64, 32]}, (32, 64)),
        ({"matryoshka_dimensions": []}, None),
        ({"matryoshka_dimensions": ["all"]}, None),
        ({}, None),
    ],
)
def test_lengths_to_which_vectors_may_be_cut(folder, config, dimensions):
    """All, some, or none if the model does not say."""
    assert read_pooling(folder(config=config), "mean").dimensions == dimensions


@pytest.mark.parametrize("modules", ["[", {"a": 1}, [1], [{"type": "x"}]])
def test_modules_that_cannot_be_read(folder, modules):
    """A damaged folder is no model that says nothing."""
    with pytest.raises(ModelError, match=r"modules\.json"):
        read_pooling(folder(modules=modules))
