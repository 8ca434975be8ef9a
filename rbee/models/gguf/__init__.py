"""GGUF files: what is in them (`open_gguf`), and what their metadata means.

Imports neither torch nor transformers.
"""

from rbee.models.gguf.config import config_of
from rbee.models.gguf.files import GGUFModel, open_gguf
from rbee.models.gguf.header import GGML_TYPES, GGUFHeader, read_header

__all__ = ["GGML_TYPES", "GGUFHeader", "GGUFModel", "config_of", "open_gguf", "read_header"]
