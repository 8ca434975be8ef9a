"""Gets a model from the Hugging Face Hub, into the Hub client's own cache.

Owns which files are fetched and what the client's errors mean to the user. Does not know what is done with them.
Imports huggingface_hub when it is needed.

A repository with safetensors is fetched as a folder. Of one that has GGUF files only, or if a quantization is asked
for, one model is fetched, with all of its shards.
"""

from __future__ import annotations

import contextlib
import glob
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.errors import ModelError
from rbee.models.folder import check_folder
from rbee.models.gguf.names import OfferedModel, choose, offered_models

if TYPE_CHECKING:
    from rbee.models.progress import Progress

_MODEL = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?::(?P<tag>[\w./-]+))?", re.ASCII)
_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]  # loading .bin or .pt would run code
_ADAPTER = "adapter_*.safetensors"


def is_hub_model(model: str) -> bool:
    """Whether `model` is written like a model of the Hub: org/name, or org/name:QUANT."""
    return _MODEL.fullmatch(model) is not None


def fetch_from_hub(model: str, *, progress: Progress) -> Path:
    """The folder or first GGUF file of the Hub model `model`: what is cached if that is complete, else downloaded.

    Raises:
        ModelError: the Hub cannot be reached, has no such model, refuses it to this user, or it cannot be served.
    """
    match = _MODEL.fullmatch(model)
    assert match
    model_id, tag = match["id"], match["tag"] or ""
    cached = _cached_folder(model_id)
    if cached is not None:
        with contextlib.suppress(ModelError):  # it is not there, or not all of it
            if tag:
                return cached / choose(_whole_models(cached), tag, where=model_id).files[0]
            check_folder(cached)
            return cached
    try:
        return _download(model_id, tag, progress)
    except ModelError:
        raise
    except Exception as error:  # its HTTP library's errors too
        if cached is not None and not tag and (whole := _whole_models(cached)):
            return cached / choose(whole, "", where=f"What is cached of {model_id}").files[0]
        raise _explained(error, model_id) from error


def _cached_folder(model_id: str) -> Path | None:
    """The folder of what has been fetched so far; with a pattern, the client would ask for all that fits it."""
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415 - slow

    try:
        return Path(snapshot_download(model_id, local_files_only=True, allow_patterns=[]))
    except errors.LocalEntryNotFoundError:
        return None


def _whole_models(folder: Path) -> list[OfferedModel]:
    """The GGUF models below `folder` that have all of their files."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*.gguf")]
    return [model for model in offered_models(names) if all((folder / file).is_file() for file in model.files)]


def _download(model_id: str, tag: str, progress: Progress) -> Path:
    """Ask the Hub for its list of files, and get those that are needed and missing."""
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415 - slow
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415

    listed = HfApi().model_info(model_id, revision="main").siblings or []
    names = [entry.rfilename for entry in listed]
    offered = offered_models(names)
    has_safetensors = any(name.endswith(".safetensors") and not Path(name).match(_ADAPTER) for name in names)
    chosen = choose(offered, tag, where=model_id) if tag or (offered and not has_safetensors) else None
    wanted = [glob.escape(str(file)) for file in chosen.files] if chosen else _WANTED
    progress.stage(f"downloading {f'{chosen.files[0]} of ' if chosen else ''}{model_id} from the Hugging Face Hub")
    if not sys.stderr.isatty():
        disable_progress_bars()
    folder = Path(snapshot_download(model_id, allow_patterns=wanted, ignore_patterns=_ADAPTER))
    if chosen:
        return folder / chosen.files[0]
    check_folder(folder)
    return folder


def _explained(error: Exception, model_id: str) -> ModelError:
    from huggingface_hub import errors  # noqa: PLC0415 - slow

    match error:
        case errors.GatedRepoError():
            return ModelError(
                f"The Hub gives {model_id} only to users who have accepted its terms. Accept them on its page, then "
                "log in with `hf auth login` or set HF_TOKEN."
            )
        case errors.RepositoryNotFoundError():
            return ModelError(
                f"The Hugging Face Hub has no model {model_id}, and there is no folder of that name here. Check the "
                "spelling; for a private model set HF_TOKEN."
            )
        case errors.RevisionNotFoundError():
            return ModelError(
                f"The repository {model_id} on the Hugging Face Hub has no branch 'main', from which models are taken. "
                "Download the branch that it has, and give --model its folder."
            )
    reason = str(error.__cause__ or error).strip().splitlines()[0].rstrip(".")
    return ModelError(
        f"The model {model_id} could not be downloaded from the Hugging Face Hub ({reason}). Check the network, or "
        "give --model a folder, a .gguf file or a name from `rbee pull --list`."
    )
