"""The one configuration file: TOML, read once at the entry point into values that check themselves.

Environment variables override addresses and carry secrets:

    EXFM_CONFIG      path of the TOML file, for `python -m bytewax.run flows.das:flow`
    EXFM_RUN         the run's folder
    EXFM_BOOTSTRAP   `bootstrap.servers`, in place of `kafka.bootstrap`
    EXFM_SERVING     `host:port` to serve on, in place of `serving.host` and `serving.port`
    EXFM_SCHEMA_REGISTRY                in place of `schema_registry.url`
    EXFM_SCHEMA_REGISTRY_LOGIN          `user:password`
    EXFM_SCHEMA_REGISTRY_KEY_PASSWORD   of the client certificate's key
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from flows.das_settings import Das
from flows.durations import Seconds, SecondsOrZero
from flows.event_settings import Market, Noise
from flows.kafka_settings import Kafka
from flows.registry_settings import SchemaRegistry
from flows.topic_names import TopicName
from models.schema import Distillation, Encoding, Feature, Learning, Name, Network, Value, named

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Format = Literal["json", "arrow", "avro", "protobuf"]
RESERVED = frozenset({"impression_id", "domain", "ts_ms", "partition", "offset", "index"})


class SettingsError(ValueError):
    """The configuration breaks a rule; the message names file, key, value and rule."""


class Topic(Value):
    """One Kafka topic."""

    name: TopicName
    partitions: Annotated[int, Field(ge=1, le=1000)] = 2


class EventTopic(Topic):
    """A topic that applications write to."""

    format: Format = "json"
    """arrow: an IPC stream of many events a message; others: one event a message. avro, protobuf:
    of a schema that the Schema Registry knows."""
    lateness_s: SecondsOrZero = 0.0
    """An event older than its partition's running maximum minus this is late."""
    max_ahead_s: SecondsOrZero = 60.0
    """An event may be so much newer than its message, by the message's timestamp: clocks of writers
    differ. One of next year would make all that follows late."""

    @property
    def lateness_ms(self) -> int:
        """`lateness_s` in milliseconds."""
        return round(self.lateness_s * 1000)

    @property
    def max_ahead_ms(self) -> int:
        """`max_ahead_s` in milliseconds."""
        return round(self.max_ahead_s * 1000)


class Topics(Value):
    """All topics of a run."""

    impressions: EventTopic = EventTopic(name="impressions")
    labels: EventTopic = EventTopic(name="labels")
    fm_predictions: Topic = Topic(name="fm_predictions")
    examples: Topic = Topic(name="examples")
    snapshots: Topic = Topic(name="snapshots", partitions=1)
    dead_letters: Topic = Topic(name="dead_letters", partitions=1)


class Task(Value):
    """A label to predict."""

    name: Name
    window_s: Seconds
    """The label is 1 if a positive arrives within this long after the impression."""
    oracle: Name | None = None
    """Impression column with the true probability (simulated markets); no model sees it."""
    given: Name | None = None
    """A task of a shorter window that this one is conditional on, as a conversion on a click. An
    impression without a positive of it is a known negative of this task, and its example leaves
    when the window of `given` closes; the others wait for this task's own window."""
    early: bool = False
    """A positive leaves when it is known, as a row of its own, not when the window closes. Of a
    conditional task: when both labels are known."""
    late_labels: Literal["drop", "correct"] = "drop"
    """correct: a label behind the end of the wait (the window, or that of `given` for a known
    negative) that contradicts what was emitted last leads to a correction row."""
    repeated_labels: Literal["drop", "correct"] = "drop"
    """Of several labels within the window, drop: the first counts. correct: the newest counts, and
    if it contradicts a positive that left early, it leads to a correction row."""

    @property
    def window_ms(self) -> int:
        """`window_s` in milliseconds."""
        return round(self.window_s * 1000)


class Teacher(Value):
    """The foundation model: trains on all domains and tasks."""

    version: Literal["newest", "as_of"] = "newest"
    """newest: whatever snapshot is there. as_of: the one that event time prescribes (replays)."""
    lag_s: SecondsOrZero = 0.0
    """as_of: an impression at t is scored by the last snapshot of t - lag_s."""
    snapshot_every_s: Seconds = 60.0
    features: tuple[Name, ...] = ()
    """Empty: all declared features."""
    network: Network = Network(dim=16, hidden=(128, 64), table_rows=2**18)
    learning: Learning = Learning(batch=256)
    warmup_examples: Annotated[int, Field(ge=0)] = 2000
    """No snapshot before this many labels of every task were learned."""
    shuffle_within_domain: bool = False
    """Control experiment: predictions are permuted within domain before they are written."""

    @property
    def lag_ms(self) -> int:
        """`lag_s` in milliseconds."""
        return round(self.lag_s * 1000)

    @property
    def snapshot_every_ms(self) -> int:
        """`snapshot_every_s` in milliseconds."""
        return round(self.snapshot_every_s * 1000)


