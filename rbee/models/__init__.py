"""Models: from a catalogue name, folder, GGUF file or Hub id to a folder that is ready to serve (`prepare`).

Imports neither torch nor transformers.
"""

from rbee.models.catalogue import CatalogueModel, list_catalogue
from rbee.models.prepare import ModelFolder, gguf_of, prepare
from rbee.models.progress import ConsoleProgress, Progress

__all__ = ["CatalogueModel", "ConsoleProgress", "ModelFolder", "Progress", "gguf_of", "list_catalogue", "prepare"]
