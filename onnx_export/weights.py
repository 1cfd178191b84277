"""Weights in one file: where each parameter lies in it, and packing live parameters into it.

Every parameter starts at a page, so that ONNX Runtime maps it in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PAGE_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One parameter within the file."""

    offset: int
    num_bytes: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.num_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """Places of all parameters, by name, in the order of the state dict."""

    places: Mapping[str, Place]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return max((place.end for place in self.places.values()), default=0)


def layout(state: Mapping[str, Tensor]) -> Layout:
    """Where the parameters of a state dict lie.

    Raises:
        ValueError: a parameter is not float32.
    """
    places, offset = {}, 0
    for name, tensor in state.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"parameter {name} must be float32, got {tensor.dtype}")
        places[name] = Place(offset=offset, num_bytes=tensor.numel() * 4, shape=tuple(tensor.shape))
        offset = -(-places[name].end // PAGE_BYTES) * PAGE_BYTES
    return Layout(places)


def pack(state: Mapping[str, Tensor], where: Layout, into: bytearray) -> None:
    """Copy the parameters to their places.

    Args:
        state: live parameters, of the names and shapes of the layout.
        where: of the same structure.
        into: `where.size` bytes, zero between the places.

    Raises:
        ValueError: names or shapes are not those of the layout.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = {name: place.shape for name, place in where.places.items()}
    if shapes != expected:
        raise ValueError(f"parameters {shapes} do not fit the template's {expected}")
    for name, place in where.places.items():
        there = np.frombuffer(into, np.float32, place.num_bytes // 4, place.offset)
        there.reshape(place.shape)[...] = state[name].detach().numpy()
