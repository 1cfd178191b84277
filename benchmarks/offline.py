"""The learning of a run without its streams: teacher, students and shadows over tables in memory.

An event-time replay: at each cadence the models score the impressions of the next interval with
what they have learned, then learn the examples whose windows close in it. So the figures are those
of the serving definition: what a snapshot would have answered at impression time. For choosing
configurations; a real run has the last word.

    python -m benchmarks.offline --config configs/market.toml --seconds 180 --seeds 3
    python -m benchmarks.offline --config configs/kuairand.toml --kuairand DIR --seeds 3
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flows.datasets.kuairand import tables
from flows.datasets.market import Market
from flows.records import shard_of
from flows.settings import Settings, Student, load
from models.encoding import Encoder
from models.online import Batch, OnlineLearner, build_student, build_teacher
from models.schema import Distillation, Learning

Array = np.ndarray[Any, np.dtype[Any]]
START_MS = 1_700_000_000_000


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Impressions by time, their labels, and the order in which examples are learned."""

    impressions: pa.Table
    ts_ms: Array
    domain: Array
    labels_NT: Array
    oracle_NT: Array
    """True probabilities; NaN where unknown."""
    example_row: Array
    """Impression of each example, in the order of learning, shape [E]."""
    example_mask_ET: Array
    closed_ms: Array
    """Shape [E]; ascending by bucket."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Normalised entropies over the last two thirds of a student's impressions."""

    student: float
    shadow: float
    teacher: float
    oracle: float

    @property
    def gain(self) -> float:
        """Share of the shadow's NE that the teacher saves."""
        return (self.shadow - self.student) / self.shadow


