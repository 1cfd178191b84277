"""Reads the metrics of all processes of a run, once a second, into a time series.

Counters of a process that died are kept beside those of its successor, so totals never fall;
gauges are those of the process that runs. A process that ends leaves its last metrics in a file.
"""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

logger = logging.getLogger(__name__)

PREFIX = "exfm_"
TIMEOUT_S = 2.0
CUMULATIVE = ("_total", "_count", "_sum", "_bucket")
LAST_WORDS = ".prom"
"""Suffix of the file that holds a process's metrics at its end."""

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]
Values = Mapping[Key, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """All metrics at one moment; counters summed over dead and living processes."""

    at_s: float
    """Wall clock."""
    values: Mapping[str, Values]
    """By process."""

    def each(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Labels and value of every series of a metric, in every process."""
        for values in self.values.values():
            for (found, pairs), value in values.items():
                if found == name:
                    have = dict(pairs)
                    if all(have.get(key) == wanted for key, wanted in labels.items()):
                        yield have, value

    def total(self, name: str, **labels: str) -> float:
        """Sum over all series with these labels; 0 if there is none."""
        return sum(value for _, value in self.each(name, **labels))

    def largest(self, name: str, **labels: str) -> float | None:
        """Largest value among the series with these labels."""
        return max((value for _, value in self.each(name, **labels)), default=None)

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Sum for each value of one label."""
        sums: dict[str, float] = {}
        for have, value in self.each(name, **labels):
            sums[have[label]] = sums.get(have[label], 0.0) + value
        return sums


class Scraper:
    """Samples the processes that announce themselves in a folder; a context manager."""

    def __init__(self, processes: Path, *, every_s: float = 1.0, keep: int = 3600) -> None:
        """Nothing is read yet.

        Args:
            processes: folder of `<process>.json`.
            every_s: interval.
            keep: samples kept; the oldest go first.
        """
        self._processes = processes
        self._every_s = every_s
        self._known: dict[str, dict[int, Values]] = {}
        self._samples: deque[Sample] = deque(maxlen=keep)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scraper", daemon=True)

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def samples(self) -> list[Sample]:
        """The series so far, oldest first."""
        return list(self._samples)

    @property
    def newest(self) -> Sample:
        """The last sample; an empty one before the first."""
        return self._samples[-1] if self._samples else Sample(at_s=time.time(), values={})

    def rate(self, name: str, over_s: float = 5.0, **labels: str) -> float:
        """Increase a second of a counter over the last seconds."""
        return rate(self.samples, name, over_s, **labels)

    def scrape(self) -> Sample:
        """Read all processes now, and add a sample."""
        for path in sorted(self._processes.glob("*.json")):
            found = announced(path)
            if found is None:
                continue
            pid, url = found
            text = last_words(path, pid) or fetch(url)
            if text is not None:
                self._known.setdefault(path.stem, {})[pid] = parse(text)
        values = {process: merged(by_pid) for process, by_pid in self._known.items()}
        sample = Sample(at_s=time.time(), values=values)
        self._samples.append(sample)
        return sample

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.scrape()
        self.scrape()


def rate(samples: list[Sample], name: str, over_s: float = 5.0, **labels: str) -> float:
    """Increase a second of a counter over the last seconds of a series."""
    if len(samples) < 2:
        return 0.0
    last = samples[-1]
    first = next(s for s in samples if s.at_s >= last.at_s - over_s or s is samples[-2])
    risen = last.total(name, **labels) - first.total(name, **labels)
    return max(0.0, risen) / max(1e-9, last.at_s - first.at_s)


def announced(path: Path) -> tuple[int, str] | None:
    """Process id and metrics address in a process's file; None if it cannot be read."""
    try:
        entry = json.loads(path.read_bytes())
        return int(entry["pid"]), str(entry["metrics"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_words(path: Path, pid: int) -> str | None:
    """Metrics that the process of an address file left at its end, if it did end."""
    try:
        return path.with_name(f"{path.stem}.{pid}{LAST_WORDS}").read_text(encoding="utf-8")
    except OSError:
        return None


def fetch(url: str) -> str | None:
    """Text behind an address; None if nobody answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == 200 else None
    except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
        logger.debug("%s: %s", url, error)
        return None
    finally:
        connection.close()


def parse(text: str) -> Values:
    """The project's series in a text exposition."""
    lines = [line for line in text.splitlines() if line.startswith(PREFIX)]
    families = text_string_to_metric_families("\n".join(lines) + "\n")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def merged(by_pid: Mapping[int, Values]) -> Values:
    """Gauges of the newest process, counters summed over all of them."""
    *former, newest = by_pid.values()
    values = dict(newest)
    for earlier in former:
        for key, value in earlier.items():
            if key[0].endswith(CUMULATIVE):
                values[key] = values.get(key, 0.0) + value
    return values
