"""One contract over the teacher and every student mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
import torch

from models import checkpoint
from models.cross import Cross
from models.dense import FlatAdam
from models.embedding import RowwiseAdagrad, table
from models.encoding import Inputs
from models.online import Batch, OnlineLearner, build_student, build_teacher
from models.schema import Distillation, Encoding, Feature, Learning, Network

Mode = Literal["none", "kd", "kd_sa", "ah", "ah_sa"]
MODES: tuple[Mode, ...] = get_args(Mode)
KINDS = ("teacher", *MODES)
TASKS = ("click", "buy")
ROWS = 64
FULL = Encoding(
    features=(
        Feature(name="domain", kind="categorical"),
        Feature(name="user", kind="categorical"),
        Feature(name="history", kind="sequence", max_length=4),
        Feature(name="visits", kind="sequence", max_length=2),
        Feature(name="age", kind="numeric"),
    ),
    crosses=(("domain", "user"),),
    table_rows=ROWS,
)
PLAIN = Encoding(features=(Feature(name="user", kind="categorical"),), table_rows=ROWS)
NETWORK = Network(dim=4, hidden=(16, 8))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(kind: str, encoding: Encoding = FULL, seed: int = 0) -> OnlineLearner:
    learning = Learning(seed=seed, dense_lr=3e-3)
    if kind == "teacher":
        return build_teacher(encoding, NETWORK, learning, TASKS)
    distillation = Distillation.model_validate({"mode": kind})
    return build_student(encoding, NETWORK, learning, distillation, TASKS)


def batch(seed: int, size: int = 32, encoding: Encoding = FULL) -> Batch:
    """Labels that depend on the user's row (and the teacher knows it); gaps everywhere."""
    rng = np.random.default_rng(seed)
    num_ids = len(encoding.categorical) + len(encoding.crosses)
    length = sum(f.max_length for f in encoding.sequences)
    ids_BF = rng.integers(0, ROWS, size=(size, num_ids))
    sequence_BL = rng.integers(0, ROWS + 1, size=(size, length))
    numeric_BN = rng.normal(size=(size, len(encoding.numeric))).astype(np.float32)
    logit_B = np.where(ids_BF[:, -1] % 2 == 0, 2.0, -2.0)
    logit_BT = np.stack([logit_B, -logit_B], axis=1)
    labels_BT = (rng.random((size, 2)) < 1 / (1 + np.exp(-logit_BT))).astype(np.float32)
    teacher_BT = logit_BT.astype(np.float32)
    teacher_BT[rng.random((size, 2)) < 0.2] = np.nan
    mask_BT = rng.random((size, 2)) < 0.9
    return Batch(Inputs(ids_BF, sequence_BL, numeric_BN), labels_BT, mask_BT, teacher_BT)


