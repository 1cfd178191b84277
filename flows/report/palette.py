"""Colours that mean the same in every plot."""

from __future__ import annotations

from collections.abc import Iterable

from flows.report.summary import TEACHER

STUDENT, SHADOW, FM, BAYES = "#2563eb", "#94a3b8", "#f97316", "#16a34a"
CURVES = {"student": STUDENT, "shadow": SHADOW, "FM": FM, "Bayes": BAYES}
STUDENTS = ("#7c3aed", "#0891b2", "#db2777", "#a16207", "#4d7c0f", "#be123c", "#1e40af")
"""One each where several students share a plot, apart from the colours of the curves."""
QUEUES = ("#0f172a", "#0ea5e9", "#e11d48", "#ca8a04")


def of_models(students: Iterable[str]) -> dict[str, str]:
    """Colour of each student, and of the teacher."""
    return {**in_turn(students, STUDENTS), TEACHER: FM}


def in_turn(names: Iterable[str], colours: tuple[str, ...]) -> dict[str, str]:
    """A colour for each name; they come again when there are more names."""
    return {name: colours[i % len(colours)] for i, name in enumerate(names)}
