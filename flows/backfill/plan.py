"""What a backfill reads: a span of offsets of each input partition, fixed when it begins.

Event time chooses the examples; offsets only bound the reading. An event is not written before it
happens, so whatever belongs to the time range stands behind the first record that the broker
received since then, less `CLOCK_SKEW_MS` for clocks that disagree. The events just before that
place are looked at; if they are of the range after all (a log written ahead of time), everything
that is retained is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import OffsetSpec

from flows.events.decoding import EventDecoder
from flows.events.reader import is_end, rules_of
from flows.kafka.client import WAIT_S, admin_client, client_config, cluster, ready
from flows.letters.log import messages_between
from flows.records import BEGIN_MS, END_MS, decode
from flows.settings import Settings, SettingsError, Topic
from flows.wording import moment

CLOCK_SKEW_MS = 60_000
"""How far the clocks of producers and brokers may disagree."""
LOOKED_AT = 200
"""Records before a start that are checked to be older than the range."""
Kind = Literal["impressions", "labels", "fm_predictions"]
INPUTS: tuple[Kind, ...] = ("impressions", "labels", "fm_predictions")


class BackfillRefused(RuntimeError):
    """A backfill cannot be what was asked for; the message says why, and what would do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Offsets of one partition that are read."""

    start: int
    end: int
    """Of the first record that is not read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a user asks for."""

    from_ms: int = BEGIN_MS
    """Examples of impressions shown then or later."""
    to_ms: int = END_MS
    """Examples of impressions shown before."""
    starts: Mapping[tuple[str, int], int]
    """Offsets to begin with, by topic and partition."""
    ends: Mapping[tuple[str, int], int]
    """Offsets to end before, by topic and partition."""
    leave_out_quiet: bool = False
    """A partition that is read to the end of its span holds no window back."""

    def __post_init__(self) -> None:
        if self.from_ms >= self.to_ms:
            raise BackfillRefused(
                f"--from {moment(self.from_ms)} must be before --to {moment(self.to_ms)}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a backfill reads, the same in every attempt."""

    from_ms: int
    to_ms: int
    spans: dict[Kind, list[Span]]
    """By input, a span a partition."""
    leave_out_quiet: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        spans = {kind: [[s.start, s.end] for s in spans] for kind, spans in self.spans.items()}
        return {
            **limits(self.from_ms, self.to_ms),
            "leave_out_quiet": self.leave_out_quiet,
            "spans": spans,
        }

    @staticmethod
    def of_json(raw: dict[str, Any]) -> Plan:
        """The plan that `as_json` wrote."""
        spans = {k: [Span(start=a, end=b) for a, b in raw["spans"][k]] for k in INPUTS}
        from_ms, to_ms = raw["from_ms"], raw["to_ms"]
        return Plan(
            from_ms=BEGIN_MS if from_ms is None else from_ms,
            to_ms=END_MS if to_ms is None else to_ms,
            leave_out_quiet=raw["leave_out_quiet"],
            spans=spans,
        )

    @property
    def num_offsets(self) -> int:
        """Offsets to read, of all partitions."""
        return sum(s.end - s.start for spans in self.spans.values() for s in spans)


def limits(from_ms: int, to_ms: int) -> dict[str, int | None]:
    """A range in plain data; null where it has no limit."""
    return {
        "from_ms": None if from_ms == BEGIN_MS else from_ms,
        "to_ms": None if to_ms == END_MS else to_ms,
    }


def plan(settings: Settings, request: Request) -> Plan:
    """Resolve a request against what the topics hold now.

    Raises:
        BrokerUnreachable: no broker answers.
        SettingsError: a topic is missing, or has another number of partitions.
        BackfillRefused: records that are needed are deleted, or an offset is not held.
    """
    log = Log(settings)
    check_named(settings, request)
    needed_ms = request.from_ms
    if needed_ms > BEGIN_MS:
        needed_ms -= settings.das.repeat_horizon_ms
    spans: dict[Kind, list[Span]] = {}
    for kind in INPUTS:
        topic = topic_of(settings, kind)
        spans[kind] = [
            log.span(kind, topic, p, request, needed_ms) for p in range(topic.partitions)
        ]
    log.refuse_what_is_deleted(request)
    if not request.leave_out_quiet:
        refuse_what_never_closes(settings, spans)
    return Plan(
        from_ms=request.from_ms,
        to_ms=request.to_ms,
        spans=spans,
        leave_out_quiet=request.leave_out_quiet,
    )


def refuse_what_never_closes(settings: Settings, spans: dict[Kind, list[Span]]) -> None:
    """Refuse if a partition would hold back every window.

    Raises:
        BackfillRefused: nothing is to be read of one.
    """
    for kind in INPUTS:
        for partition, span in enumerate(spans[kind]):
            if span.start == span.end:
                name = topic_of(settings, kind).name
                raise BackfillRefused(
                    f"topic {name!r} partition {partition} holds no record of the range, so no "
                    "window could close: events might still come; --leave-out-quiet says that "
                    "none will"
                )


