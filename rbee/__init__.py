"""rbee: a single-node LLM inference server built around the path from sampled token to socket."""

from importlib.metadata import version

__version__ = version("rbee")
