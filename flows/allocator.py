"""What a process that keeps many rows for long takes its memory from."""

from __future__ import annotations

import ctypes

import pyarrow as pa

KEPT_FREE_BYTES = 64 << 20
"""Free memory at the end of a heap that stays with the process."""
OWN_MAPPING_BYTES = 32 << 20
"""Larger blocks are mapped one by one, and unmapped when they are freed: the most that it takes."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of <malloc.h>."""


def use_malloc() -> None:
    """Let Arrow take memory from malloc in place of its own pool, and malloc keep what goes around.

    A million pending rows then take 1.2 times their Arrow size, in place of 1.3 times, and no more
    time (`python -m benchmarks.das.memory --held`).

    By itself malloc gives blocks of a few MB back to the system each time: those of each fetch and
    of each snapshot. Where the system gives free memory back to a host, having it again costs more
    than all that is done in it.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc; others have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_FREE_BYTES)
