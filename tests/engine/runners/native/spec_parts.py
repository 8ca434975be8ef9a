"""Parts of config.json files, for the tests of what is read from them."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
HALF = SMALL["head_dim"] // 2
LONGROPE = {"rope_type": "longrope", "short_factor": [1 + 0.1 * i for i in range(HALF)], "long_factor": [4.0] * HALF}