def same(left: OnlineLearner, right: OnlineLearner) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("encoding", [FULL, PLAIN], ids=["full", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_model_scores_each_task(kind: str, encoding: Encoding) -> None:
    learner = build(kind, encoding)
    for size in (0, 1, 5):
        inputs = batch(1, size, encoding).inputs
        logits = learner.score(inputs)
        assert logits.shape == (size, 2)
        assert logits.dtype == np.dtype(np.float32)
        assert np.isfinite(logits).all()


@pytest.mark.parametrize("encoding", [FULL, PLAIN], ids=["full", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_serving_graph_scores_as_the_learner(kind: str, encoding: Encoding) -> None:
    learner = build(kind, encoding)
    learner.learn(batch(1, encoding=encoding))
    inputs = batch(2, encoding=encoding).inputs
    sequence = torch.from_numpy(inputs.sequence_BL) if encoding.sequences else None
    numeric = torch.from_numpy(inputs.numeric_BN) if encoding.numeric else None
    logits = learner.serving_graph()(torch.from_numpy(inputs.ids_BF), sequence, numeric)
    np.testing.assert_array_equal(logits.detach().numpy(), learner.score(inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_step_moves_touched_rows_only_and_every_dense_parameter(kind: str) -> None:
    learner = build(kind)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    examples = batch(1, size=4)
    learner.learn(examples)
    learner.learn(examples)  # the adapter's first layer moves once its last one is not zero
    inputs = examples.inputs
    touched = set(inputs.ids_BF.flatten()) | set(inputs.sequence_BL.flatten()) - {ROWS}
    for name, value in learner.model.state_dict().items():
        moved = (value != before[name]).reshape(len(value), -1).any(dim=1)
        if name == "serving.table":
            assert set(np.flatnonzero(moved.numpy())) == touched
        else:
            assert moved.any(), name
    assert not learner.serving_graph().table[ROWS].any()


@pytest.mark.parametrize("kind", KINDS)
def test_model_learns_a_known_answer(kind: str) -> None:
    learner = build(kind)
    for step in range(300):
        learner.learn(batch(step))
    test = batch(1000, size=500)
    even = test.inputs.ids_BF[:, -1] % 2 == 0
    logits = learner.score(test.inputs)
    assert ((logits[:, 0] > 0) == even).mean() > 0.95
    assert ((logits[:, 1] < 0) == even).mean() > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_learner_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    straight = build(kind)
    for step in range(5):
        straight.learn(batch(step))
    checkpoint.save(tmp_path / "checkpoint.pt", straight.state_dict(), {"step": 5})
    resumed = build(kind, seed=99)
    tensors, meta = checkpoint.load(tmp_path / "checkpoint.pt")
    resumed.load_state_dict(tensors)
    assert meta == {"step": 5}
    assert same(straight, resumed)
    for step in range(5, 10):
        first, second = straight.learn(batch(step)), resumed.learn(batch(step))
        np.testing.assert_array_equal(first, second)
    assert same(straight, resumed)


@pytest.mark.parametrize("kind", KINDS)
def test_learning_depends_on_the_seed_alone(kind: str) -> None:
    torch.manual_seed(1)
    left = build(kind)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    right = build(kind)
    assert torch.equal(torch.random.get_rng_state(), state)
    for step in range(3):
        left.learn(batch(step))
        right.learn(batch(step))
    assert same(left, right)
    assert not same(left, build(kind, seed=1))


@pytest.mark.parametrize("mode", MODES)
def test_student_without_teacher_is_its_shadow_bit_for_bit(mode: Mode) -> None:
    student, shadow = build(mode), build("none")
    for step in range(20):
        full = batch(step)
        gone = np.full_like(full.teacher_BT, np.nan)
        examples = Batch(full.inputs, full.labels_BT, full.mask_BT, gone)
        np.testing.assert_array_equal(student.learn(examples), shadow.learn(examples))
    ours, theirs = student.freeze().state_dict(), shadow.freeze().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_copy_does_not_move(kind: str) -> None:
    learner, inputs = build(kind), batch(9).inputs
    learner.learn(batch(1))
    frozen, expected = learner.freeze(), learner.score(inputs)
    learner.learn(batch(2))
    assert (learner.score(inputs) != expected).any()
    thawed = build(kind, seed=5).thaw(frozen.state_dict())
    for copy in (frozen, thawed):
        np.testing.assert_array_equal(copy.score(inputs), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_without_labels_changes_nothing(kind: str) -> None:
    learner, twin, full = build(kind), build(kind), batch(1)
    empty = np.zeros_like(full.mask_BT)
    logits = learner.learn(Batch(full.inputs, full.labels_BT, empty, full.teacher_BT))
    assert same(learner, twin)
    np.testing.assert_array_equal(logits, learner.score(full.inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_start_at_the_base_rate_of_their_first_labels(kind: str) -> None:
    learner, full = build(kind), batch(1, size=200)
    labels = np.zeros_like(full.labels_BT)
    labels[:9] = 1  # half added to each side: 9.5 of 201
    first = np.zeros_like(full.mask_BT)
    first[:, 0] = True
    for mask, started in ((first, [True, False]), (np.ones_like(first), [True, True])):
        expected = learner.score(full.inputs)
        got = learner.learn(Batch(full.inputs, labels, mask, full.teacher_BT))
        np.testing.assert_array_equal(got, expected)
        for head in learner.model.heads():
            near = np.abs(head.bias.detach().numpy() - np.log(9.5 / 191.5)) < 0.01
            assert near.tolist() == started


def test_learn_returns_the_logits_before_the_step() -> None:
    learner, examples = build("ah"), batch(1)
    expected = learner.score(examples.inputs)
    np.testing.assert_array_equal(learner.learn(examples), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.serving.head.bias": torch.zeros(3)}, r"'model.serving.head.bias' must have shape"),
        ({"unknown": torch.zeros(3)}, "'unknown' is on one side only"),
    ],
)
def test_state_of_another_model_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    learner = build("ah")
    with pytest.raises(ValueError, match=message):
        learner.load_state_dict({**learner.state_dict(), **change})
    assert same(learner, build("ah"))


def test_cross_agrees_with_its_definition() -> None:
    cross = Cross(5, 2, torch.Generator().manual_seed(1))
    x0 = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    expected = x0
    for layer in cross.layers:
        expected = x0 * layer(expected) + expected
    torch.testing.assert_close(cross(x0), expected)


def test_flat_adam_agrees_with_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)]
    ours = [torch.nn.Parameter(p.clone()) for p in start]
    theirs = [torch.nn.Parameter(p.clone()) for p in start]
    flat, adam = FlatAdam(ours, lr=0.01), torch.optim.Adam(theirs, lr=0.01)
    for _ in range(20):
        for parameters in (ours, theirs):
            loss = sum(((p - 1) ** 4).sum() for p in parameters)
            assert isinstance(loss, torch.Tensor)
            loss.backward()  # type: ignore[no-untyped-call]
        flat.step()
        adam.step()
        adam.zero_grad()
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right)


def test_rowwise_adagrad_agrees_with_a_loop_over_unique_rows() -> None:
    rng = np.random.default_rng(1)
    rows = table(8, 3, torch.Generator().manual_seed(1))
    plain, sums = rows.detach().numpy().astype(np.float64), np.zeros(9)
    adagrad = RowwiseAdagrad(rows, lr=0.1)
    for _ in range(5):
        ids, gradient = rng.integers(0, 9, size=20), rng.normal(size=(20, 3)).astype(np.float32)
        gathered = adagrad.gather(torch.from_numpy(ids))
        (gathered * torch.from_numpy(gradient)).sum().backward()  # type: ignore[no-untyped-call]
        adagrad.step(torch.from_numpy(ids), gathered)
        for row in set(ids.tolist()) - {8}:
            total = gradient[ids == row].sum(axis=0)
            sums[row] += (total**2).mean()
            plain[row] -= 0.1 * total / np.sqrt(sums[row])
    np.testing.assert_allclose(rows.detach().numpy(), plain, atol=1e-5)


@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"x": torch.arange(100)}, {})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    damaged = {"cut": path.read_bytes()[:-5], "flip": bytes(data), "other": b"PK"}[damage]
    path.write_bytes(damaged)
    with pytest.raises(checkpoint.CheckpointError, match=str(path)):
        checkpoint.load(path)


def test_failed_save_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"x": torch.arange(3)}, {"step": 1})
    with pytest.raises(TypeError):
        checkpoint.save(path, {"x": torch.arange(4)}, {"step": object()})
    tensors, meta = checkpoint.load(path)
    assert (tensors["x"].tolist(), meta) == ([0, 1, 2], {"step": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
