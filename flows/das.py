"""DAS, the data augmentation service: impressions + labels + predictions -> training examples.

    export EXFM_CONFIG=config.toml EXFM_RUN=runs/a
    python -m bytewax.run flows.das:flow -r runs/a/state/das/recovery -s 5 -b 0

A thin shell: sources read and split (flows/join/sources.py), each shard joins
(flows/join/shard.py), the sink writes to `examples`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import Source
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import Sink

from flows.environment import described
from flows.events.dead_letters import DeadLetters
from flows.join.bytewax_run import check_start
from flows.join.emitted import Recall, Search
from flows.join.example_rows import Message
from flows.join.past_transactions import end_past_transactions
from flows.join.read_ahead import ReadAhead
from flows.join.recovery import speaking
from flows.join.routing import insist_on_shards, shard_key, shard_of_key
from flows.join.seal import Sealed, opened, sealed
from flows.join.shard import Shard
from flows.join.sources import EventSource, Item, PredictionSource
from flows.join.state import claim, recovery_folder, shards_folder
from flows.join.watermarks import PatientWatermarks, Watermarks, sources
from flows.join.written_examples import ExamplesHidden, recall
from flows.kafka.client import producer_config
from flows.kafka.producer import BatchProducer
from flows.kafka.sink import TopicSink
from flows.panics import remembering, telling_whose_fault
from flows.records import END_MS, floor_ms
from flows.run.process import announced, names
from flows.run.under_bytewax import until_the_end
from flows.run_folder import RunFolder
from flows.runner import Placement, create_recovery_store, prepared, request_stop, run_flow
from flows.settings import Settings
from monitoring.metrics import DAS_RECOVERY

TICK = timedelta(milliseconds=200)
"""How often a shard looks at the wall clock."""
SOON = timedelta(milliseconds=10)
"""How often one looks for what was written before it started, in turn with other work."""
MAX_SEARCH_S = 60.0
"""How long the end of the inputs waits for that."""


class ShardLogic(StatefulBatchLogic[tuple[Any, ...], Message, Sealed]):
    """A shard in a Bytewax flow; which one, its first item or its saved state says."""

    @remembering
    def __init__(
        self,
        settings: Settings,
        folder: Path,
        ahead: ReadAhead,
        recall: Recall | None,
        kept: Sealed | None,
    ) -> None:
        self._settings, self._folder, self._ahead, self._recall = settings, folder, ahead, recall
        self._end_ms = floor_ms(END_MS, settings.das.bucket_ms)
        self._core: Shard | None = None
        self._search: Search | None = None
        self._stopped = False
        if kept is not None:
            state = opened(kept)
            self._core = self._shard(state["shard"])
            with DAS_RECOVERY.labels(str(self._core.index)).time():
                self._core.restore(state)
            self._look_back(self._core)

    @remembering
    def on_batch(self, values: list[tuple[Any, ...]]) -> tuple[list[Message], bool]:
        """Take all that has arrived, then close what can be closed."""
        if self._core is None:
            self._core = self._shard(values[0][1])
            self._core.clear()
            self._look_back(self._core)
        for what, _, *rest in values:
            if what == "rows":
                self._core.take_rows(*rest)
            elif what == "watermark":
                self._core.take_watermark(*rest)
            elif what == "stop":
                self._stop(self._core)
            elif what != "wake":
                self._core.take_standing(what, *rest)
        return self.on_notify()

    @remembering
    def on_notify(self) -> tuple[list[Message], bool]:
        """Close what can be closed by now."""
        assert self._core is not None
        if not self._has_looked_back(self._core):
            return [], StatefulBatchLogic.RETAIN
        messages = self._core.advance(time.monotonic())
        self._ahead.closed(self._core.index, self._core.done_ms)
        return messages, StatefulBatchLogic.RETAIN

    @remembering
    def on_eof(self) -> tuple[list[Message], bool]:
        """Close what only waited for the search; nothing comes behind it.

        Behind a stop nothing closes, and the next start searches again.

        Raises:
            ExamplesHidden: it has found nothing within `MAX_SEARCH_S`.
        """
        if self._core is None or self._search is None or self._stopped:
            return [], StatefulBatchLogic.RETAIN
        deadline = time.monotonic() + MAX_SEARCH_S
        while not self._has_looked_back(self._core):
            if time.monotonic() > deadline:
                raise ExamplesHidden(self._settings, self._core.index)
        return self.on_notify()

    def notify_at(self) -> datetime | None:
        """The wall clock may end a wait, live."""
        if self._search is not None:
            return datetime.now(timezone.utc) + SOON
        if self._core is None or self._core.done_ms >= self._end_ms:
            return None
        return datetime.now(timezone.utc) + TICK

    @remembering
    def snapshot(self) -> Sealed:
        """Plain data; the rows stand in files."""
        assert self._core is not None
        return sealed(self._core.save())

    def _stop(self, core: Shard) -> None:
        """Close nothing more, and end the inputs of this process too.

        What one process leaves unread, the others must not close without.
        """
        core.halt()
        self._stopped = True
        request_stop()

    def _look_back(self, core: Shard) -> None:
        """What was written must be there; live, nothing closes before it is read back."""
        if self._recall is not None:
            self._search = self._recall(core.index, core.total)

    def _has_looked_back(self, core: Shard) -> bool:
        written = None if self._search is None else self._search()
        if written is not None:
            core.recall(written)
            self._search = None
        return self._search is None

    def _shard(self, index: int) -> Shard:
        topics = self._settings.topics
        names = sources(topics.impressions.partitions, topics.labels.partitions)
        watermarks = (
            Watermarks(names)
            if self._settings.as_of
            else PatientWatermarks(names, self._settings.das.teacher_grace_s)
        )
        return Shard(index, self._settings, self._folder, watermarks)


def build(
    settings: Settings,
    state: Path,
    inputs: Sequence[Source[Item]],
    sink: Sink[Any],
    ahead: ReadAhead,
    recall: Recall | None = None,
) -> Dataflow:
    """The flow.

    Args:
        settings: of the run.
        state: folder of the segments.
        inputs: of impressions, labels and predictions, see flows/join/sources.py.
        sink: takes (str(partition), (key, value, rows)).
        ahead: shared with the inputs.
        recall: finds what shards have written before; where the log alone decides, None will do.
    """
    partitions = settings.topics.examples.partitions

    def logic(kept: Sealed | None) -> ShardLogic:
        return ShardLogic(settings, shards_folder(state), ahead, recall, kept)

    def routed(item: Item) -> Item:
        shard, what = item
        return shard_key(int(shard)), what

    def addressed(item: tuple[str, Message]) -> tuple[str, tuple[bytes, bytes, int]]:
        key, (value, rows) = item
        shard = shard_of_key(key)
        return str(shard % partitions), (b"%d" % shard, value, rows)

    flow = Dataflow("das")
    arrived = [op.input(f"in_{i}", flow, source) for i, source in enumerate(inputs)]
    merged = op.merge("merge", *arrived)  # ("shard", (what, shard, ...))
    dealt = op.map("route", merged, routed)  # ("key of the shard", the same)
    joined = op.stateful_batch("join", dealt, logic)  # ("key of the shard", (message, rows))
    outgoing = op.map("address", joined, addressed)  # ("partition", (key, message, rows))
    op.output("examples", outgoing, sink)
    return flow


def kafka_flow(settings: Settings, state: Path) -> Dataflow:
    """The flow over the topics of `settings`.

    Raises:
        SettingsError: the state was made for another configuration.
        BrokerUnreachable: no broker answers.
        DeliveryError: the same, where transactions are to be ended.
    """
    claim(state, settings)
    end_past_transactions(state, settings)
    producer = BatchProducer(producer_config(settings.kafka))
    letters = DeadLetters(producer, settings.topics.dead_letters.name)
    ahead = ReadAhead(settings)
    inputs: list[Source[Item]] = [
        EventSource(settings, "impressions", ahead, letters),
        EventSource(settings, "labels", ahead, letters),
        PredictionSource(settings, ahead),
    ]
    transactional = settings.das.sink == "transactional"
    sink = TopicSink(settings, settings.topics.examples, transactional=transactional)
    return build(settings, state, inputs, sink, ahead, recall(settings))


def run(settings: Settings, folder: RunFolder, placement: Placement) -> None:
    """Run until the log has ended or a stop is requested.

    Raises:
        SettingsError: a worker would have no shard, or the state is of another configuration.
        BrokerUnreachable: no broker answers.
    """
    insist_on_shards(settings.das.shards, placement.total_workers)
    state = folder.state / "das"
    recovery = recovery_folder(state)
    flow = kafka_flow(settings, state)
    with speaking(recovery):
        run_flow(flow, placement, recovery=recovery, epoch_s=settings.das.recovery_every_s)


def flow() -> Dataflow:
    """The flow that EXFM_CONFIG and EXFM_RUN describe, for `python -m bytewax.run`.

    The process that asks for it is the join of that run until it ends.
    """
    inside = until_the_end()
    settings, folder = described()
    state = folder.state / "das"
    recovery = recovery_folder(state)
    placement = check_start(state, settings)
    inside.enter_context(announced(folder, *names("das", placement)))
    inside.enter_context(speaking(recovery))
    inside.enter_context(prepared(placement))
    inside.enter_context(telling_whose_fault())
    found = kafka_flow(settings, state)
    create_recovery_store(recovery)
    return found
