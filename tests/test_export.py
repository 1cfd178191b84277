"""What is exported scores as torch does, holds every weight outside, and passes a gate."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.encoding import Inputs
from models.schema import Encoding, Feature, Network
from models.serving_graph import ServingGraph
from onnx_export.gate import FORGETTING, NeGate
from onnx_export.manifest import MODEL, WEIGHTS, SnapshotCorrupt
from onnx_export.publish import Outcome, Publisher
from onnx_export.session import Logits, Scorer
from onnx_export.store import SnapshotConflict, SnapshotStore
from onnx_export.template import template
from onnx_export.weights import PAGE_BYTES, layout

TASKS = ("click", "buy")
IDS = (
    Feature(name="domain", kind="categorical"),
    Feature(name="user", kind="categorical", dtype="int"),
    Feature(name="ad", kind="categorical"),
)
SEQUENCES = (
    Feature(name="history", kind="sequence", dtype="int", max_length=5),
    Feature(name="tags", kind="sequence", max_length=3),
)
NUMBERS = (Feature(name="price", kind="numeric"), Feature(name="age", kind="numeric"))
ENCODINGS = {
    "all kinds": Encoding(
        features=(*IDS, *SEQUENCES, *NUMBERS), crosses=(("domain", "ad"),), table_rows=500
    ),
    "ids only": Encoding(features=IDS, table_rows=100),
    "ids and sequences": Encoding(features=(*IDS, *SEQUENCES), table_rows=100),
    "ids and numbers": Encoding(features=(*IDS, *NUMBERS), table_rows=100),
}
ENCODING = ENCODINGS["all kinds"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def build(
    encoding: Encoding = ENCODING, seed: int = 0, network: Network | None = None
) -> ServingGraph:
    graph = ServingGraph(encoding, network or Network(hidden=(24, 12)), len(TASKS))
    reweigh(graph, seed)
    return graph


def reweigh(graph: ServingGraph, seed: int) -> None:
    """Other weights in place, every one of them, as training does."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.normal_(0.0, min(0.3, parameter.shape[-1] ** -0.5), generator=source)
        graph.table[-1] = 0.0


def inputs(num_rows: int, encoding: Encoding = ENCODING, seed: int = 0) -> Inputs:
    source = np.random.default_rng(seed)
    num_fields = len(encoding.categorical) + len(encoding.crosses)
    lengths = sum(f.max_length for f in encoding.sequences)
    rows = encoding.table_rows
    sequence_BL = source.integers(0, rows + 1, (num_rows, lengths))
    sequence_BL[source.random(sequence_BL.shape) < 0.4] = rows
    return Inputs(
        source.integers(0, rows, (num_rows, num_fields)),
        sequence_BL,
        source.normal(size=(num_rows, len(encoding.numeric))).astype(np.float32),
    )


def by_torch(graph: ServingGraph, rows: Inputs) -> Logits:
    parts = [torch.from_numpy(rows.ids_BF)]
    sequence = torch.from_numpy(rows.sequence_BL) if graph.has_sequences else None
    numeric = torch.from_numpy(rows.numeric_BN) if graph.has_numeric else None
    with torch.no_grad():
        logits: Logits = graph(*parts, sequence, numeric).numpy()
    return logits


def publisher(
    store: SnapshotStore, graph: ServingGraph, encoding: Encoding = ENCODING
) -> Publisher:
    return Publisher(store, "ads", graph, encoding, TASKS)


def publish(
    via: Publisher,
    graph: ServingGraph,
    version: int = 1000,
    *,
    recent: Inputs | None = None,
    ne: float = 0.9,
    shift: float = 0.0,
) -> Outcome:
    recent = inputs(200) if recent is None else recent
    return via.publish(
        version,
        newest_example_ms=version - 1,
        num_examples=10,
        recent=recent,
        torch_logits=by_torch(graph, recent) + np.float32(shift),
        quality={"ne_click": ne, "auc_click": math.nan},
        ne={"click": ne, "buy": math.nan},
    )


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_snapshot_scores_as_torch_does(store: SnapshotStore, encoding: Encoding) -> None:
    graph = build(encoding)
    via = publisher(store, graph, encoding)
    for seed in (1, 2):
        reweigh(graph, seed)
        rows = inputs(257, encoding, seed)
        assert publish(via, graph, seed, recent=rows) == Outcome(published=True)
        logits = Scorer.open(store.path("ads", seed)).score(rows)
        np.testing.assert_allclose(logits, by_torch(graph, rows), rtol=0, atol=2e-5)
        assert np.ptp(logits) > 0.5


