"""The keys of one architecture in a GGUF file's metadata, each checked when it is read.

Owns the sentences about a key that is missing or makes no sense. Does not know what keys mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np

from rbee.errors import ModelError

if TYPE_CHECKING:
    from rbee.models.gguf.files import GGUFModel

_MOST = 1 << 31  # what llama.cpp counts fits 32 bits
_MOST_HEADS = 1 << 16  # and values in one: far more than any model has, and few enough to make lists of
_LARGEST = 1e38  # fits float32


class Keys:
    """What `model` says of its architecture; a key's name is the part behind "llama." and the like.

    Every method raises a ModelError that names the key if its value cannot be what it stands for.
    """

    def __init__(self, model: GGUFModel) -> None:
        self.model = model
        self.architecture: str = model.metadata["general.architecture"]
        layers = self.count("block_count")
        if not any(tensor.startswith(f"blk.{layers - 1}.") for tensor in model.tensors):
            self.refuse("block_count", f"is {layers}, and the file has no tensors of the last of these layers")
        self.num_predictors = self.count("nextn_predict_layers", 0, least=0, most=layers - 1)  # the last layers
        self.num_layers = layers - self.num_predictors
        self.hidden_size = self.count("embedding_length")
        self.num_heads = self.count("attention.head_count", most=_MOST_HEADS)
        self.num_kv_heads = self.count("attention.head_count_kv", self.num_heads)
        if not self.given("attention.key_length") and self.hidden_size % self.num_heads:
            self.refuse("attention.head_count", f"is {self.num_heads}, which does not divide {self.hidden_size}")
        self.head_dim = self.count("attention.key_length", self.hidden_size // self.num_heads, most=_MOST_HEADS)
        # The length that the model was trained with, before its context was extended; llama.cpp takes 0 for "the same".
        given = self.count("rope.scaling.original_context_length", 0, least=0)
        self.original_length = given or self.count("context_length")

    def has(self, tensor: str) -> bool:
        """Whether the model has a tensor of this name, or its first layer has."""
        return tensor in self.model.tensors or f"blk.0.{tensor}" in self.model.tensors

    def refuse(self, name: str, problem: str) -> NoReturn:
        """Raise a ModelError about the key `name`."""
        raise ModelError(
            f"{self.model.files[0]} cannot be used: its key {self.architecture}.{name} {problem}. "
            "Download or convert the model again."
        )

    def given(self, name: str) -> bool:
        """Whether the file has the key."""
        return f"{self.architecture}.{name}" in self.model.metadata

    def count(self, name: str, default: int | None = None, *, least: int = 1, most: int = _MOST) -> int:
        """A whole number; an array that has the same number for each layer is that number."""
        value = self._value(name, default)
        if isinstance(value, np.ndarray):
            if not len(value) or (value != value[0]).any():
                self.refuse(name, "differs from layer to layer, which no architecture that can be served here does")
            value = value[0].item()
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(name, f"is {value!r}, and a whole number from {least} to {most} was expected")
        return value

    def number(self, name: str, default: float | None = None, *, positive: bool = True) -> float:
        """A finite number, as the shortest decimal that the file's float32 stands for."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
            self.refuse(name, f"is {value!r}, and a number was expected")
        if value < 0 or (positive and not np.float32(value)):
            self.refuse(name, f"is {value!r}, and a number greater than 0 was expected")
        return float(str(np.float32(value))) if self.given(name) else float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            self.refuse(name, f"is {value!r}, and true or false was expected")
        return value

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            self.refuse(name, f"is {value!r}, and a text was expected")
        return value

    def layers_with_window(self, period: int) -> list[bool]:
        """Which layers look back over a window: sliding_window_pattern lists them, or is the period of those without.

        In a period the last layer sees everything (llama.cpp: set_swa_pattern).
        """
        name = "attention.sliding_window_pattern"
        value = self._value(name, period)
        if not isinstance(value, np.ndarray):
            period = self.count(name, period, least=0)
            return [period == 0 or layer % period < period - 1 for layer in range(self.num_layers)]
        if len(value) < self.num_layers or value.dtype.kind not in "biu":
            self.refuse(name, f"is no list of true or false for each of the {self.num_layers} layers")
        return [bool(each) for each in value[: self.num_layers]]

    def floats(self, tensor: str, size: int) -> list[float] | None:
        """The tensor's `size` values, or None if the file does not have it."""
        placed = self.model.tensors.get(tensor)
        if placed is None:
            return None
        stored = placed.stored
        if stored.type != "F32" or stored.shape != (size,):
            raise ModelError(
                f"{placed.path} cannot be used: its tensor {tensor} is {stored.type} of shape {list(stored.shape)}, "
                f"and F32 of shape [{size}] was expected. Download or convert the model again."
            )
        try:
            with placed.path.open("rb") as file:
                file.seek(stored.offset)
                data = file.read(stored.size)
        except OSError as error:
            raise ModelError(f"The model file {placed.path} cannot be read: {error.strerror or error}.") from error
        values = np.frombuffer(data, "<f4")
        if len(values) != size or not (np.isfinite(values) & (values > 0)).all():
            raise ModelError(f"{placed.path} is damaged: its tensor {tensor} has values that are no positive numbers.")
        return [float(str(value)) for value in values]

    def _value(self, name: str, default: object) -> object:
        value = self.model.metadata.get(f"{self.architecture}.{name}", default)
        if value is None:
            self.refuse(name, "is missing")
        return value