class Student(Value):
    """A vertical model: small, served, trained on its own domains."""

    name: Name
    domains: tuple[Name, ...] = ()
    """Empty: all domains."""
    stage: Literal["retrieval", "early", "late"] = "late"
    tasks: tuple[Name, ...]
    features: tuple[Name, ...] = ()
    """Empty: all declared features."""
    network: Network = Network()
    learning: Learning = Learning()
    distillation: Distillation = Distillation()
    shadow: bool = True
    """Train a twin in mode `none` on the same batches, so that the gain is measured."""
    snapshot_every_s: Seconds = 60.0
    warmup_examples: Annotated[int, Field(ge=0)] = 500
    """No snapshot before this many labels of every task were learned."""

    @property
    def snapshot_every_ms(self) -> int:
        """`snapshot_every_s` in milliseconds."""
        return round(self.snapshot_every_s * 1000)


class Gate(Value):
    """When a snapshot is refused."""

    max_parity: Annotated[float, Field(gt=0)] = 1e-4
    """Largest difference of a logit, torch against ONNX Runtime."""
    max_ne_increase: Annotated[float, Field(ge=0)] = 0.2
    """Relative increase of the recent NE over the best so far; beyond it the gate refuses."""


class Store(Value):
    """Snapshot store."""

    path: str = ""
    """Empty: `store/` in the run's folder."""
    keep: Annotated[int, Field(ge=2)] = 6
    """Versions kept of a model; older ones are retired."""
    gate: Gate = Gate()


class Serving(Value):
    """The scoring server."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """0: a free port, written to the run's folder."""
    poll_s: Seconds = 0.2
    """How often the store is asked for a newer version."""
    max_rows: Annotated[int, Field(ge=1)] = 10_000
    """Candidates a request may hold."""


class Settings(Value):
    """Everything that a run is told."""

    domains: Annotated[tuple[Name, ...], Field(min_length=1)]
    features: Annotated[tuple[Feature, ...], Field(min_length=1)]
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    students: Annotated[tuple[Student, ...], Field(min_length=1)]
    teacher: Teacher = Teacher()
    kafka: Kafka = Kafka()
    schema_registry: SchemaRegistry = SchemaRegistry()
    topics: Topics = Topics()
    das: Das = Das()
    store: Store = Store()
    serving: Serving = Serving()
    market: Market = Market()
    noise: Noise = Noise()

    @model_validator(mode="after")
    def _names_are_declared(self) -> Settings:
        unique("features", [f.name for f in self.features])
        unique("tasks", [t.name for t in self.tasks])
        unique("students", [s.name for s in self.students])
        unique("domains", list(self.domains))
        unique("topics", [t.name for _, t in self.topics])
        for feature in self.features:
            if feature.name in RESERVED:
                raise ValueError(f"features: {feature.name!r} is a reserved column")
        categorical = [f.name for f in self.features if f.kind == "categorical"]
        for student in self.students:
            where = f"students.{student.name}"
            declared(f"{where}.domains", student.domains, self.domains)
            declared(f"{where}.tasks", student.tasks, [t.name for t in self.tasks])
            declared(f"{where}.features", student.features, [f.name for f in self.features])
            seen = [n for n in categorical if not student.features or n in student.features]
            for cross in student.network.crosses:
                declared(f"{where}.network.crosses", cross, [*seen, "domain"])
        declared("market.domains", tuple(d.name for d in self.market.domains), self.domains)
        declared("teacher.features", self.teacher.features, [f.name for f in self.features])
        for cross in self.teacher.network.crosses:
            declared("teacher.network.crosses", cross, [*categorical, "domain"])
        return self

    @model_validator(mode="after")
    def _times_agree(self) -> Settings:
        for where, every_ms in (
            ("teacher", self.teacher.snapshot_every_ms),
            *((f"students.{s.name}", s.snapshot_every_ms) for s in self.students),
        ):
            if every_ms % self.das.bucket_ms:
                raise ValueError(
                    f"{where}.snapshot_every_s = {every_ms / 1000:g} must be a multiple of "
                    f"das.bucket_s = {self.das.bucket_s:g}"
                )
        if self.as_of and self.teacher.lag_ms < self.topics.impressions.lateness_ms:
            raise ValueError(
                f"teacher.lag_s = {self.teacher.lag_s:g} must be at least "
                f"topics.impressions.lateness_s = {self.topics.impressions.lateness_s:g}"
            )
        return self

    @model_validator(mode="after")
    def _replays_lose_nothing(self) -> Settings:
        if self.as_of and self.kafka.lost_offsets == "skip":
            raise ValueError(
                "kafka.lost_offsets = 'skip' must be 'stop' where teacher.version = 'as_of': the "
                "same log must give the same examples, however late it is read"
            )
        return self

    @model_validator(mode="after")
    def _conditions_agree(self) -> Settings:
        by_name = {t.name: t for t in self.tasks}
        for task in self.tasks:
            if task.given is None:
                continue
            declared(f"tasks.{task.name}.given", (task.given,), list(by_name))
            key, condition = f"tasks.{task.name}.given = {task.given!r}", by_name[task.given]
            if condition.window_ms >= task.window_ms:
                raise ValueError(
                    f"{key} must have a shorter window than {task.name!r}, got window_s = "
                    f"{condition.window_s:g} and {task.window_s:g}"
                )
            if condition.given is not None:
                raise ValueError(
                    f"{key} must not be conditional itself, got tasks.{task.given}.given = "
                    f"{condition.given!r}"
                )
        return self

    @model_validator(mode="after")
    def _registry_is_known(self) -> Settings:
        for name in ("impressions", "labels"):
            form = getattr(self.topics, name).format
            if form in ("avro", "protobuf") and not self.schema_registry.url:
                raise ValueError(f"topics.{name}.format = {form!r} needs schema_registry.url")
        return self

    @property
    def as_of(self) -> bool:
        """Event time alone decides: no wall-clock way out of waiting is taken."""
        return self.teacher.version == "as_of"

    @property
    def oracles(self) -> tuple[str, ...]:
        """Columns with true probabilities, in task order, each once."""
        return tuple(dict.fromkeys(t.oracle for t in self.tasks if t.oracle))

    @property
    def windows_ms(self) -> tuple[int, ...]:
        """Distinct label windows, ascending: tasks of one window share an example row."""
        return tuple(sorted({t.window_ms for t in self.tasks}))

    def student(self, name: str) -> Student:
        """The student of that name.

        Raises:
            KeyError: there is none.
        """
        found = {s.name: s for s in self.students}
        if name not in found:
            raise KeyError(f"no student {name!r}; configured: {', '.join(found)}")
        return found[name]

    def encoding(self, owner: Teacher | Student) -> Encoding:
        """How `owner` sees an impression; `domain` is always its first categorical feature."""
        chosen = named(self.features, owner.features) if owner.features else self.features
        domain = Feature(name="domain", kind="categorical")
        network = owner.network
        return Encoding(
            features=(domain, *chosen), crosses=network.crosses, table_rows=network.table_rows
        )


