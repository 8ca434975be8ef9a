"""Which tensors a decoder needs, and what safetensors and GGUF files call them.

Owns transformers' names, the order of rows in queries and keys, and which other tensors a file may have. GGUF's names
are in `rbee.models.gguf.tensor_names`. Does not read files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rbee.engine.runners.interface import Unsupported
from rbee.models.gguf.tensor_names import NAMES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from rbee.engine.runners.native.spec import ModelSpec

# What transformers calls a module; a bias is called like its matrix.
_MODEL_NAMES = {"final_norm": "norm", "embedding": "embed_tokens"}
_LAYER_NAMES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_NAMES_WITH_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}

# Matrices that may be stored as one: the rows of each follow those of the one before it.
_FUSED = {("query", "key", "value"): "self_attn.qkv_proj", ("gate", "up"): "mlp.gate_up_proj"}
_FUSED_IN_GGUF = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
_ALWAYS_FUSED = "phi3"

# Where transformers keeps a decoder: in a model with a head, as the text part of a larger one, or alone; and the head.
_BODIES = {
    "model.": "lm_head",
    "model.language_model.": "lm_head",
    "language_model.model.": "language_model.lm_head",
    "": "lm_head",
}
# Whether llama.cpp turns neighbouring rows of a head together (LLAMA_ROPE_TYPE_NORM) in each general.architecture.
_TURNS_NEIGHBOURS = {
    **dict.fromkeys(("arcee", "ernie4_5", "granite", "llama", "mistral3", "smollm3"), True),
    **dict.fromkeys(("gemma", "gemma3", "phi3", "qwen2", "qwen2vl", "qwen3", "qwen3vl", "seed_oss"), False),
}

_HARMLESS = re.compile(
    r"(.+\.)?rotary_emb\.inv_freq"  # follows from the config
    r"|rope_(freqs|factors_long|factors_short)\.weight"  # is in the config that is made of a GGUF's metadata
    r"|(model\.)?(vision_tower|vision_model|multi_modal_projector|visual)\..+"  # is for images
    r"|(.+\.)?(mtp|nextn)[._].+"  # predicts further tokens
)


@dataclass(frozen=True)
class Wanted:
    """A tensor that the model needs: a stored one, or some of its rows."""

    name: str  # ours
    stored_name: str
    shape: tuple[int, ...]  # outermost dimension first
    neighbours: int = 0  # the file has the pairs that a rope turns in neighbouring rows of so many heads
    first_row: int = 0  # in the stored tensor
    stored_rows: int = 0  # of the stored tensor; 0: no more than these


class TensorNames:
    """The names in one model's files.

    Args:
        spec: of the model.
        stored: the names of all tensors in the files.
        architecture: the general.architecture of a GGUF; None: they are safetensors.

    Unsupported: the files have other names, or rows in an unknown order.
    """

    def __init__(self, spec: ModelSpec, stored: Collection[str], architecture: str | None) -> None:
        self._spec = spec
        self._stored = stored
        self._gguf_names: dict[str, str] = {}  # by transformers'; none for safetensors
        self.has_head = True
        if architecture is None:
            body = next((body for body in _BODIES if f"{body}embed_tokens.weight" in stored), None)
            if body is None or (not body and not any(name.startswith("layers.") for name in stored)):
                raise Unsupported("its weights have other names than transformers gives them when it saves a model")
            self._body, self._layers, self.head = body, f"{body}layers", f"{_BODIES[body]}.weight"
            # A decoder that was saved alone has none, unless its embedding serves as one.
            self.has_head = bool(body) or spec.tied_embeddings or self.head in stored
            self._neighbours = spec.interleaved_rope
        elif architecture in _TURNS_NEIGHBOURS:
            self._body, self._layers, self.head = "", "blk", "output.weight"
            self._neighbours = _TURNS_NEIGHBOURS[architecture]
            llama = NAMES["llama"]
            whole = {name.removeprefix("model."): module for name, module in llama.whole.items()}
            own = NAMES.get(spec.model_type, llama).layer
            self._gguf_names = {**whole, **llama.layer, **own, **_FUSED_IN_GGUF}
        else:
            raise Unsupported(
                f"its general.architecture is {architecture!r}, and the native kernels know the order of rows in "
                f"{', '.join(sorted(_TURNS_NEIGHBOURS))}"
            )
        self._names = _LAYER_NAMES | (_NAMES_WITH_POST_NORMS if spec.has_post_norms else {})

    def wanted(self) -> Iterator[Wanted]:
        """All tensors in the order in which a step reads them, but for the embedding."""
        for layer in range(len(self._spec.layers)):
            yield from self._of_layer(layer)
        shapes = {"final_norm": (self._spec.hidden_size,), "embedding": (self._spec.vocab_size, self._spec.hidden_size)}
        for part, shape in shapes.items():
            yield Wanted(part, f"{self._body}{self._in_file(_MODEL_NAMES[part])}.weight", shape)
        if self.has_head and not self._spec.tied_embeddings:
            yield self.wanted_head()

    def wanted_head(self) -> Wanted:
        """The head of a model whose head is not its embedding."""
        return Wanted("head", self.head, (self._spec.vocab_size, self._spec.hidden_size))

    def unknown(self, read: Collection[str]) -> list[str]:
        """The tensors that were not read, and whose numbers the model might need."""
        return sorted(name for name in self._stored if name not in read and not _HARMLESS.fullmatch(name))

    def _of_layer(self, layer: int) -> Iterator[Wanted]:
        spec = self._spec
        hidden, queries, keys = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        matrices = {
            "query": (queries, hidden),
            "key": (keys, hidden),
            "value": (keys, hidden),
            "output": (hidden, queries),
            **({"gate": (spec.intermediate_size, hidden)} if spec.has_gate else {}),
            "up": (spec.intermediate_size, hidden),
            "down": (hidden, spec.intermediate_size),
        }
        biased = {"query", "key", "value"} if spec.has_qkv_bias else set()
        biased |= {"output"} if spec.has_output_bias else set()
        biased |= {"gate", "up", "down"} if spec.has_mlp_bias else set()
        neighbours = {"query": spec.num_heads, "key": spec.num_kv_heads} if self._neighbours else {}
        for part, shape in matrices.items():
            for kind, size in (("weight", shape), ("bias", shape[:1])):
                if kind == "weight" or part in biased:
                    name = f"layers.{layer}.{part}" + ("_bias" if kind == "bias" else "")
                    stored, first, rows = self._place(layer, part, kind, matrices)
                    yield Wanted(name, stored, size, neighbours.get(part, 0), first, rows)
        vectors = {"attention_norm": hidden, "mlp_norm": hidden}
        if spec.has_qk_norm:
            vectors |= {"query_norm": spec.head_dim, "key_norm": spec.head_dim}
        if spec.has_post_norms:
            vectors |= {"post_attention_norm": hidden, "post_mlp_norm": hidden}
        for part, length in vectors.items():
            yield Wanted(f"layers.{layer}.{part}", self._stored_name(layer, self._names[part], "weight"), (length,))

    def _place(self, layer: int, part: str, kind: str, shapes: dict[str, tuple[int, int]]) -> tuple[str, int, int]:
        """The stored tensor of a matrix or bias, and if that holds others too, its first row in it and all rows."""
        own = self._stored_name(layer, self._names[part], kind)
        for parts, fused in _FUSED.items():
            if part not in parts or not shapes.keys() >= set(parts):
                continue
            together = self._stored_name(layer, fused, kind)
            single = [self._stored_name(layer, self._names[other], kind) for other in parts]
            always = self._spec.model_type == _ALWAYS_FUSED and kind == "weight"
            if single[0] not in self._stored and (always or (together in self._stored and together not in single)):
                first = sum(shapes[other][0] for other in parts[: parts.index(part)])
                return together, first, sum(shapes[other][0] for other in parts)
        return own, 0, 0

    def _stored_name(self, layer: int, name: str, kind: str) -> str:
        return f"{self._layers}.{layer}.{self._in_file(name)}.{kind}"

    def _in_file(self, name: str) -> str:
        return self._gguf_names.get(name, name)
