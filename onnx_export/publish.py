"""Publishes a model's live weights as a snapshot, if the gate lets them pass."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.encoding import Inputs
from models.schema import Encoding
from models.serving_graph import ServingGraph
from monitoring import metrics
from onnx_export.draft import Draft
from onnx_export.gate import NeGate, Refusal, parity
from onnx_export.manifest import MODEL, WEIGHTS, Manifest, SnapshotCorrupt
from onnx_export.session import Logits, Scorer
from onnx_export.store import SnapshotStore
from onnx_export.template import template
from onnx_export.weights import layout, pack

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a snapshot."""

    published: bool
    reason: str | None = None
    """Why not: see `gate.Refusal.reason`."""
    detail: str | None = None
    """The same in words."""


class Publisher:
    """Writes, checks and publishes the snapshots of one model.

    Args:
        store: where to.
        model: its name there.
        graph: the serving path over the live parameters.
        encoding: the graph's inputs.
        tasks: columns of its logits.
        max_parity: largest difference of a logit, torch against ONNX Runtime.
        max_ne_increase: relative increase of the recent NE over the best that is allowed.
    """

    def __init__(
        self,
        store: SnapshotStore,
        model: str,
        graph: ServingGraph,
        encoding: Encoding,
        tasks: Sequence[str],
        *,
        max_parity: float = 1e-4,
        max_ne_increase: float = 0.2,
    ) -> None:
        self._store = store
        self._model = model
        self._graph = graph
        self._encoding = encoding
        self._tasks = tuple(tasks)
        self._max_parity = max_parity
        self._gate = NeGate(max_ne_increase)
        self._template: bytes | None = None
        self._layout = layout(graph.state_dict())
        self._weights = bytearray(self._layout.size)

    def publish(
        self,
        version: int,
        *,
        newest_example_ms: int,
        num_examples: int,
        recent: Inputs,
        torch_logits: Logits,
        quality: Mapping[str, float],
        ne: Mapping[str, float],
    ) -> Outcome:
        """Publish the live weights, or say why not. The same calls give the same outcomes.

        Args:
            version: boundary of event time (ms).
            newest_example_ms: event time of the newest example learned.
            num_examples: examples learned.
            recent: some recent examples.
            torch_logits: theirs by the live weights, shape [B, T].
            quality: figures for the manifest; those not finite are left out.
            ne: of each task on recent examples, scored before they were learned.

        Raises:
            SnapshotConflict: the version exists with other content.
        """
        started = time.perf_counter()
        manifest = Manifest(
            model=self._model,
            version=version,
            newest_example_ms=newest_example_ms,
            num_examples=num_examples,
            encoding=self._encoding,
            tasks=self._tasks,
            files={},
            quality={name: float(v) for name, v in quality.items() if math.isfinite(v)},
            created_ms=time.time_ns() // 1_000_000,
        )
        refusal = self._gate.judge(ne) or self._write(manifest, recent, torch_logits)
        metrics.SNAPSHOT_SECONDS.observe(time.perf_counter() - started)
        if refusal:
            metrics.SNAPSHOT_REFUSED.labels(self._model, refusal.reason).inc()
            logger.warning("%s %d is not published: %s", self._model, version, refusal.detail)
            return Outcome(published=False, reason=refusal.reason, detail=refusal.detail)
        metrics.SNAPSHOT_PUBLISHED.labels(self._model).inc()
        metrics.SNAPSHOT_VERSION.labels(self._model).set(version / 1000)
        return Outcome(published=True)

    def state(self) -> dict[str, float]:
        """What the gate remembers: plain data for the trainer's checkpoint."""
        return self._gate.state()

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` returned."""
        self._gate.load_state(state)

    def _write(self, manifest: Manifest, recent: Inputs, torch_logits: Logits) -> Refusal | None:
        pack(self._graph.state_dict(), self._layout, self._weights)
        if not np.isfinite(np.frombuffer(self._weights, np.float32)).all():
            return Refusal(reason="not_finite", detail="a weight is not finite")
        if self._template is None:
            cache = self._store.templates
            self._template = template(self._graph, self._encoding, self._tasks, cache)
        with self._store.draft(self._model, manifest.version) as draft:
            draft.write(MODEL, self._template)
            draft.write(WEIGHTS, self._weights)
            refusal = self._compare(draft, manifest, recent, torch_logits)
            if refusal is None:
                self._store.publish(draft, manifest)
        return refusal

    def _compare(
        self, draft: Draft, manifest: Manifest, recent: Inputs, torch_logits: Logits
    ) -> Refusal | None:
        try:
            scorer = Scorer(draft.folder, manifest)
        except SnapshotCorrupt as error:
            return Refusal(reason="does_not_load", detail=str(error))
        return parity(torch_logits, scorer.score(recent), self._max_parity)
