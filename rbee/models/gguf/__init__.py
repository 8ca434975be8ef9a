"""GGUF files: what is in them (`open_gguf`). What their metadata means is in the package's modules.

Imports neither torch nor transformers, and nothing that takes long.
"""

from rbee.models.gguf.files import GGUFModel, open_gguf
from rbee.models.gguf.header import GGML_TYPES, GGUFHeader, read_header

__all__ = ["GGML_TYPES", "GGUFHeader", "GGUFModel", "open_gguf", "read_header"]