def test_patched_weights_are_bit_equal_to_an_export_of_them(tmp_path: Path) -> None:
    """The template of other weights, patched, against a graph that was exported with these."""
    graph, rows = build(seed=5), inputs(64)
    fresh, patched = (SnapshotStore(tmp_path / name) for name in ("fresh", "patched"))
    publish(publisher(fresh, graph), graph)
    other = build(seed=6)
    via = publisher(patched, other)
    publish(via, other, 1)
    reweigh(other, 5)
    publish(via, other)
    ours, expected = (Scorer.open(s.path("ads", 1000)).score(rows) for s in (patched, fresh))
    assert ours.tobytes() == expected.tobytes()
    manifests = [s.manifest("ads", 1000).content() for s in (patched, fresh)]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize(
    "network",
    [
        Network(dim=1, hidden=()),
        Network(dim=8, hidden=(64, 32)),
        Network(dim=7, hidden=(33, 17)),
        Network(dim=64, hidden=(512, 256, 64), cross_layers=3),
    ],
    ids=lambda network: f"dim {network.dim}",
)
def test_logit_of_a_row_does_not_depend_on_its_micro_batch(
    store: SnapshotStore, network: Network
) -> None:
    graph = build(network=network)
    rows = inputs(300)
    assert publish(publisher(store, graph), graph, recent=rows).published
    scorer = Scorer.open(store.path("ads", 1000))
    whole = scorer.score(rows)
    for size in (1, 2, 3, 7, 16, 33, 100, 256, 299):
        parts = [scorer.score(rows.take(slice(i, i + size))) for i in range(0, 300, size)]
        assert np.concatenate(parts).tobytes() == whole.tobytes(), size
    order = np.random.default_rng(1).permutation(300)
    assert scorer.score(rows.take(order)).tobytes() == whole[order].tobytes()


