"""The tables that end a run, out of what `summary.json` holds."""

from __future__ import annotations

from collections.abc import Iterator

from rich.columns import Columns
from rich.console import Group

from flows.report.sheet import Cell, Column, Sheet, change
from flows.report.summary import TEACHER, Figures
from flows.wording import age, number, percent

Line = tuple[str, float | None]


def tables(summary: Figures) -> Group:
    """All that a terminal shows; `summary.json` holds more."""
    counts = Columns([stream_table(summary), serving_table(summary)], padding=(0, 3))
    return Group(quality_table(summary), "", models_table(summary), "", counts, "")


def quality_table(summary: Figures) -> Sheet:
    """Quality of each model and task; the teacher has one NE, which stands under FM."""
    rows = []
    for model in teacher_last(summary["models"]):
        for task, figures in summary["models"][model].items():
            ne, student = figures["ne"], model != TEACHER
            rows.append(
                [
                    *(Cell(model), Cell(task)),
                    Cell(number(ne["student"]) if student else "-"),
                    *(Cell(number(ne[name])) for name in ("shadow", "fm", "oracle")),
                    change(percent(figures["gain"], signed=True), figures["gain"]),
                    Cell(percent(figures["transfer_ratio"])),
                    Cell(percent(figures["coverage_after_first"])),
                    Cell(number(figures["calibration"], 3)),
                    Cell(number(figures["auc"].get("student"))),
                ]
            )
    return Sheet(
        title="NE at impression time, last two thirds of the stream",
        columns=[
            *(Column(head="model", left=True), Column(head="task", left=True)),
            *(Column(head="student"), Column(head="shadow"), Column(head="FM")),
            *(Column(head="Bayes", drop=4), Column(head="gain"), Column(head="transfer", drop=5)),
            *(Column(head="covered", drop=3), Column(head="calibr.", drop=2)),
            Column(head="AUC", drop=1),
        ],
        rows=rows,
    )


def models_table(summary: Figures) -> Sheet:
    """What each model has learned, published and served."""
    serving, snapshots = summary["serving"], summary["snapshots"]
    rows = []
    for model in teacher_last({**summary["models"], **summary["training"]}):
        trained = summary["training"].get(model, {})
        fresh = serving["freshness_s"].get(model, {})
        rows.append(
            [
                Cell(model),
                Cell(number(trained.get("examples"), 0)),
                Cell(number(trained.get("peak_per_s"), 0)),
                Cell(number(snapshots["published"].get(model), 0)),
                bad_above_zero(refused(snapshots["refused"], model)),
                Cell(number(serving["swaps"].get(model), 0)),
                *(Cell(age(fresh.get(key))) for key in ("median", "largest")),
            ]
        )
    heads = ("examples", "at best/s", "snapshots", "refused", "loaded", "fresh", "oldest")
    drops = {"refused": 1, "at best/s": 2}
    return Sheet(
        title="Examples learned, snapshots, age of the newest example that serves",
        columns=[
            Column(head="model", left=True),
            *(Column(head=head, drop=drops.get(head, 0)) for head in heads),
        ],
        rows=rows,
    )


def stream_table(summary: Figures) -> Sheet:
    """Counts of the join."""
    flow = summary["stream"]
    lines: list[Line] = [(f"{topic} read", events) for topic, events in flow["events_read"].items()]
    for key, text in (
        ("examples", "examples"),
        ("examples_with_prediction", "of them with a prediction"),
        ("dead_letters", "dead letters"),
        ("repeats", "repeats dropped"),
        ("unmatched", "records that matched nothing"),
        ("left_out", "times the wall clock left an input out"),
    ):
        lines.append((text, total(flow, key)))
    return list_of("Stream", lines)


def serving_table(summary: Figures) -> Sheet:
    """What the load saw, and what the supervisor did."""
    load = summary["serving"]["load"]
    rows = []
    if load:
        latency = f"{number(load['p50_ms'], 1)} / {number(load['p99_ms'], 1)} ms"
        rows += [
            [Cell("requests"), Cell(number(load["requests"], 0))],
            [Cell("candidates scored"), Cell(number(load["rows"], 0))],
            [Cell("failed requests"), bad_above_zero(load["failed"])],
            [Cell("latency p50 / p99"), Cell(latency)],
        ]
    restarts = sum(process["restarts"] for process in summary["processes"].values())
    rows.append([Cell("restarts of processes"), Cell(number(restarts, 0))])
    rows.append([Cell("seconds"), Cell(number(summary["wall_s"], 0))])
    return Sheet(title="Serving", columns=[Column(left=True), Column()], rows=rows)


def processes_table(summary: Figures) -> Sheet:
    """How each process ended."""
    return Sheet(
        title="Processes",
        columns=[
            *(Column(head="process", left=True), Column(head="at the end", left=True)),
            Column(head="restarts"),
        ],
        rows=[
            [Cell(name), Cell(process["state"]), Cell(number(process["restarts"], 0))]
            for name, process in summary["processes"].items()
        ],
    )


def rejected_table(summary: Figures) -> Sheet:
    """Events set aside: a line a reason, a column a topic."""
    counts = summary["stream"]["rejected"]
    pairs = [key.split("/", 1) for key in counts]
    topics = sorted({topic for topic, _ in pairs})
    return Sheet(
        title="Events set aside",
        columns=[Column(head="reason", left=True), *(Column(head=topic) for topic in topics)],
        rows=[
            [
                Cell(reason.replace("_", " ")),
                *(Cell(number(counts.get(f"{topic}/{reason}"), 0)) for topic in topics),
            ]
            for reason in sorted({reason for _, reason in pairs})
        ],
    )


def list_of(title: str, lines: list[Line]) -> Sheet:
    """A count a line."""
    return Sheet(
        title=title,
        columns=[Column(left=True), Column()],
        rows=[[Cell(text), Cell(number(value, 0))] for text, value in lines],
    )


def teacher_last(models: Figures) -> Iterator[str]:
    """Students in their order, then the teacher."""
    yield from (model for model in models if model != TEACHER)
    yield from (model for model in models if model == TEACHER)


def refused(by_model_and_reason: Figures, model: str) -> float:
    """Snapshots of a model that its gate refused."""
    mine = [n for key, n in by_model_and_reason.items() if key.partition("/")[0] == model]
    return float(sum(mine))


def bad_above_zero(value: float) -> Cell:
    """A count that should be zero."""
    return Cell(number(value, 0), "bad" if value else "plain")


def total(figures: Figures, key: str) -> float:
    """Sum of the values under a key."""
    return float(sum(figures[key].values()))
