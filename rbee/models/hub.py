"""Gets a model from the Hugging Face Hub, into the Hub client's own cache.

Owns which files are fetched and what the client's errors mean to the user. Does not know what is done with them.
Imports huggingface_hub when it is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.errors import ModelError
from rbee.models.folder import check_folder

if TYPE_CHECKING:
    from rbee.models.progress import Progress

_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]  # loading .bin or .pt would run code


def fetch_from_hub(model_id: str, *, progress: Progress) -> Path:
    """The folder of the Hub model `model_id` ("org/name"): the cached one if it is complete, else downloaded.

    Raises:
        ModelError: the Hub cannot be reached, has no such model, refuses it to this user, or it cannot be served.
    """
    import huggingface_hub  # noqa: PLC0415
    from huggingface_hub import errors  # noqa: PLC0415
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415

    try:
        folder = Path(huggingface_hub.snapshot_download(model_id, allow_patterns=_WANTED, local_files_only=True))
        check_folder(folder)
    except (errors.LocalEntryNotFoundError, ModelError):
        pass  # not there, or the download was interrupted
    else:
        return folder

    progress.stage(f"downloading {model_id} from the Hugging Face Hub")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = Path(huggingface_hub.snapshot_download(model_id, allow_patterns=_WANTED))
    except errors.GatedRepoError as error:
        raise ModelError(
            f"The Hub gives {model_id} only to users who have accepted its terms. Accept them on its page, then log in "
            "with `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"The Hugging Face Hub has no model {model_id}, and there is no folder of that name here. Check the "
            "spelling; for a private model set HF_TOKEN."
        ) from error
    except Exception as error:  # its HTTP library's errors too
        reason = str(error.__cause__ or error).strip().splitlines()[0].rstrip(".")
        raise ModelError(
            f"The model {model_id} could not be downloaded from the Hugging Face Hub ({reason}). Check the network, or "
            "give --model a folder, a .gguf file or a name from `rbee pull --list`."
        ) from error
    check_folder(folder)
    return folder
