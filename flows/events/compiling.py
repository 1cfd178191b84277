"""Functions compiled by numba when first called, and kept on disk for the next process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numba
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """A function that a `kept` one calls: it is compiled into that."""
    made: _Function = numba.njit(error_model="numpy")(function)
    return made


def kept(*modules: ModuleType) -> Callable[[_Function], _Function]:
    """A function that Python calls: kept beside this file, or in the home, or compiled each time.

    numba tells by the time of a function's own file whether what it kept is still right. What the
    function calls stands in other files too, so each content of all of them has its own folder.

    Args:
        modules: with compiled functions that it calls.
    """

    def keep(function: _Function) -> _Function:
        files = [function.__code__.co_filename, *(str(module.__file__) for module in modules)]
        content = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
        asked = numba.config.CACHE_DIR
        try:
            for root in _roots(asked):
                numba.config.CACHE_DIR = str(root / f"compiled-{content[:16]}")
                try:
                    made: _Function = numba.njit(cache=True, error_model="numpy")(function)
                except RuntimeError:  # nothing can be written there
                    continue
                return made
        finally:
            numba.config.CACHE_DIR = asked
        return compiled(function)

    return keep


def _roots(asked: str) -> Iterator[Path]:
    if asked:  # NUMBA_CACHE_DIR
        yield Path(asked)
        return
    yield Path(__file__).parent / "__pycache__"
    if (home := os.path.expanduser("~")) != "~":
        yield Path(home) / ".cache" / "exfm"
