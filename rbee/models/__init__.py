"""Models: a catalogue of names, and the way from a name, folder, GGUF file or Hub id to a folder ready to serve.

`prepare` is the way in. Nothing here imports torch or transformers except the conversion's own process,
`python -m rbee.models.convert_gguf`, so that the server and the command line never do. `rbee.models.synthetic` is the
model without weights, and is imported by name.
"""

from rbee.models.catalogue import CatalogueModel, list_catalogue
from rbee.models.prepare import ModelFolder, gguf_of, prepare
from rbee.models.progress import ConsoleProgress, Progress

__all__ = ["CatalogueModel", "ConsoleProgress", "ModelFolder", "Progress", "gguf_of", "list_catalogue", "prepare"]
