"""What a demo must reach; each bar with the value found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from flows.report.sheet import Cell, Column, Sheet
from flows.report.summary import Figures
from flows.settings import Settings
from flows.wording import percent

MIN_GAIN = 0.005
MIN_GAINING = 2
MIN_COVERAGE = 0.95
MIN_SWAPS = 3
TASK = "click"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One bar."""

    name: str
    value: str
    """What was found."""
    rule: str
    passed: bool


def demo_checks(settings: Settings, summary: Figures) -> list[Check]:
    """The bars of `exfm demo` on a finished run."""
    students = [student.name for student in settings.students if TASK in student.tasks]
    return [
        gain(students, summary),
        *coverage(students, summary),
        *swaps(students, summary),
        requests(summary),
    ]


def gain(students: list[str], summary: Figures) -> Check:
    """Enough students beat their shadows by enough."""
    found = {s: figures["gain"] for s in students if (figures := of_task(summary, s))}
    num = sum(value is not None and value > MIN_GAIN for value in found.values())
    return Check(
        name=f"NE gain over the shadow, {TASK}",
        value=", ".join(f"{name} {percent(value, signed=True)}" for name, value in found.items()),
        rule=f"> {percent(MIN_GAIN)} for at least {MIN_GAINING} students",
        passed=num >= MIN_GAINING,
    )


def coverage(students: list[str], summary: Figures) -> Iterator[Check]:
    """Examples carry the teacher's prediction."""
    for student in students:
        figures = of_task(summary, student)
        value = figures["coverage_after_first"] if figures else None
        yield Check(
            name=f"FM coverage of {student}",
            value=percent(value),
            rule=f">= {percent(MIN_COVERAGE)} once FM has a snapshot",
            passed=value is not None and value >= MIN_COVERAGE,
        )


def swaps(students: list[str], summary: Figures) -> Iterator[Check]:
    """Snapshots reach the server; the first load is not a swap."""
    for student in students:
        value = max(0, round(summary["serving"]["swaps"].get(student, 0)) - 1)
        yield Check(
            name=f"snapshot swaps of {student}",
            value=str(value),
            rule=f">= {MIN_SWAPS}",
            passed=value >= MIN_SWAPS,
        )


def requests(summary: Figures) -> Check:
    """Nothing that the load asked for failed."""
    load = summary["serving"]["load"]
    num, failed = load.get("requests", 0), load.get("failed", 0)
    return Check(
        name="failed requests",
        value=f"{failed} of {num}",
        rule="0 of at least 1",
        passed=num > 0 and failed == 0,
    )


def of_task(summary: Figures, model: str) -> Figures | None:
    """Figures of a model on `TASK`; None if its trainer wrote none."""
    figures: Figures | None = summary["models"].get(model, {}).get(TASK)
    return figures


def as_json(checks: list[Check]) -> list[dict[str, object]]:
    """Checks as they stand in `summary.json`."""
    return [asdict(check) for check in checks]


def checks_table(checks: Iterable[Check]) -> Sheet:
    """Checks for people."""
    return Sheet(
        title="What must hold",
        columns=[Column(head=head, left=True) for head in ("", "what", "found", "rule")],
        rows=[
            [
                Cell("ok", "good") if check.passed else Cell("FAILED", "bad"),
                *(Cell(text) for text in (check.name, check.value, check.rule)),
            ]
            for check in checks
        ],
    )
