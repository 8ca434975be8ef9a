"""Make a tiny random Llama with the default model's tokenizer: for measuring a serving path that no model slows down.

    python benchmarks/make_tiny_model.py FOLDER

Two layers, 64 wide, the default model's 49,152 tokens. Its output is nonsense, and the same nonsense on every machine
(fixed seed). The folder can be served by anything that reads transformers' models.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rbee.config import DEFAULT_MODEL
from rbee.models import ConsoleProgress, prepare

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def make(folder: Path) -> None:
    """Write the model to `folder`, which is made if there is none."""
    with ConsoleProgress() as progress:
        default = prepare(DEFAULT_MODEL, progress=progress)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)  # with a generation config from the config's token ids
    for name in _TOKENIZER_FILES:
        if (default.path / name).exists():
            shutil.copyfile(default.path / name, folder / name)
    print(folder)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()