class Log:
    """The input topics as the broker holds them now."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._config = client_config(settings.kafka)
        self._admin = admin_client({**self._config, "log_level": 0})  # what fails is raised
        found = cluster(self._admin, self._config["bootstrap.servers"], WAIT_S)
        for kind in INPUTS:
            topic = topic_of(settings, kind)
            if not ready(topic, found):
                raise SettingsError(f"topics.{kind}.name = {topic.name!r}: there is no such topic")
        self._deleted: list[tuple[str, int, int]] = []
        self._emptied: list[tuple[str, int, int]] = []

    def span(
        self, kind: Kind, topic: Topic, partition: int, request: Request, needed_ms: int
    ) -> Span:
        """What to read of a partition, so that nothing of `needed_ms` or later is missed."""
        key = (topic.name, partition)
        low = self._offset(key, OffsetSpec.earliest())
        high = self._offset(key, OffsetSpec.latest())
        start = request.starts.get(key)
        if start is None:
            start = low if needed_ms == BEGIN_MS else self._start(kind, key, needed_ms, low, high)
            if low == high > 0:
                self._emptied.append((*key, high))
            elif start == low > 0:
                self._deleted.append((*key, low))
        end = request.ends.get(key, high)
        if not low <= start <= end <= high:
            raise BackfillRefused(
                f"topic {topic.name!r} partition {partition}: offsets {start} to {end} are not all "
                f"there: it holds offsets {low} to {high}"
            )
        return Span(start=start, end=end)

    def refuse_what_is_deleted(self, request: Request) -> None:
        """Refuse if records may be missing that the range needs.

        Raises:
            BackfillRefused: retention has deleted them.
        """
        if self._emptied:
            raise BackfillRefused(
                "\n".join(
                    f"topic {topic!r} partition {p}: all offsets below {high} are deleted; "
                    f"--start {topic}:{p}:{high} says that nothing of the range is missing"
                    for topic, p, high in self._emptied
                )
            )
        if not self._deleted:
            return
        firsts = [self._broker_ms(topic, p, low) for topic, p, low in self._deleted]
        earliest = moment(max(firsts) + CLOCK_SKEW_MS + self._settings.das.repeat_horizon_ms + 1000)
        lines = [
            f"topic {topic!r} partition {p}: offsets 0 to {low - 1} are deleted, what is left "
            f"begins at {moment(first_ms)}"
            for (topic, p, low), first_ms in zip(self._deleted, firsts, strict=True)
        ]
        wanted = "its beginning" if request.from_ms == BEGIN_MS else moment(request.from_ms)
        raise BackfillRefused(
            "\n".join(lines) + f"\nexamples from {wanted} on would lack events; "
            f"--from {earliest.replace(' ', 'T')} or later is complete, "
            "and --start begins at offsets that you answer for"
        )

    def _start(self, kind: Kind, key: tuple[str, int], needed_ms: int, low: int, high: int) -> int:
        since = OffsetSpec.for_timestamp(max(0, needed_ms - CLOCK_SKEW_MS))
        start = self._offset(key, since)
        start = high if start < 0 else start
        before = max(low, start - LOOKED_AT)
        newest_ms = self._newest_ms(kind, key, before, start)
        return low if newest_ms >= needed_ms else start

    def _newest_ms(self, kind: Kind, key: tuple[str, int], start: int, end: int) -> int:
        """Newest event time among some records; BEGIN_MS if they are none."""
        if start == end:
            return BEGIN_MS
        messages = list(messages_between(self._config, *key, start, end))
        if kind == "fm_predictions":
            tables = [decode(m.value() or b"")[0] for m in messages]
        else:
            topic, rules = getattr(self._settings.topics, kind), rules_of(self._settings, kind)
            registry = self._settings.schema_registry
            decoder = EventDecoder(rules.schema, topic.format, rules.faults, registry)
            tables = [decoder.decode([m for m in messages if not is_end(m)]).table]
        times = [int(t["ts_ms"].to_numpy().max()) for t in tables if t.num_rows]
        return max(times, default=BEGIN_MS)

    def _offset(self, key: tuple[str, int], spec: OffsetSpec) -> int:
        place = TopicPartition(*key)
        found = self._admin.list_offsets(
            {place: spec},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=WAIT_S,
        )
        return int(found[place].result().offset)

    def _broker_ms(self, topic: str, partition: int, offset: int) -> int:
        """When the broker received a record, by its timestamp."""
        first = next(messages_between(self._config, topic, partition, offset, offset + 1))
        return int(first.timestamp()[1])


def topic_of(settings: Settings, kind: Kind) -> Topic:
    """The topic of an input."""
    topic: Topic = getattr(settings.topics, kind)
    return topic


def check_named(settings: Settings, request: Request) -> None:
    """See that every offset is given for a partition that is read.

    Raises:
        BackfillRefused: one is not.
    """
    known = {
        (topic_of(settings, kind).name, p)
        for kind in INPUTS
        for p in range(topic_of(settings, kind).partitions)
    }
    for option, given in (("--start", request.starts), ("--end", request.ends)):
        for topic, partition in given:
            if (topic, partition) not in known:
                names = ", ".join(topic_of(settings, kind).name for kind in INPUTS)
                raise BackfillRefused(
                    f"{option} {topic}:{partition}:{given[topic, partition]}: no input partition; "
                    f"the inputs are {names}"
                )


def parsed_offsets(option: str, texts: Iterable[str]) -> dict[tuple[str, int], int]:
    """Offsets as they are typed, `TOPIC:PARTITION:OFFSET`, by topic and partition.

    Raises:
        ValueError: one is not of this form.
    """
    found = {}
    for text in texts:
        topic, _, place = text.partition(":")
        partition, _, offset = place.partition(":")
        if not (topic and partition.isdecimal() and offset.isdecimal()):
            raise ValueError(f"{option} is TOPIC:PARTITION:OFFSET, got {text!r}")
        found[topic, int(partition)] = int(offset)
    return found
