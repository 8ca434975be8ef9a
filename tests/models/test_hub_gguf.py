"""GGUF files from the Hugging Face Hub: the real client against a server in this process, and against none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.hub_parts import FIND, run_with_hub, serving_hub

QUANTS = {
    f"tiny-{quant}.gguf": f"GGUF {quant}".encode() for quant in ("IQ4_XS", "Q4_0", "Q4_K_M", "Q8_0", "UD-Q4_K_XL")
}
BESIDE = {"mmproj-tiny-F16.gguf": b"GGUF", "tiny-imatrix.gguf": b"GGUF", "README.md": b"# tiny"}
SHARDS = {f"Q8_0/big-Q8_0-{number:05}-of-00003.gguf": b"GGUF %d" % number for number in (1, 2, 3)}
CLIENT_BLOCK = 10 << 20  # what the client writes at once
CUT = CLIENT_BLOCK + 100
BIG = b"GGUF" + bytes(range(256)) * (CLIENT_BLOCK // 256 + 100)


@pytest.fixture
def hub(tiny_gguf):
    """A server with repositories of GGUF files."""
    models = {
        "org/tiny": QUANTS | BESIDE,
        "org/one": BESIDE | {"config.json": b"{}", "some-model.gguf": b"GGUF"},
        "org/sharded": BESIDE | SHARDS | {"Q4_0/big-Q4_0-00001-of-00001.gguf": b"GGUF"},
        "org/large": {"large.Q4_K_M.gguf": BIG},
        "org/real": {"tiny.Q8_0.gguf": tiny_gguf.read_bytes()},
        "org/two": {"small-Q5_K_M.gguf": b"GGUF", "large-Q5_K_M.gguf": b"GGUF"},
    }
    with serving_hub(models) as server:
        yield server


@pytest.fixture
def find(hub, tmp_path):
    """A function that finds Hub models in a process of its own: a line for each, and stderr."""

    def run(*models, **environment):
        done = run_with_hub(["-c", FIND, *models], hub.url, tmp_path / "hf", **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), done.stderr

    return run


def test_one_file_is_fetched(hub, find):
    """It has the quantization that is asked for in any case of letters, or the usual one; nothing else is fetched."""
    expected = {
        "org/tiny": "tiny-Q4_K_M.gguf",
        "org/tiny:q8_0": "tiny-Q8_0.gguf",
        "org/tiny:iq4_xs": "tiny-IQ4_XS.gguf",
        "org/tiny:Q4_K_XL": "tiny-UD-Q4_K_XL.gguf",
        "org/tiny:tiny-Q4_0.gguf": "tiny-Q4_0.gguf",
        "org/one": "some-model.gguf",
        "org/two:small-q5_k_m": "small-Q5_K_M.gguf",
    }
    paths, _ = find(*expected)
    assert [Path(path).name for path in paths] == list(expected.values())
    for path, (model, file) in zip(paths, expected.items(), strict=True):
        assert Path(path).read_bytes() == hub.models[model.partition(":")[0]][file]
    assert hub.downloads() == set(expected.values())


def test_all_shards_are_fetched_and_a_lost_one_again(hub, find):
    """Also from a folder of their own; the first one stands for the model."""
    [path], _ = find("org/sharded:Q8_0")
    assert Path(path).name == "big-Q8_0-00001-of-00003.gguf"
    assert hub.downloads() == SHARDS.keys()
    assert [file.name for file in sorted(Path(path).parent.iterdir())] == [Path(name).name for name in SHARDS]
    last = Path(path).with_name("big-Q8_0-00003-of-00003.gguf")
    last.unlink()
    assert find("org/sharded:Q8_0")[0] == [path]
    assert last.read_bytes() == b"GGUF 3"


def test_a_quantization_that_is_not_there_is_answered_with_those_that_are(hub, find):
    """The projector's F16 is none of them, and nothing is fetched."""
    choices = "Give one of these after a colon: IQ4_XS, Q4_0, Q4_K_M, Q8_0, UD-Q4_K_XL."
    expected = {
        "org/tiny:Q5_K_M": f"org/tiny has no GGUF file Q5_K_M. {choices}",
        "org/tiny:F16": f"org/tiny has no GGUF file F16. {choices}",
        "org/two": "org/two has 2 GGUF models: large-Q5_K_M.gguf, small-Q5_K_M.gguf. Give the name of one after a "
        "colon.",
        "org/two:Q5_K_M": "org/two has 2 GGUF models that are Q5_K_M: large-Q5_K_M.gguf, small-Q5_K_M.gguf. Give the "
        "name of one after a colon.",
    }
    said, _ = find(*expected)
    assert said == [f"ModelError: {sentence}" for sentence in expected.values()]
    assert hub.downloads() == set()


def test_a_second_start_asks_the_network_for_nothing(hub, find):
    """A quantization that was named once is found in the cache."""
    first, _ = find("org/tiny:Q8_0")
    seen = len(hub.requests)
    assert find("org/tiny:q8_0") == (first, "")
    assert len(hub.requests) == seen


def test_what_is_cached_serves_without_a_network(hub, find):
    """Also if the choice was the Hub's; what was never fetched gives a sentence."""
    [first], _ = find("org/tiny")
    hub.shutdown()
    hub.server_close()
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        [again, other], noise = find("org/tiny", "org/tiny:Q8_0", **environment)
        assert (again, noise) == (first, "")
        assert "ModelError: The model org/tiny could not be downloaded from the Hugging Face Hub (" in other


def test_an_interrupted_download_continues_where_it_ended(hub, find):
    """The rest comes by a range, not the whole file again."""
    hub.cut_once["large.Q4_K_M.gguf"] = CUT
    [path], _ = find("org/large")
    assert Path(path).read_bytes() == BIG
    assert [span for *_, span in hub.requests if span] == [f"bytes={CLIENT_BLOCK}-"]


def test_a_fetched_file_goes_the_way_of_a_local_one(hub, tmp_path):
    """`rbee show` reads it, under the name that was asked for."""
    done = run_with_hub(["-m", "rbee.cli", "show", "org/real:Q8_0", "--json"], hub.url, tmp_path / "hf")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["name"], shown["format"], shown["architecture"]) == ("org/real:Q8_0", "gguf", "llama")
