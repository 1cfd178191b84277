"""Losses against plain NumPy, and their gradients against the definitions."""

from __future__ import annotations

import itertools
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch

from models.losses import MAX_LOGIT, Targets, scale_gradient
from models.schema import Distillation, Encoding, Feature, Network
from models.vertical import Vertical

Array = np.ndarray[Any, np.dtype[Any]]
Mode = Literal["none", "kd", "kd_sa", "ah", "ah_sa"]
MODES: tuple[Mode, ...] = get_args(Mode)
NUM, TASKS = 12, 2
ENCODING = Encoding(features=(Feature(name="user", kind="categorical"),), table_rows=16)


def sigmoid(z: Array) -> Array:
    chances: Array = 1 / (1 + np.exp(-z))
    return chances


def bce(z: Array, y: Array) -> Array:
    losses: Array = -(y * np.log(sigmoid(z)) + (1 - y) * np.log(1 - sigmoid(z)))
    return losses


def example(seed: int) -> tuple[Array, Array, Array, torch.Tensor]:
    """Labels, masks, teacher logits with gaps, hidden vectors."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((NUM, TASKS)) < 0.4).astype(np.float32)
    mask = rng.random((NUM, TASKS)) < 0.7
    teacher = rng.normal(size=(NUM, TASKS)).astype(np.float32) * 2
    teacher[rng.random((NUM, TASKS)) < 0.3] = np.nan
    hidden = torch.from_numpy(rng.normal(size=(NUM, 4)).astype(np.float32))
    return labels, mask, teacher, hidden.requires_grad_()


def model(distillation: Distillation) -> Vertical:
    generator = torch.Generator().manual_seed(3)
    vertical = Vertical(ENCODING, Network(hidden=(4,)), distillation, TASKS, generator)
    if vertical.adapter is not None:  # away from the identity
        with torch.no_grad():
            vertical.adapter.out_TW.normal_(generator=generator)
    return vertical


def targets(labels: Array, mask: Array, teacher: Array) -> Targets:
    parts = (torch.from_numpy(part) for part in (labels, mask, teacher))
    return Targets.of(*parts)


def plain_adapter(vertical: Vertical, z: Array) -> Array:
    adapter = vertical.adapter
    assert adapter is not None
    slope, shift, out, bias = (p.detach().numpy().astype(np.float64) for p in adapter.parameters())
    hidden = np.maximum(z[:, :, None] * slope + shift, 0)
    adapted: Array = z + (hidden * out).sum(axis=2) + bias
    return adapted


def plain_loss(
    vertical: Vertical, labels: Array, mask: Array, teacher: Array, hidden: Array
) -> float:
    d = vertical.distillation

    def head(layer: torch.nn.Linear) -> Array:
        parts = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        logits: Array = hidden @ parts[0].T + parts[1]
        return logits

    known = mask & np.isfinite(teacher)
    z_teacher = np.where(known, teacher, 0.0).astype(np.float64)
    p, loss = sigmoid(z_teacher), 0.0
    if d.mode.endswith("_sa"):
        z_adapted = plain_adapter(vertical, z_teacher)
        p, loss = sigmoid(z_adapted), bce(z_adapted, labels)[known].sum()
    y = labels.astype(np.float64)
    if d.mode.startswith("kd"):
        y = np.where(known, (1 - d.kd_lambda) * y + d.kd_lambda * p, y)
    if vertical.auxiliary is not None:
        soft = bce(head(vertical.auxiliary), np.minimum(d.alpha * p, 1))
        loss += d.weight * soft[known].sum()
    return float((loss + bce(head(vertical.serving.head), y)[mask].sum()) / mask.sum())


@pytest.mark.parametrize(("mode", "seed"), list(itertools.product(MODES, range(3))))
def test_loss_agrees_with_numpy(mode: Mode, seed: int) -> None:
    labels, mask, teacher, hidden = example(seed)
    vertical = model(Distillation(mode=mode, alpha=1.3, beta=0.5, weight=3.0, kd_lambda=0.8))
    loss, logits = vertical.loss(hidden, targets(labels, mask, teacher))
    plain = plain_loss(vertical, labels, mask, teacher, hidden.detach().numpy().astype(np.float64))
    assert loss.item() == pytest.approx(plain, rel=1e-5)
    assert torch.equal(logits, vertical.serving.head(hidden))


def gradients(
    distillation: Distillation, seed: int = 0, gone: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """Gradients of the hidden vectors and of each parameter."""
    labels, mask, teacher, hidden = example(seed)
    vertical = model(distillation)
    teacher = np.full_like(teacher, np.nan) if gone else teacher
    vertical.loss(hidden, targets(labels, mask, teacher))[0].backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    return hidden.grad, {name: p.grad for name, p in vertical.named_parameters()}


@pytest.mark.parametrize("mode", ["ah", "ah_sa"])
def test_serving_head_gets_nothing_from_the_auxiliary_loss(mode: Mode) -> None:
    _, truth = gradients(Distillation(mode="none"))
    _, both = gradients(Distillation(mode=mode, weight=1000.0))
    for name in ("serving.head.weight", "serving.head.bias"):
        left, right = truth[name], both[name]
        assert left is not None
        assert right is not None
        assert torch.equal(left, right)


def test_beta_scales_what_flows_to_the_trunk_only() -> None:
    truth, _ = gradients(Distillation(mode="none"))
    full, own = gradients(Distillation(mode="ah", beta=1.0))
    for beta in (0.0, 0.25, 4.0):
        scaled, same = gradients(Distillation(mode="ah", beta=beta))
        torch.testing.assert_close(scaled - truth, beta * (full - truth))
        for name in ("auxiliary.weight", "auxiliary.bias"):
            left, right = own[name], same[name]
            assert left is not None
            assert right is not None
            assert torch.equal(left, right)


@pytest.mark.parametrize("mode", MODES)
def test_without_teacher_the_trunk_learns_the_truth_alone(mode: Mode) -> None:
    truth, _ = gradients(Distillation(mode="none"))
    gone, parameters = gradients(Distillation(mode=mode), gone=True)
    assert torch.equal(gone, truth)
    others = [g for name, g in parameters.items() if not name.startswith("serving.")]
    assert all(g is not None and not g.any() for g in others)


@pytest.mark.parametrize("mode", ["kd_sa", "ah_sa"])
def test_adapter_learns_from_its_own_loss_alone(mode: Mode) -> None:
    _, few = gradients(Distillation(mode=mode, weight=0.0, kd_lambda=0.0))
    _, many = gradients(Distillation(mode=mode, weight=100.0, kd_lambda=1.0))
    for name, gradient in few.items():
        other = many[name]
        if name.startswith("adapter."):
            assert gradient is not None
            assert other is not None
            assert torch.equal(gradient, other)


@pytest.mark.parametrize("mode", MODES)
def test_batch_without_labels_of_a_task_is_finite(mode: Mode) -> None:
    labels, mask, teacher, hidden = example(0)
    mask[:, 1] = False
    labels[:, 1] = np.nan
    teacher[0, 0], teacher[1, 0] = np.inf, 1e30
    vertical = model(Distillation(mode=mode))
    loss, _ = vertical.loss(hidden, targets(labels, mask, teacher))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in vertical.parameters())


def test_targets_clip_the_teacher_and_drop_what_is_not_finite() -> None:
    row = np.array([[100.0, -100.0, np.inf, np.nan]], dtype=np.float32)
    got = targets(np.ones((1, 4), np.float32), np.ones((1, 4), np.bool_), row)
    assert got.teacher_BT.tolist() == [[MAX_LOGIT, -MAX_LOGIT, 0, 0]]
    assert got.taught_BT.tolist() == [[0.25, 0.25, 0, 0]]


def test_scale_gradient_keeps_values() -> None:
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    scaled = scale_gradient(values, 0.5)
    scaled.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(scaled, values)
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.5]