def stream_of(settings: Settings, impressions: pa.Table, labels: pa.Table) -> Stream:
    """Labels by window, and examples in the order of DAS: by bucket, shard, time of closing, id."""
    ids = pl.Series("impression_id", impressions["impression_id"].combine_chunks())
    ts_ms = impressions["ts_ms"].to_numpy()
    rows = pl.DataFrame({"impression_id": ids, "ts_ms": ts_ms})
    known = pl.from_arrow(labels.rename_columns(["impression_id", "task", "value", "known_ms"]))
    assert isinstance(known, pl.DataFrame)
    labels_NT = np.zeros((len(ts_ms), len(settings.tasks)), np.float32)
    oracle_NT = np.full(labels_NT.shape, np.nan)
    for number, task in enumerate(settings.tasks):
        of_task = known.filter(pl.col("task") == number).select("impression_id", "known_ms")
        joined = rows.join(of_task, on="impression_id", how="left", maintain_order="left")
        waited = (joined["known_ms"] - joined["ts_ms"]).fill_null(task.window_ms)
        labels_NT[:, number] = (waited < task.window_ms).to_numpy()
        if task.oracle:
            oracle_NT[:, number] = impressions[task.oracle].to_numpy()
    shard = shard_of(impressions["impression_id"], settings.das.shards)
    rank = ids.rank("ordinal").to_numpy()
    parts = [np.arange(len(ts_ms)) for _ in settings.windows_ms]
    row = np.concatenate(parts)
    window = np.repeat(np.array(settings.windows_ms), len(ts_ms))
    closed_ms = ts_ms[row] + window
    order = np.lexsort((rank[row], closed_ms, shard[row], closed_ms // settings.das.bucket_ms))
    windows_T = np.array([t.window_ms for t in settings.tasks])
    return Stream(
        impressions=impressions,
        ts_ms=ts_ms,
        domain=impressions["domain"].to_numpy(zero_copy_only=False),
        labels_NT=labels_NT,
        oracle_NT=oracle_NT,
        example_row=row[order],
        example_mask_ET=windows_T[None, :] == window[order][:, None],
        closed_ms=closed_ms[order],
    )


class Learned:
    """One model's way through the stream."""

    def __init__(
        self, stream: Stream, settings: Settings, owner: Any, learners: list[OnlineLearner]
    ) -> None:
        names = [t.name for t in settings.tasks]
        self.tasks = [names.index(t) for t in getattr(owner, "tasks", names)]
        self._stream = stream
        self._batch = owner.learning.batch
        self._learners = learners
        domains = getattr(owner, "domains", ()) or settings.domains
        self.mine = np.isin(stream.domain, domains)
        self._inputs = Encoder(settings.encoding(owner)).encode(stream.impressions)
        counts = self.mine[stream.example_row] & stream.example_mask_ET[:, self.tasks].any(axis=1)
        self._examples = np.flatnonzero(counts)

    def run(self, every_ms: int, delay_ms: int, warmup: int, teacher_NT: Array) -> list[Array]:
        """Logits at impression time of each learner, shape [N, tasks], NaN where there is none."""
        stream = self._stream
        scores = [np.full((len(stream.ts_ms), len(self.tasks)), np.nan, np.float32)]
        scores = [scores[0].copy() for _ in self._learners]
        first, last = (t // every_ms for t in (stream.ts_ms[0], stream.closed_ms[-1]))
        done = 0
        for boundary in range(int(first) * every_ms, int(last + 1) * every_ms, every_ms):
            before = np.searchsorted(stream.closed_ms[self._examples], boundary)
            while done + self._batch <= before:
                self._learn(self._examples[done : done + self._batch], teacher_NT)
                done += self._batch
            if done < warmup:
                continue
            start, end = np.searchsorted(
                stream.ts_ms, [boundary + delay_ms, boundary + delay_ms + every_ms]
            )
            rows = start + np.flatnonzero(self.mine[start:end])
            for logits, learner in zip(scores, self._learners, strict=True):
                if len(rows):
                    logits[rows] = learner.score(self._inputs.take(rows))
        return scores

    def _learn(self, examples: Array, teacher_NT: Array) -> None:
        rows = self._stream.example_row[examples]
        batch = Batch(
            inputs=self._inputs.take(rows),
            labels_BT=self._stream.labels_NT[rows][:, self.tasks],
            mask_BT=self._stream.example_mask_ET[examples][:, self.tasks],
            teacher_BT=teacher_NT[rows][:, self.tasks],
        )
        for learner in self._learners:
            learner.learn(batch)


def taught(stream: Stream, settings: Settings, seed: int, delay_ms: int = 0) -> Array:
    """The teacher's logits at impression time, shape [N, T], NaN before its first snapshot."""
    teacher = settings.teacher
    names = [t.name for t in settings.tasks]
    learning = seeded(teacher.learning, seed)
    learner = build_teacher(settings.encoding(teacher), teacher.network, learning, names)
    none = np.full(stream.labels_NT.shape, np.nan, np.float32)
    way = Learned(stream, settings, teacher, [learner])
    return way.run(teacher.snapshot_every_ms, delay_ms, teacher.warmup_examples, none)[0]


def shuffled(stream: Stream, settings: Settings, teacher_NT: Array) -> Array:
    """The control: each impression gets the prediction of the previous one of its domain."""
    partitions = settings.topics.impressions.partitions
    partition = shard_of(stream.impressions["impression_id"], partitions)
    _, domain = np.unique(stream.domain, return_inverse=True)
    order = np.argsort(domain * partitions + partition, kind="stable")
    result = np.empty_like(teacher_NT)
    result[order] = teacher_NT[np.roll(order, 1)]
    return result


def studied(
    stream: Stream,
    settings: Settings,
    student: Student,
    teacher_NT: Array,
    seed: int,
    delay_ms: int = 0,
) -> dict[str, Figures]:
    """What a student and its shadow achieve, by task."""
    learning = seeded(student.learning, seed)
    learners = [
        build_student(settings.encoding(student), student.network, learning, how, student.tasks)
        for how in (student.distillation, Distillation(mode="none"))
    ]
    way = Learned(stream, settings, student, learners)
    own, shadow = way.run(student.snapshot_every_ms, delay_ms, student.warmup_examples, teacher_NT)
    mine = np.flatnonzero(way.mine)
    rows = mine[len(mine) // 3 :]
    found = {}
    for column, task in enumerate(way.tasks):
        label = stream.labels_NT[rows, task]
        oracle = stream.oracle_NT[rows, task]
        found[settings.tasks[task].name] = Figures(
            student=entropy(own[rows, column], label),
            shadow=entropy(shadow[rows, column], label),
            teacher=entropy(teacher_NT[rows, task], label),
            oracle=entropy(np.log(oracle / (1 - oracle)), label),
        )
    return found


def seeded(learning: Learning, seed: int) -> Learning:
    """The same steps from other first weights."""
    return learning.model_copy(update={"seed": seed})


def entropy(logits: Array, label: Array) -> float:
    """Normalised entropy: mean log loss over that of the mean label; NaN if a logit is."""
    if np.isnan(logits).any():
        return float("nan")
    wide = logits.astype(np.float64)
    loss = np.logaddexp(0, wide).mean() - (wide * label).mean()
    rate = float(label.mean())
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))


def events(settings: Settings, kuairand: Path | None, seconds: int, seed: int) -> Stream:
    """The stream of a data set, or of a market of that seed."""
    if kuairand:
        return stream_of(settings, *tables(kuairand, settings))
    market = Market(settings, settings.market.seed + seed)
    return stream_of(settings, *market.slice(START_MS, START_MS + seconds * 1000))


def main(
    config: Annotated[Path, typer.Option(help="Configuration of the run.")],
    kuairand: Annotated[Path | None, typer.Option(help="Folder of KuaiRand-Pure.")] = None,
    seconds: Annotated[int, typer.Option(help="Event time of a market.")] = 180,
    seeds: Annotated[int, typer.Option(help="Runs, each with other first weights.")] = 3,
    delay_ms: Annotated[int, typer.Option(help="From a snapshot's cut to its use.")] = 0,
    shuffle: Annotated[bool, typer.Option(help="Control: permute the predictions.")] = False,
) -> None:
    """Print NE of student, shadow, teacher and oracle, and the gain, mean over seeds."""
    torch.set_num_threads(1)
    settings = load(config)
    found = defaultdict(list)
    console = Console()
    stream = events(settings, kuairand, seconds, 0)
    for seed in track(range(seeds), console=console, description="seeds"):
        if seed and not kuairand:
            stream = events(settings, None, seconds, seed)
        teacher_NT = taught(stream, settings, seed, delay_ms)
        if shuffle:
            teacher_NT = shuffled(stream, settings, teacher_NT)
        for student in settings.students:
            figures = studied(stream, settings, student, teacher_NT, seed, delay_ms)
            for task, figure in figures.items():
                found[student.name, task].append(figure)
    console.print(table_of(found), soft_wrap=True)


def table_of(found: dict[tuple[str, str], list[Figures]]) -> Table:
    """A row for each student and task."""
    columns = ("student", "task", "NE student", "shadow", "teacher", "oracle", "gain %", "by seed")
    table = Table(*columns)
    for (name, task), figures in found.items():
        means = [
            f"{np.mean([getattr(f, part) for f in figures]):.4f}"
            for part in ("student", "shadow", "teacher", "oracle")
        ]
        gains = [100 * f.gain for f in figures]
        each = " ".join(f"{g:+.2f}" for g in gains)
        table.add_row(name, task, *means, f"{np.mean(gains):+.2f}", each)
    return table


if __name__ == "__main__":
    typer.run(main)
