"""`rbee show`: what a model is, read from the headers of its files.

Owns the order: find or fetch, describe, print. Does not know formats.
"""

from __future__ import annotations

import click
import msgspec

from rbee.config import SYNTHETIC
from rbee.errors import ModelError
from rbee.models import ConsoleProgress
from rbee.show.facts import describe
from rbee.show.view import render


def run(model: str, *, as_json: bool) -> None:
    """Print what `model` is, for people or as one JSON object.

    Raises:
        ModelError: there is no such model, or its files cannot be read.
    """
    if model == SYNTHETIC:
        raise ModelError("The synthetic model has no files to describe. Give a model with weights.")
    with ConsoleProgress() as progress:
        facts = describe(model, progress=progress)
    if as_json:
        click.echo(msgspec.json.encode(facts))
    else:
        render(facts)
