"""Parts for the tests of rbee.models: a tiny GGUF file, a recording Progress, a process that prepares a model."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import gguf
import numpy as np
from tokenizers import pre_tokenizers

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN, HEADS, KV_HEADS, FFN, LAYERS = 64, 4, 2, 128, 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TINY_CONFIG = {  # of `tiny_weights`, as transformers has it
    "model_type": "llama",
    "vocab_size": len(SPECIALS) + 256 + 3,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


class RecordingProgress:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.amounts: list[tuple[str, int]] = []
        self.notes: list[str] = []

    def stage(self, name: str, total: int = 0) -> None:
        """Keep the name."""
        assert total >= 0
        self.stages.append(name)

    def done(self, amount: int) -> None:
        """Keep the amount with its stage."""
        self.amounts.append((self.stages[-1], amount))

    def note(self, text: str) -> None:
        """Keep the text."""
        self.notes.append(text)


def byte_characters() -> list[str]:
    """GPT-2's character for every byte, taken from the tokenizers library's own list."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def tiny_weights(seed: int = 7) -> dict[str, np.ndarray]:
    """Random float32 weights of a Llama model, by their names in transformers; the embeddings are tied."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.2, shape).astype(np.float32)

    vocabulary = len(SPECIALS) + 256 + 3
    kv = HIDDEN // HEADS * KV_HEADS
    weights = {"model.embed_tokens.weight": matrix(vocabulary, HIDDEN), "model.norm.weight": matrix(HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        weights |= {
            at + "input_layernorm.weight": matrix(HIDDEN),
            at + "post_attention_layernorm.weight": matrix(HIDDEN),
            at + "self_attn.q_proj.weight": matrix(HIDDEN, HIDDEN),
            at + "self_attn.k_proj.weight": matrix(kv, HIDDEN),
            at + "self_attn.v_proj.weight": matrix(kv, HIDDEN),
            at + "self_attn.o_proj.weight": matrix(HIDDEN, HIDDEN),
            at + "mlp.gate_proj.weight": matrix(FFN, HIDDEN),
            at + "mlp.up_proj.weight": matrix(FFN, HIDDEN),
            at + "mlp.down_proj.weight": matrix(HIDDEN, FFN),
        }
    return weights


def write_tiny_gguf(
    path: Path,
    *,
    weights: dict[str, np.ndarray] | None = None,
    architecture: str = "llama",
    pre: str = "smollm",
    tensors_per_file: int = 0,
    pooling: gguf.PoolingType | None = None,
) -> Path:
    """Write a Llama model as llama.cpp's converter does: renamed, q and k permuted, matrices of the MLP in Q8_0."""
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_file)
    writer.add_name("tiny")
    writer.add_float32(gguf.Keys.General.SAMPLING_TEMP, 0.6)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(SPECIALS) + 256 + 3)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    merges = ["Ċ Ċ", "Ġ Ġ", "a b"]
    writer.add_token_list(SPECIALS + byte_characters() + [merge.replace(" ", "") for merge in merges])
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIALS) + [gguf.TokenType.NORMAL] * (256 + len(merges)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, weight in (tiny_weights() if weights is None else weights).items():
        stored = weight
        if "q_proj" in name or "k_proj" in name:
            heads = HEADS if "q_proj" in name else KV_HEADS
            halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
            stored = halves.swapaxes(1, 2).reshape(weight.shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if "mlp" in name else gguf.GGMLQuantizationType.F32
        if kind != gguf.GGMLQuantizationType.F32:
            stored = gguf.quants.quantize(stored, kind)
        stored_name = names.get_name(name, (".weight",))
        assert stored_name is not None
        writer.add_tensor(stored_name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


PREPARE = """
import sys
from rbee.errors import ModelError
from rbee.models import ConsoleProgress, prepare
try:
    with ConsoleProgress() as progress:
        print(prepare(sys.argv[1], progress=progress).path)
except ModelError as error:
    sys.exit(f"ModelError: {error}")
"""


def start_prepare(model: Path | str, *, cache: Path) -> subprocess.Popen[str]:
    """Prepare a model in a process of its own; its progress comes line by line on stderr."""
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(model)],
        env=os.environ | {"RBEE_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
