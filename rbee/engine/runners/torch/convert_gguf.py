"""`python -m rbee.engine.runners.torch.convert_gguf`: turn one GGUF file into a folder that is ready to serve.

Owns the conversion, in a process of its own, because it imports torch and transformers. Writes lines of JSON to stdout
for `rbee.models.convert`: {"stage", "total"}, {"done"}, {"note"}, and at the end {"sha256"} or {"error"}. Does not know
the cache.

transformers reads the weights into float32, and undoes what llama.cpp's converter changed in each architecture. Mended
here: how text is split before BPE (`mend_pre_tokenizer`), and which tokens end a turn (`_generation_config`).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbee.child import die_with_parent
from rbee.errors import ModelError
from rbee.models.cache import NO_SPACE_ERRNOS, check_space, no_space
from rbee.models.gguf.files import check_is_model
from rbee.models.gguf.header import read_header
from rbee.models.gguf.small_files import sampling_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

    import torch
    from tokenizers import Tokenizer

# Bytes of a float32, and room for the tokenizer and the other small files.
_BYTES_PER_WEIGHT = 4
_SMALL_FILES = 64 * 1024 * 1024

# How llama.cpp (src/llama-vocab.cpp) names splits that a plain byte-level pre-tokenizer makes, with or without
# isolating digits before it. Checked against the tokenizer.json files of GPT-2, StarCoder and SmolLM2.
_GPT2_SPLIT = frozenset({"gpt-2", "mpt", "olmo", "jais"})
_DIGITS_THEN_GPT2_SPLIT = frozenset({"smollm", "starcoder", "refact"})


class Reporter:
    """Writes the lines that the parent reads: those of a `Progress` (`rbee.models`), and one outcome."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def stage(self, name: str, total: int = 0) -> None:
        self._send(stage=name, total=total)

    def done(self, amount: int) -> None:
        self._send(done=amount)

    def note(self, text: str) -> None:
        self._send(note=text)

    def succeeded(self, sha256: str) -> None:
        self._send(sha256=sha256)

    def failed(self, error: ModelError) -> None:
        self._send(error=str(error))

    def _send(self, **fields: str | int) -> None:
        self._file.write(json.dumps(fields) + "\n")
        self._file.flush()


def mend_pre_tokenizer(tokenizer: Tokenizer, pre_type: str | None) -> str | None:
    r"""Split text as the vocabulary's training did, where transformers does not.

    transformers gives a plain byte-level pre-tokenizer to values of tokenizer.ggml.pre that it does not know. For
    SmolLM2 and StarCoder digits must be isolated first, so that "\n\n1" is two tokens and not three. Returns a warning
    for the user if the vocabulary's split is unknown.
    """
    from tokenizers import pre_tokenizers  # noqa: PLC0415 - not before the header has been found good

    if not isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel) or pre_type in _GPT2_SPLIT:
        return None
    if pre_type in _DIGITS_THEN_GPT2_SPLIT:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        return None
    named = f"of the unknown type {pre_type!r}" if pre_type else "not named in the file"
    return f"the pre-tokenizer is {named}: GPT-2's is used, and some text may be cut into other tokens than in training"


def convert(source: Path, folder: Path, report: Reporter) -> None:
    """Write tokenizer, chat template, configs and float32 weights of the GGUF `source` into `folder`.

    Raises:
        ModelError: the file is damaged, or too little space is left.
        Exception: what transformers raises about a file that it cannot convert.
    """
    report.stage("checking the GGUF file", source.stat().st_size)
    header = read_header(source)
    check_is_model(source, header.metadata)
    weight_bytes = header.num_weights * _BYTES_PER_WEIGHT
    check_space(folder, weight_bytes + _SMALL_FILES)
    digest = _sha256(source, report)

    report.stage("loading torch and transformers")
    import torch  # noqa: PLC0415 - takes seconds
    import transformers  # noqa: PLC0415

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    here = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}

    report.stage("converting the tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(**here)
    if warning := mend_pre_tokenizer(tokenizer.backend_tokenizer, header.metadata.get("tokenizer.ggml.pre")):
        report.note(f"{source.name}: {warning}.")
    tokenizer.save_pretrained(folder)

    report.stage("converting the weights")
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        **here, dtype=torch.float32, output_loading_info=True
    )
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(f"{source} lacks weights that the architecture needs: {_listed(missing)}.")
    weights = _distinct(model.state_dict())
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise ModelError(f"{source} is damaged: it holds infinite or undefined weights in {_listed(broken)}.")
    config = json.loads(model.config.to_json_string())
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(name, None)
    config["architectures"] = [type(model).__name__]
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _generation_config(config, header.metadata))

    report.stage("saving the weights", sum(tensor.nbytes for tensor in weights.values()))
    from safetensors.torch import save_file  # noqa: PLC0415

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors writes with mode 0600
    report.succeeded(digest)


def _sha256(path: Path, report: Reporter) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
            report.done(file.tell())
    return digest.hexdigest()


def _distinct(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` without tensors that share another's memory: an lm_head tied to the embeddings."""
    seen: set[int] = set()
    distinct = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            distinct[name] = tensor.contiguous()
    return distinct


def _generation_config(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the special ids, of which several may end a turn, and the recommended sampling parameters."""
    found = config.get("eos_token_id")
    ends = list(found) if isinstance(found, list) else [found]
    ends += [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    distinct = list(dict.fromkeys(end for end in ends if end is not None))
    ids = {
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": distinct[0] if len(distinct) == 1 else distinct or None,
        "pad_token_id": config.get("pad_token_id"),
    }
    return {name: value for name, value in ids.items() if value is not None} | sampling_of(metadata)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _explain(error: Exception, source: Path, folder: Path) -> ModelError:
    found = re.search(r"\(os error (\d+)\)", str(error))  # safetensors has it in its text only
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    if number in NO_SPACE_ERRNOS:
        with contextlib.suppress(ModelError):
            return no_space(folder.parent, read_header(source).num_weights * _BYTES_PER_WEIGHT + _SMALL_FILES)
    reason = " ".join(str(error).split()) or "no reason given"
    return ModelError(f"transformers cannot convert {source} ({type(error).__name__}: {reason.rstrip('.')}).")


def run(source: Path, folder: Path, report: Reporter) -> int:
    """`convert`, with failures reported; return the exit status."""
    try:
        convert(source, folder, report)
    except ModelError as error:
        report.failed(error)
    except Exception as error:  # noqa: BLE001 - a bad file makes transformers raise anything at all
        traceback.print_exc()  # goes to the log that the parent shows at debug level
        report.failed(_explain(error, source, folder))
    else:
        return 0
    return 2


def main(arguments: list[str]) -> int:
    """Parse the command line and `run`; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="rbee.engine.runners.torch.convert_gguf", description="Convert one GGUF file."
    )
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    if not die_with_parent(options.parent_pid):
        return 2
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines:
        os.dup2(2, 1)  # nothing that a library prints gets between the lines
        return run(options.source, options.folder, Reporter(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
