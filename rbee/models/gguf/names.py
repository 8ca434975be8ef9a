"""Which models a list of GGUF file names offers.

Owns what names say: shards, quantizations, and files that belong to a model but are none. Opens no file, and imports
nothing that is slow.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rbee.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# What is taken if no quantization is asked for, the first that there is.
_PREFERRED = ("Q4_K_M", "Q4_0", "Q4_1", "MXFP4", "Q8_0")

_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")  # gguf-split's (llama.cpp)
_QUANT = re.compile(
    r"(?<![A-Z0-9])((?:UD-)?(?:I?Q\d+|TQ\d|MXFP4|NVFP4|BF16|FP?16|FP?32)(?:_[A-Z0-9]+)*)(?![A-Z0-9])", re.IGNORECASE
)
_MOST_LISTED = 20


class OfferedModel(NamedTuple):
    """A model by the names of its files, its shards in order."""

    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The file's name without its end and the shard's number."""
        shard = _SHARD.fullmatch(self.files[0].name)
        return shard["stem"] if shard else self.files[0].stem

    @property
    def quant(self) -> str:
        """The quantization in the file's name, or in that of its folder; the name if neither has one."""
        found = _QUANT.findall(self.name) or _QUANT.findall(self.files[0].parent.name)
        return found[-1].upper() if found else self.name

    def is_called(self, tag: str) -> bool:
        """Whether `tag` is the quantization or the name of the file, in any case of letters."""
        names = {self.quant, self.quant.removeprefix("UD-"), self.name, self.name + ".gguf", *map(str, self.files)}
        return tag.lower() in {name.lower() for name in names}


def shards_of(path: Path) -> tuple[Path, ...]:
    """The files of the model that the GGUF file `path` is or belongs to, by its name; they may be missing."""
    if not (match := _SHARD.fullmatch(path.name)):
        return (path,)
    count = int(match["count"])
    return tuple(path.with_name(f"{match['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)) or (path,)


def offered_models(names: Iterable[str]) -> list[OfferedModel]:
    """The models among the files with these names, in order."""
    ggufs = [Path(name) for name in names if name.endswith(".gguf")]
    models = {shards_of(path) for path in ggufs if not _NO_MODEL.search(path.name)}
    return [OfferedModel(files) for files in sorted(models)]


def choose(models: Sequence[OfferedModel], tag: str, *, where: str) -> OfferedModel:
    """The one of `models` that `tag` names; if `tag` is empty and there are any, the one to take.

    Raises:
        ModelError: there is none, or there are several; the sentence begins with `where` and has what can be given.
    """
    for wanted in [tag] if tag else _PREFERRED:
        found = [model for model in models if model.is_called(wanted)]
        exact = [model for model in found if model.quant.lower() == wanted.lower()]
        if len(found) == 1 or len(exact) == 1:
            return (exact or found)[0]
        if found:
            raise ModelError(
                f"{where} has {len(found)} GGUF models that are {wanted}: {listed(found)}. Give the name of one after "
                "a colon."
            )
    if len(models) == 1 and not tag:
        return models[0]
    if not models:
        raise ModelError(f"{where} has no GGUF file {tag}. It has no GGUF file at all.")
    if not tag:
        several = f"{len(models)} GGUF models: {listed(models)}"
        raise ModelError(f"{where} has {several}. Give the name of one after a colon.")
    quants = _joined(list(dict.fromkeys(model.quant for model in models)))
    raise ModelError(f"{where} has no GGUF file {tag}. Give one of these after a colon: {quants}.")


def listed(models: Sequence[OfferedModel]) -> str:
    """The first files of the models, as a list for a sentence."""
    return _joined([str(model.files[0]) for model in models])


def _joined(words: Sequence[str]) -> str:
    more = f" and {len(words) - _MOST_LISTED} more" if len(words) > _MOST_LISTED else ""
    return ", ".join(words[:_MOST_LISTED]) + more
