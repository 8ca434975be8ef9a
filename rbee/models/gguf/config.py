"""A GGUF file's metadata and tensors as the config.json of the same model in transformers.

Owns the refusals, and what every model has. `architectures` knows the rest. Token ids are no part of the result. Does
not know weights.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from rbee.errors import ModelError
from rbee.models.gguf.architectures import ARCHITECTURES
from rbee.models.gguf.keys import Keys
from rbee.models.gguf.tensor_names import CLASSES
from rbee.models.gguf.tensors import tensors_of

if TYPE_CHECKING:
    from rbee.models.gguf.files import GGUFModel

logger = logging.getLogger(__name__)

_DTYPES = {"F32": "float32", "F16": "float16"}  # of most matrices; what is packed is served as bfloat16


def config_of(model: GGUFModel) -> dict[str, Any]:
    """The config.json of `model`, with everything that its class in transformers looks at.

    Raises:
        ModelError: the architecture is not supported, a key makes no sense or is missing, or the tensors are not those
            of such a model.
    """
    architecture = model.metadata["general.architecture"]
    read = ARCHITECTURES.get(architecture)
    if read is None:
        raise ModelError(
            f"{model.files[0]} cannot be served: its architecture is {architecture!r}, and from GGUF files rbee serves "
            f"{', '.join(sorted(ARCHITECTURES))}."
        )
    keys = Keys(model)
    if not keys.flag("attention.causal", default=True):
        keys.refuse("attention.causal", "is false, so that the model generates no text")
    config = {**_decoder(keys), **read(keys)}
    config["architectures"] = [CLASSES[config["model_type"]]]
    if ignored := tensors_of(config, model).ignored:
        logger.warning(
            "%s: %d tensors of parts that text does without are left out, %s among them.",
            model.files[0].name,
            len(ignored),
            ignored[0],
        )
    return config


def _decoder(keys: Keys) -> dict[str, Any]:
    """What all models have."""
    hidden, heads, kv_heads = keys.hidden_size, keys.num_heads, keys.num_kv_heads
    embedding = keys.model.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.stored.shape) != 2 or embedding.stored.shape[1] != hidden:
        keys.refuse("embedding_length", f"is {hidden}, and there is no tensor token_embd.weight with rows of so many")
    if heads % kv_heads:
        keys.refuse("attention.head_count_kv", f"is {kv_heads}, which does not divide the {heads} heads")
    if keys.count("attention.value_length", keys.head_dim) != keys.head_dim:
        keys.refuse("attention.value_length", f"is not {keys.head_dim} like the length of keys, which is not supported")
    types = Counter(placed.stored.type for placed in keys.model.tensors.values() if len(placed.stored.shape) > 1)
    return {
        "vocab_size": embedding.stored.shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": keys.num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": keys.head_dim,
        "max_position_embeddings": keys.count("context_length"),
        "num_nextn_predict_layers": keys.num_predictors,
        "tie_word_embeddings": not keys.has("output.weight"),
        "pad_token_id": None,
        "dtype": _DTYPES.get(types.most_common(1)[0][0], "bfloat16"),
    }