def unique(key: str, names: list[str]) -> None:
    """Raise ValueError unless all names differ."""
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ValueError(f"{key}: each name once, repeated: {', '.join(twice)}")


def declared(key: str, names: tuple[str, ...], known: Any) -> None:
    """Raise ValueError unless every name is among `known`."""
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: {name!r} is not declared; declared: {', '.join(known)}")


def load(path: Path, environ: dict[str, str] | None = None) -> Settings:
    """Settings of a TOML file.

    Args:
        path: the file.
        environ: environment whose EXFM_BOOTSTRAP, EXFM_SERVING and EXFM_SCHEMA_REGISTRY override
            the file's addresses.

    Raises:
        SettingsError: the file is missing, not TOML, or breaks a rule.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not TOML: {error}") from error
    try:
        return Settings.model_validate(with_addresses(raw, environ or {}))
    except ValidationError as error:
        raise SettingsError("\n".join(explain(path, error))) from error


def with_addresses(raw: dict[str, Any], environ: dict[str, str]) -> dict[str, Any]:
    """The file's tables with the addresses that the environment gives; what is no table stays."""
    host, _, port = environ.get("EXFM_SERVING", "").rpartition(":")
    addresses: dict[str, dict[str, str]] = {
        "kafka": {"bootstrap": environ.get("EXFM_BOOTSTRAP", "")},
        "serving": {"host": host, "port": port},
        "schema_registry": {"url": environ.get("EXFM_SCHEMA_REGISTRY", "")},
    }
    for table, values in addresses.items():
        given = {key: value for key, value in values.items() if value}
        own = raw.get(table, {})
        if given and isinstance(own, dict):
            raw = {**raw, table: {**own, **given}}
    return raw


def explain(path: Path, error: ValidationError) -> list[str]:
    """A line for each broken rule: file, key, value, rule."""
    lines = []
    items = error.errors(include_url=False)
    for item in items:
        if item["type"] == "too_short" and any(inside(item["loc"], i["loc"]) for i in items):
            continue  # an element that breaks a rule of its own is not counted
        key = ".".join(str(part) for part in item["loc"])
        rule = item["msg"].removeprefix("Value error, ")
        value = "" if item["type"] in ("missing", "value_error") else f" = {item['input']!r}"
        rule = "unknown key" if item["type"] == "extra_forbidden" else rule
        lines.append(f"{path}: {key}{value}: {rule}" if key else f"{path}: {rule}")
    return lines


def inside(outer: tuple[int | str, ...], inner: tuple[int | str, ...]) -> bool:
    """Whether `inner` is the place of something within `outer`."""
    return len(inner) > len(outer) and inner[: len(outer)] == outer
