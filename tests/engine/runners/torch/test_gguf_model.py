"""GGUF files on the torch runner: the logits of transformers' own model, whatever is missing named, memory bounded."""

from __future__ import annotations

import contextlib
import dataclasses
import tracemalloc
from typing import TYPE_CHECKING, Any, NamedTuple

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.engine.runners.torch.gguf_model import load_gguf_model
from rbee.errors import ModelError
from rbee.models.gguf import open_gguf
from rbee.models.gguf.config import config_of
from rbee.models.gguf.tensors import check_all_read
from tests.engine.runners.gguf_cases_parts import CASES, GGUFCase
from tests.engine.runners.gguf_writing_parts import Written, describe, load_gguf, logits_of, write
from tests.engine.runners.tiny_models import SMALL, make_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from rbee.models.gguf import GGUFModel

NUM_TOKENS = 100  # more than any window, and than the original context of any scaled rope
TOKENS = torch.randint(1, SMALL["vocab_size"], (NUM_TOKENS,), generator=torch.Generator().manual_seed(3)).tolist()
# llama3's factors are made in another order of roundings by the scripts than by transformers.
TOLERANCE = 1e-4

# Dropping a key changes nothing if this holds for all keys of the file.
WITHOUT_EFFECT: dict[str, Callable[[dict[str, Any]], bool]] = {
    "attention.head_count_kv": lambda keys: keys["attention.head_count_kv"] == keys["attention.head_count"],
    "attention.key_length": lambda keys: (
        keys["attention.key_length"] * keys["attention.head_count"] == keys["embedding_length"]
    ),
    "attention.sliding_window": lambda keys: keys["attention.sliding_window"] == 0,
    "attention.value_length": lambda keys: keys["attention.value_length"] == keys["attention.key_length"],
    "feed_forward_length": lambda keys: "expert_feed_forward_length" in keys,
    "rope.dimension_sections": lambda _: True,  # text has one position
    "rope.dimension_count": lambda keys: (
        keys["rope.dimension_count"]
        == keys.get("attention.key_length", keys["embedding_length"] // keys["attention.head_count"])
    ),
    "rope.freq_base": lambda keys: keys["rope.freq_base"] == 10000,
    "rope.freq_base_swa": lambda keys: keys["rope.freq_base_swa"] in (10000, keys["rope.freq_base"]),
    "rope.scaling.original_context_length": lambda keys: (
        keys["rope.scaling.original_context_length"] == keys["context_length"]
    ),
    "rope.scaling.type": lambda keys: keys["rope.scaling.type"] in ("linear", "none", "longrope"),
    "vocab_size": lambda _: True,  # the rows of token_embd say it
}


class Case(NamedTuple):
    """A file, and the logits of transformers' model."""

    folder: Path
    written: Written
    model: GGUFModel
    expected: NDArray[np.float32]


def reference(model: transformers.PreTrainedModel) -> NDArray[np.float32]:
    """Transformers' logits of all tokens."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]
    return logits.float().numpy()


def make(folder: Path, case: GGUFCase, *, kind: str = "F32") -> Case:
    """Write the model of a case."""
    model = make_model(folder / "transformers", case.tiny)
    written = describe(case.architecture, model, **case.keys)
    return Case(folder, written, open_gguf(write(folder / "m.gguf", written, kind=kind)), reference(model))


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """One architecture."""
    return make(tmp_path_factory.mktemp("gguf"), CASES[request.param])


def test_logits_are_those_of_transformers(case):
    """At every position, behind windows and original contexts too."""
    logits = logits_of(load_gguf(case.folder, case.model), TOKENS)
    assert np.abs(logits - case.expected).max() < TOLERANCE


def difference(case: Case, model: GGUFModel) -> float | ModelError:
    """How far its logits are from the case's, or the refusal of the model."""
    try:
        if config_of(model) == config_of(case.model) and model.tensors == case.model.tensors:
            return 0.0
        return float(np.abs(logits_of(load_gguf(case.folder, model), TOKENS) - case.expected).max())
    except ModelError as error:
        return error


def test_every_key_matters(case):
    """Without any one key the file is refused, or gives other logits, or there is a reason why it does not."""
    for name in case.written.keys:
        key = f"{case.written.architecture}.{name}"
        rest = {other: value for other, value in case.model.metadata.items() if other != key}
        found = difference(case, dataclasses.replace(case.model, metadata=rest))
        if not isinstance(found, ModelError) and found < TOLERANCE:
            assert name in WITHOUT_EFFECT, name
            assert WITHOUT_EFFECT[name](case.written.keys), name


def test_every_tensor_matters(case):
    """Without any one tensor, or with one more, a refusal names a tensor, or logits differ."""
    for name in case.model.tensors:
        if name.startswith("blk.") and not name.startswith("blk.0."):
            continue
        rest = {other: tensor for other, tensor in case.model.tensors.items() if other != name}
        found = difference(case, dataclasses.replace(case.model, tensors=rest))
        if isinstance(found, ModelError):
            assert "tensor" in str(found)
        else:
            assert name in ("output.weight", "rope_freqs.weight")
            assert found > TOLERANCE
    for name in ("blk.1.attn_q.scale", "blk.0.attn_sub_norm.weight", "cls.output.weight"):
        tensors = {**case.model.tensors, name: case.model.tensors["token_embd.weight"]}
        with pytest.raises(ModelError, match=f"nothing would read the tensor {name}"):
            config_of(dataclasses.replace(case.model, tensors=tensors))


def llama(**changes: Any) -> GGUFCase:
    """A model with rows that packed types take."""
    sizes = {**SMALL, "hidden_size": 64, "intermediate_size": 96, **changes}
    return GGUFCase("llama", lambda: transformers.LlamaConfig(**sizes))


def dequantized(written: Written, kind: str) -> Written:
    """With the matrices that come out when they are packed."""
    number = gguf.GGMLQuantizationType[kind]
    packed = {
        name: gguf.quants.dequantize(gguf.quants.quantize(tensor, number), number) if tensor.ndim > 1 else tensor
        for name, tensor in written.tensors.items()
    }
    return written._replace(tensors=packed)


def answer_of(folder: Path, written: Written, **options: Any) -> NDArray[np.float32]:
    """The logits of a file with this in it."""
    return logits_of(load_gguf(folder, open_gguf(write(folder / "m.gguf", written, **options))), TOKENS)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_packed_types(tmp_path, kind):
    """Matrices of any type are what gguf unpacks."""
    written = describe("llama", make_model(tmp_path / "transformers", llama().tiny))
    assert np.array_equal(answer_of(tmp_path, written, kind=kind), answer_of(tmp_path, dequantized(written, kind)))


def test_types_that_gguf_cannot_pack(tmp_path):
    """Blocks made up are read as well; they need the reader alone."""
    written = describe("llama", make_model(tmp_path / "transformers", llama().tiny))
    random = np.random.default_rng(1)
    raw, unpacked = {}, {}
    for name, kind in (("attn_output", "IQ4_NL"), ("ffn_up", "MXFP4")):
        full, number = f"blk.1.{name}.weight", gguf.GGMLQuantizationType[kind]
        rows, columns = written.tensors[full].shape
        blocks = random.integers(0, 60, (rows, columns // 32 * gguf.GGML_QUANT_SIZES[number][1]), np.uint8)
        raw[full], unpacked[full] = (blocks, kind), gguf.quants.dequantize(blocks, number)
    expected = answer_of(tmp_path, written._replace(tensors=written.tensors | unpacked))
    assert np.array_equal(answer_of(tmp_path, written, raw=raw), expected)


@pytest.mark.parametrize("name", ["llama, tied, biased", "qwen2", "qwen3moe", "olmo", "granitemoe"])
def test_fused_tensors(tmp_path, name):
    """Queries, keys and values, and experts' gate and up, may be one tensor, as newer scripts write on demand."""
    made = make(tmp_path, CASES[name])
    tensors = dict(made.written.tensors)
    for layer in range(3):
        for parts, fused, axis in (
            (("attn_q", "attn_k", "attn_v"), "attn_qkv", 0),
            (("ffn_gate_exps", "ffn_up_exps"), "ffn_gate_up_exps", 1),
        ):
            for suffix in ("weight", "bias"):
                names = [f"blk.{layer}.{part}.{suffix}" for part in parts]
                if names[0] in tensors:
                    tensors[f"blk.{layer}.{fused}.{suffix}"] = np.concatenate([tensors.pop(n) for n in names], axis)
    assert len(tensors) < len(made.written.tensors)
    logits = answer_of(tmp_path, made.written._replace(tensors=tensors))
    assert np.abs(logits - made.expected).max() < TOLERANCE


def test_half_precision(tmp_path):
    """Weights are rounded to the type that is asked for; a rope's frequencies are not."""
    made = make(tmp_path, llama())
    again: Any = make_model(tmp_path / "again", llama().tiny)
    expected = reference(again.to(torch.bfloat16))
    runner = load_gguf(tmp_path, made.model, dtype="bfloat16")
    assert runner.dtype == "bfloat16"
    assert np.abs(logits_of(runner, TOKENS) - expected).mean() < 0.05 * expected.std()


def test_memory_is_that_of_a_few_rows(tmp_path):
    """Beside the model, loading takes far less than a tensor's float32."""
    made = make(tmp_path, llama(vocab_size=200_000, tie_word_embeddings=True, num_hidden_layers=1), kind="F16")
    tracemalloc.start()
    logits = logits_of(load_gguf(tmp_path, made.model), TOKENS[:5])
    peak = tracemalloc.get_traced_memory()[1] - logits.nbytes
    tracemalloc.stop()
    assert np.abs(logits - made.expected[:5]).max() < 0.1
    assert peak < 200_000 * 64 * 4 / 3


def test_other_architectures_are_refused_by_name(tmp_path):
    """Before anything is read, with what can be served."""
    written = describe("llama", make_model(tmp_path / "transformers", llama().tiny))
    model = open_gguf(write(tmp_path / "m.gguf", written))
    other = dataclasses.replace(model, metadata={**model.metadata, "general.architecture": "falcon-h1"})
    with pytest.raises(
        ModelError, match=r"its architecture is 'falcon-h1', and .* rbee serves arcee, .*, starcoder2\."
    ):
        config_of(other)


def test_parts_that_text_does_without_are_left_out(tmp_path, caplog):
    """Vision, and layers that predict more tokens, which num_hidden_layers does not count."""
    made = make(tmp_path, CASES["glm4"])
    keys = {**made.written.keys, "block_count": 4, "nextn_predict_layers": 1}
    tensors = {**made.written.tensors, "blk.3.nextn.enorm.weight": np.ones(48), "v.patch_embd.weight": np.ones((2, 2))}
    logits = answer_of(tmp_path, made.written._replace(keys=keys, tensors=tensors))
    assert np.abs(logits - made.expected).max() < TOLERANCE
    assert "2 tensors of parts that text does without are left out, blk.3.nextn.enorm.weight among them" in caplog.text


def test_tensors_that_do_not_fit_are_named(tmp_path):
    """Those of another shape, of a type without a reader, and with values that are no numbers."""
    written = describe("llama", make_model(tmp_path / "transformers", llama().tiny))
    name = "blk.1.ffn_up.weight"
    for tensor, reason in (
        (written.tensors[name].T, r"blk.1.ffn_up.weight of shape \[64, 96\] cannot become model.layers.1.mlp.up_proj"),
        (np.full((96, 64), np.nan, np.float32), "its tensor blk.1.ffn_up.weight holds infinite or undefined values"),
    ):
        with pytest.raises(ModelError, match=reason):
            answer_of(tmp_path, written._replace(tensors={**written.tensors, name: tensor}))
    vector = "blk.1.ffn_norm.weight"
    blocks = {name: (np.ones((96, 64), np.int8), "I8"), vector: (np.zeros(2 * 34, np.uint8), "Q8_0")}
    for name, raw in blocks.items():
        with pytest.raises(
            ModelError, match=rf"its tensor {name} of shape \[.*\] is of the type {raw[1]}, which cannot"
        ):
            answer_of(tmp_path, written, raw={name: raw})


@pytest.mark.parametrize(
    ("name", "keys", "reason"),
    [
        ("llama, yarn", {"rope.freq_base": 1.0}, "cannot be loaded: float division by zero"),
        (
            "llama, linear rope",
            {"rope.freq_base": 1e-36, "rope.scaling.factor": 1e-36},
            "the frequencies of its rope cannot be computed",
        ),
    ],
)
def test_ropes_that_cannot_be_computed(tmp_path, name, keys, reason):
    """Yarn divides by the logarithm of its base; and frequencies that are infinite."""
    written = describe("llama", make_model(tmp_path / "transformers", CASES[name].tiny))
    with pytest.raises(ModelError, match=reason):
        answer_of(tmp_path, written._replace(keys={**written.keys, **keys}))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model with windows, two ropes, partly scaled, and fused matrices nowhere."""
    return make(tmp_path_factory.mktemp("small"), CASES["olmo3"])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_metadata_is_refused_or_loaded(small, data):
    """Whatever numbers the keys have, nothing but a ModelError comes of it."""
    names = sorted(name for name, value in small.written.keys.items() if isinstance(value, int | float))
    values = st.one_of(st.integers(-1, 300), st.integers(0, 2**32), st.floats(), st.sampled_from([1e-30, 1e30, 1.0]))
    changed = data.draw(st.dictionaries(st.sampled_from(names), values, min_size=1, max_size=3))
    metadata = small.model.metadata | {f"olmo2.{name}": value for name, value in changed.items()}
    model = dataclasses.replace(small.model, metadata=metadata)
    with contextlib.suppress(ModelError):
        load_gguf_model(config_of(model), model, dtype=torch.float32, device="cpu")


def test_a_reader_of_its_own_can_ask_for_the_account(tmp_path):
    """What another loader did not read is named, apart from what is harmless."""
    model = make(tmp_path, llama()).model
    config, read = config_of(model), model.tensors.keys() - {"blk.2.ffn_up.weight"}
    check_all_read(config, model, model.tensors)
    with pytest.raises(ModelError, match=r"nothing would read the tensor blk\.2\.ffn_up\.weight, so that"):
        check_all_read(config, model, read)
