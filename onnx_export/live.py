"""The versions that serve: loaded beside the old ones, checked, and swapped by one pointer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from monitoring import metrics
from onnx_export.features import arrow_type
from onnx_export.manifest import SnapshotCorrupt
from onnx_export.session import Scorer
from onnx_export.store import SnapshotStore

logger = logging.getLogger(__name__)

WARM_ROWS = (1, 64)


class LiveModels:
    """The loaded version of each model.

    Args:
        store: polled for what should serve.
        models: names to serve; empty: all that the store has.
    """

    def __init__(self, store: SnapshotStore, models: Sequence[str]) -> None:
        self._store = store
        self._models = tuple(models)
        self._live: dict[str, Scorer] = {}
        self._refused: dict[str, int] = {}

    def names(self) -> list[str]:
        """Models that are served, or will be once the store has a version."""
        return list(self._models) or self._store.models()

    def get(self, model: str) -> Scorer | None:
        """The version that serves now; holding it keeps it alive."""
        return self._live.get(model)

    def ready(self) -> bool:
        """Every model has a version that serves, and there is one."""
        names = self._models or tuple(self._live)
        return bool(names) and all(name in self._live for name in names)

    async def refresh(self) -> None:
        """Swap in what the store points at, loading in a thread while requests go on."""
        for model in self.names():
            try:
                version = self._store.latest(model)
            except (OSError, ValueError, TypeError) as error:
                logger.error("%s: latest.json cannot be read: %s", model, error)
                continue
            live = self._live.get(model)
            if version is None or (live and live.version == version):
                continue
            scorer = await asyncio.to_thread(self._load, model, version, live is None)
            if scorer is not None and (live is None or scorer.version != live.version):
                self._swap(model, scorer)

    def _swap(self, model: str, scorer: Scorer) -> None:
        self._live[model] = scorer
        metrics.SERVE_SWAPS.labels(model).inc()
        metrics.SERVE_VERSION.labels(model).set(scorer.version / 1000)
        metrics.SERVE_NEWEST.labels(model).set(scorer.manifest.newest_example_ms / 1000)
        logger.info("%s: version %d serves", model, scorer.version)

    def _load(self, model: str, version: int, older_too: bool) -> Scorer | None:
        """The version; if it is refused and nothing serves, the newest older one that is good."""
        candidates = [version]
        if older_too:
            candidates += [v for v in reversed(self._store.versions(model)) if v < version]
        for candidate in candidates:
            if self._refused.get(model) == candidate:
                continue
            try:
                scorer = Scorer.open(self._store.path(model, candidate))
                if (scorer.manifest.model, scorer.version) != (model, candidate):
                    raise SnapshotCorrupt(f"it holds {scorer.manifest.model} {scorer.version}")
                warm(scorer)
            except FileNotFoundError:  # retired since the pointer was read
                continue
            except (SnapshotCorrupt, OSError) as error:
                if candidate == version:
                    self._refused[model] = version
                metrics.SERVE_REFUSED.labels(model).inc()
                logger.error("%s: version %d is refused: %s", model, candidate, error)
            else:
                return scorer
        return None


def warm(scorer: Scorer) -> None:
    """Score rows of unknown values, so that the first request finds everything in place.

    Raises:
        SnapshotCorrupt: the graph does not score them, or not to finite logits.
    """
    features = scorer.manifest.encoding.features
    for num_rows in WARM_ROWS:
        columns = pa.table({f.name: pa.nulls(num_rows, arrow_type(f)) for f in features})
        try:
            logits = scorer.score_columns(columns)
        except Exception as error:  # the runtime's exceptions have no common public class
            raise SnapshotCorrupt(f"it does not score: {error}") from error
        expected = (num_rows, len(scorer.tasks))
        if logits.shape != expected or not np.isfinite(logits).all():
            raise SnapshotCorrupt(f"logits must be finite and of shape {expected}")
