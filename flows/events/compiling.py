"""Functions compiled by numba when first called, and kept on disk for the next process."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numba
import numpy as np

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """A function that a `kept` one calls: it is compiled into that."""
    made: _Function = numba.njit(error_model="numpy")(function)
    return made


def kept(*modules: ModuleType) -> Callable[[Callable[..., Any]], Kept]:
    """A function that Python calls, with one kind of arguments.

    Args:
        modules: with compiled functions that it calls.
    """
    return lambda function: Kept(function, modules)


class Kept:
    """Kept beside this file, or in the home, or compiled by each process.

    numba tells by the time of a function's own file whether what it kept is still right. What the
    function calls stands in other files too, so each content of all of them has its own folder.
    """

    def __init__(self, function: Callable[..., Any], modules: tuple[ModuleType, ...]) -> None:
        """Look for a place, without compiling.

        Args:
            function: to be compiled.
            modules: as for `kept`.
        """
        self._function = function
        files = [__file__, function.__code__.co_filename, *(str(m.__file__) for m in modules)]
        content = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
        self.folder: Path | None = None
        self._made = compiled(function)
        asked = numba.config.CACHE_DIR
        try:
            for root in _roots(asked):
                folder = root / f"compiled-{content[:16]}"
                numba.config.CACHE_DIR = str(folder)
                made = _cached(function, folder)
                if made is not None:
                    self.folder, self._made = folder, made
                    break
        finally:
            numba.config.CACHE_DIR = asked
        self._is_loaded = False

    def __call__(self, *args: Any) -> Any:
        """Call it; the first call compiles, or loads what was kept."""
        if self._is_loaded:
            return self._made(*args)
        try:
            found = self._made(*args)
        except Exception as error:  # a damaged file raises anything
            if self.folder is None:
                raise
            logger.warning("%s cannot be used, remove it: %r; compiled anew", self.folder, error)
            self.folder, self._made = None, compiled(self._function)
            found = self._made(*args)
        self._is_loaded = True
        return found


def _cached(function: Callable[..., Any], folder: Path) -> Callable[..., Any] | None:
    """None if nothing can be written there; numba would look for other places of its own."""
    try:
        made: Any = numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:
        return None
    return made if Path(made.stats.cache_path).is_relative_to(folder) else None


def _roots(asked: str) -> Iterator[Path]:
    if asked:  # NUMBA_CACHE_DIR
        yield Path(asked)
        return
    yield Path(__file__).parent / "__pycache__"
    if (home := os.path.expanduser("~")) != "~":
        yield Path(home) / ".cache" / "exfm"
