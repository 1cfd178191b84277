"""What the settings of the tasks ask of their labels, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from flows.settings import Settings

Ranks = np.ndarray[Any, np.dtype[np.int64]]

NO_CONDITION = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRules:
    """Windows and policies of all tasks; a task is its position in `settings.tasks`."""

    names: tuple[str, ...]
    """Of the tasks."""
    ranks_T: Ranks
    """Window of each task, as a position in `settings.windows_ms`, shape [T]."""
    table: pl.DataFrame
    """A row a task: task, window_ms, condition_ms (window of its condition or NO_CONDITION), early,
    newest (repeated labels correct), corrects (late labels correct), horizon_ms."""
    corrects_T: np.ndarray[Any, np.dtype[np.bool_]]
    """Whether a task may have corrections, of late or of repeated labels, shape [T]."""
    conditions: tuple[tuple[int, int], ...]
    """Each conditional task, and the task that it is conditional on."""
    plain: bool
    """No task has a policy: every row leaves when its window closes, and stays as it is."""
    waking: tuple[int, ...]
    """Tasks whose labels may lead to a row at their own time."""
    keep_ms: int
    """How long after an impression a row of it may leave."""

    @staticmethod
    def of(settings: Settings) -> LabelRules:
        """The rules that `settings` give."""
        tasks, horizon_ms = settings.tasks, settings.das.correction_horizon_ms
        names = [t.name for t in tasks]
        conditions = {k: names.index(t.given) for k, t in enumerate(tasks) if t.given}
        early = {k for k, t in enumerate(tasks) if t.early}
        correcting = [t for t in tasks if t.late_labels == "correct"]
        waking = early | {k for k, t in enumerate(tasks) if t in correcting}
        waking |= {conditions[k] for k in early if k in conditions}
        windows = [tasks[g].window_ms for g in conditions.values()]
        given_ms = dict(zip(conditions, windows, strict=True))
        table = pl.DataFrame(
            {
                "task": np.arange(len(tasks), dtype=np.int16),
                "window_ms": [t.window_ms for t in tasks],
                "condition_ms": [given_ms.get(k, NO_CONDITION) for k in range(len(tasks))],
                "early": [t.early for t in tasks],
                "newest": [t.repeated_labels == "correct" for t in tasks],
                "corrects": [t in correcting for t in tasks],
                "horizon_ms": [horizon_ms] * len(tasks),
            }
        )
        return LabelRules(
            names=tuple(names),
            ranks_T=np.array([settings.windows_ms.index(t.window_ms) for t in tasks]),
            table=table,
            corrects_T=np.array(
                [t in correcting or (t.early and t.repeated_labels == "correct") for t in tasks]
            ),
            conditions=tuple(conditions.items()),
            plain=not (conditions or waking or table["newest"].any()),
            waking=tuple(sorted(waking)),
            keep_ms=max([settings.windows_ms[-1], *(t.window_ms + horizon_ms for t in correcting)]),
        )
