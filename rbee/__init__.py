"""rbee: a single-node LLM inference server built around the path from sampled token to socket."""

__version__ = "0.1.0"  # pyproject.toml reads it from here; asking importlib.metadata would cost each start 40 ms
