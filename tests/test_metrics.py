"""Streaming measures against a plain second computation over the whole stream."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from models.metrics import (
    Quality,
    log_loss,
    log_loss_sums,
    ne_gain,
    normalised_entropy,
    probability,
    transfer_ratio,
)

Array = np.ndarray[Any, np.dtype[Any]]


def stream(num: int, seed: int, spread: float = 2.0) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=num) * spread - 1).astype(np.float32)
    labels = (rng.random(num) < probability(logits)).astype(np.int8)
    return logits, labels, rng.integers(-50, 50, size=num)


def brute_auc(logits: Array, labels: Array) -> float:
    positives, negatives = logits[labels == 1], logits[labels == 0]
    wins = (positives[:, None] > negatives).sum() + 0.5 * (positives[:, None] == negatives).sum()
    return float(wins / (len(positives) * len(negatives)))


def brute_gauc(logits: Array, labels: Array, users: Array) -> float:
    total, weights = 0.0, 0
    for user in set(users.tolist()):
        chosen = users == user
        if 0 < labels[chosen].sum() < chosen.sum():
            total += brute_auc(logits[chosen], labels[chosen]) * int(chosen.sum())
            weights += int(chosen.sum())
    return total / weights


def filled(logits: Array, labels: Array, users: Array, step: int = 97) -> Quality:
    quality = Quality()
    for start in range(0, len(logits), step):
        part = slice(start, start + step)
        quality.update(logits[part], labels[part], users[part])
    return quality


def test_quality_agrees_with_the_whole_stream() -> None:
    logits, labels, users = stream(3000, seed=1)
    quality = filled(logits, labels, users)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    loss = -np.where(labels == 1, np.log(p), np.log(1 - p)).mean()
    rate = labels.mean()
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    assert quality.ne() == pytest.approx(loss / entropy, rel=1e-12)
    assert quality.calibration() == pytest.approx(p.sum() / labels.sum(), rel=1e-12)
    assert quality.gauc() == pytest.approx(brute_gauc(logits, labels, users), rel=1e-12)
    assert abs(quality.auc() - brute_auc(logits, labels)) <= quality.auc_error() < 1e-3
    assert quality.num_examples == 3000
    assert quality.num_positives == labels.sum()


def test_gauc_counts_ties_half() -> None:
    logits, labels, users = stream(2000, seed=2)
    logits = np.round(logits).astype(np.float32)
    expected = brute_gauc(logits, labels, users)
    assert filled(logits, labels, users).gauc() == pytest.approx(expected, rel=1e-12)


def test_auc_error_bounds_coarse_logits() -> None:
    logits, labels, users = stream(2000, seed=3, spread=0.01)
    quality = filled(logits, labels, users)
    assert abs(quality.auc() - brute_auc(logits, labels)) <= quality.auc_error()


def test_merge_equals_one_stream() -> None:
    logits, labels, users = stream(1000, seed=4)
    left = filled(logits[:300], labels[:300], users[:300])
    left.merge(filled(logits[300:], labels[300:], users[300:]))
    whole = filled(logits, labels, users)
    assert left.ne() == pytest.approx(whole.ne(), rel=1e-12)
    assert (left.auc(), left.gauc()) == (whole.auc(), whole.gauc())


def test_restored_state_goes_on_as_before() -> None:
    logits, labels, users = stream(1000, seed=5)
    whole = filled(logits, labels, users, step=500)
    half = filled(logits[:500], labels[:500], users[:500], step=500)
    for state in (half.state(), {k: v.tolist() for k, v in half.state().items()}):
        again = Quality.restore(state)
        again.update(logits[500:], labels[500:], users[500:])
        assert (again.ne(), again.auc(), again.gauc()) == (whole.ne(), whole.auc(), whole.gauc())


def test_gauc_beyond_capacity_is_that_of_a_sample_of_users() -> None:
    logits, labels, _ = stream(20_000, seed=6)
    users = np.random.default_rng(7).integers(0, 2000, size=20_000)
    forwards, backwards = Quality(gauc_rows=4000), Quality(gauc_rows=4000)
    for start in range(0, 20_000, 1000):
        part, mirrored = slice(start, start + 1000), slice(19_000 - start, 20_000 - start)
        forwards.update(logits[part], labels[part], users[part])
        backwards.update(logits[mirrored], labels[mirrored], users[mirrored])
    assert 1000 < len(forwards.state()["users"]) <= 4000
    assert forwards.gauc() == pytest.approx(backwards.gauc(), rel=1e-12)
    assert forwards.gauc() == pytest.approx(brute_gauc(logits, labels, users), abs=0.03)


def test_log_loss_is_finite_at_any_logit() -> None:
    losses = log_loss(np.array([-800.0, 800.0, 800.0]), np.array([1, 0, 1]))
    assert losses.tolist() == [800.0, 800.0, 0.0]
    assert probability(np.array([-800.0, 800.0])).tolist() == [0.0, 1.0]


def test_log_loss_sums_leave_masked_values_out() -> None:
    logits = np.array([[0.0, math.nan], [1.0, 2.0]])
    labels = np.array([[1.0, math.nan], [0.0, 1.0]])
    mask = np.array([[True, False], [True, False]])
    sums = log_loss_sums(logits, labels, mask)
    assert sums == pytest.approx([math.log(2) + math.log(1 + math.e), 0.0])


def test_rows_without_finite_logit_are_left_out() -> None:
    quality = Quality()
    quality.update(np.array([math.nan, 0.5, math.inf]), np.array([1, 1, 0]), np.array([1, 1, 1]))
    assert quality.num_examples == 1


def test_measures_of_nothing_are_nan() -> None:
    quality = Quality()
    quality.update(np.empty(0), np.empty(0), np.empty(0, np.int64))
    for value in (quality.ne(), quality.auc(), quality.gauc(), quality.calibration()):
        assert math.isnan(value)
    assert math.isnan(normalised_entropy(1.0, 5, 5))


def test_gain_and_transfer_follow_their_definitions() -> None:
    assert ne_gain(0.9, 1.0) == pytest.approx(0.1)
    assert transfer_ratio(0.9, 1.0, 0.8) == pytest.approx(0.5)
    assert math.isnan(transfer_ratio(0.9, 1.0, 1.1))
