"""Models: a catalogue of names, and the way from a name, folder, GGUF file or Hub id to a folder ready to serve.

`prepare` is the way in. Nothing here imports torch or transformers: a GGUF is converted by a process of its own,
`python -m rbee.engine.runners.torch.convert_gguf`. `rbee.models.synthetic` is the model without weights, and is
imported by name.
"""

from rbee.models.catalogue import CatalogueModel, list_catalogue
from rbee.models.prepare import ModelFolder, gguf_of, prepare
from rbee.models.progress import ConsoleProgress, Progress

__all__ = ["CatalogueModel", "ConsoleProgress", "ModelFolder", "Progress", "gguf_of", "list_catalogue", "prepare"]
