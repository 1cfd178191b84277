"""What the join gives Bytewax to keep: data and their checksum.

Bytewax puts a pickle of it into SQLite, which does not notice if a byte of it changes.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NoReturn, TypedDict

import xxhash

PROTOCOL = 4


class Sealed(TypedDict):
    """A state as it is kept."""

    xxh64: str
    """Of `state`."""
    state: bytes
    """Pickle of plain data."""


class SealBroken(ValueError):
    """The data are not those that were sealed; the message says how that shows."""


def sealed(state: object) -> Sealed:
    """A state with its checksum."""
    data = pickle.dumps(state, PROTOCOL)
    return Sealed(xxh64=xxhash.xxh64_hexdigest(data), state=data)


def is_sealed(kept: object) -> bool:
    """Whether this looks like what `sealed` returns."""
    return isinstance(kept, dict) and kept.keys() == Sealed.__annotations__.keys()


def unbroken(kept: Sealed) -> bytes:
    """The pickle that was sealed.

    Raises:
        SealBroken: it is not the same any more, or was never sealed.
    """
    if not is_sealed(kept):
        raise SealBroken("it is of another version of exfm")
    found = xxhash.xxh64_hexdigest(kept["state"])
    if found != kept["xxh64"]:
        raise SealBroken(f"its xxh64 is {found}, that of what was saved {kept['xxh64']}")
    return kept["state"]


def opened(kept: Sealed) -> Any:
    """The state that was sealed.

    Raises:
        SealBroken: it is not the same any more, or was never sealed.
    """
    return pickle.loads(unbroken(kept))


class PlainData(pickle.Unpickler):
    """Reads numbers, texts and containers of them."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse everything that has a class of its own."""
        raise pickle.UnpicklingError(f"{module}.{name} is no plain data")


def plain(data: bytes) -> Any:
    """What a pickle holds, if it is plain data.

    Raises:
        Exception: it is not; of which kind it is depends on the bytes.
    """
    return PlainData(io.BytesIO(data)).load()
