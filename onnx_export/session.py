"""A snapshot opened for scoring: ONNX Runtime on one thread. No torch.

Shape legend: B rows, F hashed fields, L ids of all sequences, N numeric features, T tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa

from models.encoding import Encoder, Inputs
from onnx_export.draft import verify_files
from onnx_export.manifest import MODEL, Manifest, SnapshotCorrupt
from onnx_export.store import read_manifest

Logits = np.ndarray[Any, np.dtype[np.float32]]


class Scorer:
    """The weights of one version, mapped from its folder, and the features they were learned on.

    A row's logit does not depend on the rows scored beside it. The folder may be deleted while the
    scorer lives.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self.encoder = Encoder(manifest.encoding)
        self._session = open_session(folder / MODEL)
        self._inputs = {i.name for i in self._session.get_inputs()}

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> Scorer:
        """Open a version's folder.

        Args:
            folder: `SnapshotStore.path(model, version)`.
            verify: compare the files' checksums first.

        Raises:
            FileNotFoundError: there is no such version.
            SnapshotCorrupt: the files are not what was published, or do not load.
        """
        manifest = read_manifest(folder)
        try:
            if verify:
                verify_files(folder, manifest)
            return cls(folder, manifest)
        except SnapshotCorrupt as error:
            if folder.exists():
                raise
            raise FileNotFoundError(f"{folder}: was retired while it was opened") from error

    @property
    def version(self) -> int:
        """Boundary of event time (ms) that the snapshot was taken at."""
        return self.manifest.version

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the logits' columns."""
        return self.manifest.tasks

    def score(self, inputs: Inputs) -> Logits:
        """Logits of encoded rows, shape [B, T]; B = 0 gives [0, T].

        Raises:
            ValueError: an id lies outside of the table.
        """
        if len(inputs) == 0:  # the graph refuses it
            return np.empty((0, len(self.tasks)), dtype=np.float32)
        rows = self.manifest.encoding.table_rows
        require_range("ids", inputs.ids_BF, rows - 1)
        require_range("sequence", inputs.sequence_BL, rows)
        feeds: dict[str, np.ndarray[Any, Any]] = {
            "ids_BF": inputs.ids_BF,
            "sequence_BL": inputs.sequence_BL,
            "numeric_BN": inputs.numeric_BN,
        }
        feeds = {name: value for name, value in feeds.items() if name in self._inputs}
        if len(inputs) == 1:  # alone, a row would take another kernel, which rounds differently
            feeds = {name: np.repeat(value, 2, axis=0) for name, value in feeds.items()}
        logits_BT: Logits = self._session.run(None, feeds)[0]
        return logits_BT[: len(inputs)]

    def score_columns(self, columns: pa.Table) -> Logits:
        """Logits of raw features, one column a feature; shape [B, T]."""
        return self.score(self.encoder.encode(columns))


def require_range(what: str, ids: np.ndarray[Any, Any], largest: int) -> None:
    """Raise ValueError unless all ids are in [0, largest]: the graph would wrap or fail."""
    if ids.size and (ids.min() < 0 or ids.max() > largest):
        raise ValueError(f"{what} must be in [0, {largest}], got {ids.min()}..{ids.max()}")


def open_session(path: Path) -> ort.InferenceSession:
    """A session of one thread, without an arena that would keep the largest request's memory.

    Raises:
        SnapshotCorrupt: the runtime cannot load the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common public class
        raise SnapshotCorrupt(f"{path}: does not load: {error}") from error