def test_every_weight_lies_outside_of_the_graph(store: SnapshotStore) -> None:
    graph = build()
    publish(publisher(store, graph), graph)
    folder = store.path("ads", 1000)
    model = onnx.load(str(folder / MODEL), load_external_data=False)
    state = graph.state_dict()
    outside = {i.name: i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    assert set(outside) == set(state)
    weights = (folder / WEIGHTS).read_bytes()
    for name, entry in outside.items():
        assert entry.data_location == onnx.TensorProto.EXTERNAL
        assert tuple(entry.dims) == tuple(state[name].shape)
        place = {item.key: item.value for item in entry.external_data}
        assert place["location"] == WEIGHTS
        start, length = int(place["offset"]), int(place["length"])
        assert start % PAGE_BYTES == 0
        assert weights[start : start + length] == state[name].numpy().tobytes()
    assert (folder / MODEL).stat().st_size < 200_000


def test_table_is_only_gathered_from(store: SnapshotStore) -> None:
    """Any other reader of the table would have the runtime copy it for each session."""
    graph = build()
    publish(publisher(store, graph), graph)
    path = store.path("ads", 1000) / MODEL
    model = onnx.load(str(path), load_external_data=False)
    assert {n.op_type for n in model.graph.node if "table" in n.input} == {"Gather"}


def test_metadata_and_manifest_say_what_the_model_is(store: SnapshotStore) -> None:
    graph = build()
    publish(publisher(store, graph), graph, 7000)
    model = onnx.load(str(store.path("ads", 7000) / MODEL), load_external_data=False)
    metadata = {item.key: item.value for item in model.metadata_props}
    assert json.loads(metadata["tasks"]) == list(TASKS)
    assert Encoding.model_validate_json(metadata["encoding"]) == ENCODING
    assert [i.name for i in model.graph.input] == ["ids_BF", "sequence_BL", "numeric_BN"]
    assert [o.name for o in model.graph.output] == ["logits_BT"]
    manifest = store.manifest("ads", 7000, verify=True)
    assert (manifest.encoding, manifest.tasks) == (ENCODING, TASKS)
    assert (manifest.newest_example_ms, manifest.num_examples) == (6999, 10)
    assert manifest.quality == {"ne_click": 0.9}


def test_template_is_exported_once_for_a_structure(store: SnapshotStore) -> None:
    first = template(build(seed=1), ENCODING, TASKS, store.templates)
    files = {path.name: path.stat().st_mtime_ns for path in store.templates.iterdir()}
    assert template(build(seed=2), ENCODING, TASKS, store.templates) == first
    assert {path.name: path.stat().st_mtime_ns for path in store.templates.iterdir()} == files
    assert template(build(), ENCODING, ("click", "like"), store.templates) != first


def test_no_rows_give_no_logits(store: SnapshotStore) -> None:
    graph = build()
    publish(publisher(store, graph), graph)
    logits = Scorer.open(store.path("ads", 1000)).score(inputs(0))
    assert logits.shape == (0, 2)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("row", [-1, ENCODING.table_rows, 2**40])
def test_id_outside_of_the_table_is_refused(store: SnapshotStore, row: int) -> None:
    graph = build()
    publish(publisher(store, graph), graph)
    rows = inputs(3)
    rows.ids_BF[1, 1] = row
    with pytest.raises(ValueError, match=r"ids must be in \[0, 499\]"):
        Scorer.open(store.path("ads", 1000)).score(rows)


def test_session_outlives_the_deletion_of_its_version(store: SnapshotStore) -> None:
    graph, rows = build(), inputs(50)
    store.keep = 2
    via = publisher(store, graph)
    publish(via, graph, 1)
    scorer = Scorer.open(store.path("ads", 1))
    before = scorer.score(rows)
    for version in (2, 3, 4):
        reweigh(graph, version)
        publish(via, graph, version)
    assert not store.path("ads", 1).exists()
    assert scorer.score(rows).tobytes() == before.tobytes()


def test_graph_that_does_not_load_is_refused(store: SnapshotStore) -> None:
    graph = build()
    publish(publisher(store, graph), graph)
    (store.path("ads", 1000) / MODEL).write_bytes(b"not a graph")
    with pytest.raises(SnapshotCorrupt, match=r"model\.onnx"):
        Scorer.open(store.path("ads", 1000))
    with pytest.raises(SnapshotCorrupt, match="does not load"):
        Scorer.open(store.path("ads", 1000), verify=False)


def test_weight_that_is_not_finite_is_refused(store: SnapshotStore) -> None:
    graph = build()
    with torch.no_grad():
        graph.head.bias[0] = math.inf
    assert publish(publisher(store, graph), graph).reason == "not_finite"
    assert store.latest("ads") is None


def test_logits_that_disagree_are_refused(store: SnapshotStore) -> None:
    graph = build()
    outcome = publish(publisher(store, graph), graph, shift=1e-3)
    assert outcome.reason == "parity"
    assert outcome.detail is not None
    assert "within 0.0001" in outcome.detail
    assert store.versions("ads") == []


def test_no_recent_example_is_a_refusal(store: SnapshotStore) -> None:
    graph = build()
    assert publish(publisher(store, graph), graph, recent=inputs(0)).reason == "no_recent"


def test_worse_ne_is_refused_and_the_next_good_one_published(store: SnapshotStore) -> None:
    graph = build()
    via = publisher(store, graph)
    assert publish(via, graph, 1, ne=0.8).published
    assert publish(via, graph, 2, ne=0.8 * 1.3).reason == "ne"
    assert publish(via, graph, 3, ne=0.85).published
    assert store.versions("ads") == [1, 3]


def test_publishing_again_after_a_restart_changes_nothing(store: SnapshotStore) -> None:
    graph = build()
    publish(publisher(store, graph), graph)
    assert publish(publisher(store, graph), graph).published
    assert store.versions("ads") == [1000]
    reweigh(graph, 9)
    with pytest.raises(SnapshotConflict):
        publish(publisher(store, graph), graph)


def test_gate_goes_on_from_its_state() -> None:
    values = [0.9, 0.8, 1.2, 0.7, 0.95, 1.1, 0.9, math.nan, 1.0]
    whole = NeGate(0.2)
    expected = [whole.judge({"click": v}) for v in values]
    gate, verdicts = NeGate(0.2), []
    for value in values:
        resumed = NeGate(0.2)
        resumed.load_state(json.loads(json.dumps(gate.state())))
        verdicts.append(resumed.judge({"click": value}))
        gate = resumed
    assert verdicts == expected
    assert any(expected)
    assert not all(expected)


def test_gate_lets_a_harder_stream_pass_after_a_while() -> None:
    gate = NeGate(0.2)
    gate.judge({"click": 0.6})
    verdicts = [gate.judge({"click": 0.9}) for _ in range(40)]
    assert verdicts[0] is not None
    assert verdicts[0].reason == "ne"
    assert verdicts[-1] is None
    assert FORGETTING < 0.1


def test_gate_refuses_a_first_snapshot_worse_than_a_constant() -> None:
    assert NeGate(0.2).judge({"click": 1.6}) is not None
    assert NeGate(0.2).judge({"click": 1.1}) is None
    assert NeGate(0.2).judge({}) is None


def test_parameter_that_is_not_float32_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parameter w must be float32, got torch\.float64"):
        layout({"w": torch.zeros(2, dtype=torch.float64)})
