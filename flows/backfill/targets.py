"""Where the examples of a backfill go, and what stands there when they are complete."""

from __future__ import annotations

import os
import shutil
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from flows.backfill.parquet import write_parquet
from flows.backfill.plan import BackfillRefused, Plan
from flows.backfill.result import Result
from flows.backfill.sinks import BackfillSink, ExampleFiles, ExampleTopic
from flows.kafka.client import client_config, ensure
from flows.kafka.consumer import PartitionConsumer
from flows.run_folder import RunFolder, write_json
from flows.settings import Settings, SettingsError, Topic

MANIFEST = "_backfill.json"
"""In the folder of finished Parquet files; readers of data sets pass over its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """Who is told how far a backfill has come."""

    on_offsets: Callable[[int, int], None]
    """Of the log: offsets read, and all that are to be read."""
    on_rows: Callable[[int, int], None]
    """Of the files: rows written, and all that are to be written."""


class Target:
    """Where the examples go."""

    folder: Path
    """Of the plan and the state, until the backfill is finished."""
    anew: str
    """What to do instead of going on."""
    named: str
    """The option that names it."""
    spent: str = ""
    """What to say of an output that cannot be used again once the join has run."""

    @abstractmethod
    def settings(self, settings: Settings) -> Settings:
        """Those of the run with the outputs of the backfill."""

    @abstractmethod
    def refuse_finished(self) -> None:
        """Refuse what is there already.

        Raises:
            BackfillRefused: it is.
        """

    @abstractmethod
    def prepare(self, settings: Settings) -> None:
        """See, before the first attempt, that nothing is in the way.

        Raises:
            BackfillRefused: something is.
        """

    @abstractmethod
    def sink(self, settings: Settings, made: Plan) -> BackfillSink:
        """Where the join writes to."""

    @abstractmethod
    def finish(self, settings: Settings, sink: BackfillSink, result: Result, watch: Watch) -> None:
        """Complete the output, and say in it that it is."""


class TopicTarget(Target):
    """Another topic of examples, which a trainer can read to its end."""

    def __init__(self, run: RunFolder, name: str) -> None:
        """Fill a topic.

        Raises:
            SettingsError: Kafka takes no such name.
        """
        self.named, self._name = f"--topic {name!r}", name
        try:
            Topic(name=name)
        except ValidationError as error:
            raise SettingsError(f"{self.named}: {error.errors()[0]['msg']}") from error
        self.folder = run.root / "backfills" / name
        self.anew = f"remove {self.folder}, and begin again with another topic"
        self.spent = f"; topic {name!r} is written to by now, so name another topic, too"

    def settings(self, settings: Settings) -> Settings:
        """With another topic of examples."""
        if self._name in [topic.name for _, topic in settings.topics]:
            raise BackfillRefused(f"{self.named} is a topic of the run; name another")
        topic = Topic(name=self._name, partitions=settings.topics.examples.partitions)
        return with_examples(settings, topic)

    def refuse_finished(self) -> None:
        """Refuse a topic that was filled."""
        if (self.folder / MANIFEST).exists():
            raise BackfillRefused(
                f"the backfill to topic {self._name!r} is finished, "
                f"{self.folder / MANIFEST} says what it holds; name another topic"
            )

    def prepare(self, settings: Settings) -> None:
        """Create the topic, which must be empty."""
        topic = settings.topics.examples
        ensure(settings.kafka, [topic])
        for partition in range(topic.partitions):
            consumer = PartitionConsumer(client_config(settings.kafka), topic.name, partition, None)
            filled = consumer.position > 0 or consumer.lag() > 0
            consumer.close()
            if filled:
                raise BackfillRefused(
                    f"topic {topic.name!r} partition {partition} holds messages of another "
                    "writer; name a topic that is empty or does not exist"
                )

    def sink(self, settings: Settings, made: Plan) -> BackfillSink:
        """Writes messages of examples."""
        return ExampleTopic(settings, made)

    def finish(self, settings: Settings, sink: BackfillSink, result: Result, watch: Watch) -> None:
        """Mark the end of every shard."""
        assert isinstance(sink, ExampleTopic)
        sink.end()
        write_json(self.folder / MANIFEST, result.as_json())
        shutil.rmtree(self.folder / "state")


class ParquetTarget(Target):
    """A folder of Parquet files, which appears when they are complete."""

    def __init__(self, path: Path) -> None:
        """Make a folder.

        Raises:
            BackfillRefused: the path is that of the whole file system.
        """
        self._path = Path(os.path.abspath(path))
        self.named = f"--parquet {self._path}"
        if not self._path.name:
            raise BackfillRefused(f"{self.named} is no folder that can be made; name another")
        self.folder = self._path.with_name(f".{self._path.name}.backfill")
        self.anew = f"remove {self.folder} to begin again"

    def settings(self, settings: Settings) -> Settings:
        """One writer takes the examples of all shards."""
        return with_examples(settings, Topic(name=settings.topics.examples.name, partitions=1))

    def refuse_finished(self) -> None:
        """Refuse a folder that holds anything."""
        if (self._path / MANIFEST).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            raise BackfillRefused(
                f"the backfill to {self._path} is finished, {MANIFEST} in it says what it holds; "
                "name another folder, or remove this one"
            )
        if self._path.exists() and (not self._path.is_dir() or any(self._path.iterdir())):
            raise BackfillRefused(
                f"{self.named} exists, and is no folder that is empty; name another"
            )
        if self._path.is_mount():
            raise BackfillRefused(f"{self.named} is a mount point; name a folder in it")

    def prepare(self, settings: Settings) -> None:
        """Nothing: the folder is new."""

    def sink(self, settings: Settings, made: Plan) -> BackfillSink:
        """Writes staged files."""
        return ExampleFiles(settings, made, self.folder / "staged")

    def finish(self, settings: Settings, sink: BackfillSink, result: Result, watch: Watch) -> None:
        """Put the staged rows in order, and let the folder appear in one step."""
        draft, num_rows = self.folder / "dataset", result.examples
        shutil.rmtree(draft, ignore_errors=True)
        num_bytes = write_parquet(
            settings, self.folder / "staged", draft, lambda n: watch.on_rows(n, num_rows)
        )
        result.counts["bytes"] = num_bytes
        write_json(draft / MANIFEST, result.as_json())
        draft.rename(self._path)
        shutil.rmtree(self.folder)


def with_examples(settings: Settings, topic: Topic) -> Settings:
    """Settings of a backfill: event time alone decides, and examples go to `topic`."""
    return settings.model_copy(
        update={
            "teacher": settings.teacher.model_copy(update={"version": "as_of"}),
            "topics": settings.topics.model_copy(update={"examples": topic}),
        }
    )
