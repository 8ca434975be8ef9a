"""GGUF files: what is in them (`open_gguf`). What their metadata means is in the package's modules.

Imports neither torch nor transformers, and nothing that takes long.
"""

from rbee.models.gguf.files import GGUFModel, check_is_model, open_gguf
from rbee.models.gguf.header import GGML_TYPES, GGUFHeader, read_header
from rbee.models.gguf_names import shards_of

__all__ = ["GGML_TYPES", "GGUFHeader", "GGUFModel", "check_is_model", "open_gguf", "read_header", "shards_of"]
