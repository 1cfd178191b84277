"""Streaming measures of binary predictions: NE, AUC, GAUC, calibration. No torch.

Everything is computed from logits in float64. `Quality` is a value that streams, merges, and turns
into plain arrays for a checkpoint.

Legend: B = examples, T = tasks, K = histogram bins, U = examples kept for GAUC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from models.hashing import splitmix64

Array = np.ndarray[Any, np.dtype[Any]]

NUM_BINS = 4096
LOGIT_LIMIT = 12.0
"""Logits beyond ± this fall into the outermost bins."""
GAUC_ROWS = 2**20
"""Examples kept for GAUC; beyond, a random half of the users is given up, again and again."""


def probability(logits: Array) -> Array:
    """The sigmoid in float64, without overflow."""
    chances: Array = np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))
    return chances


def log_loss(logits: Array, labels: Array) -> Array:
    """Binary cross entropy of each example in nats, float64, without overflow; soft labels too."""
    z = np.asarray(logits, dtype=np.float64)
    losses: Array = np.logaddexp(0.0, z) - z * np.asarray(labels, dtype=np.float64)
    return losses


def log_loss_sums(logits_BT: Array, labels_BT: Array, mask_BT: Array) -> Array:
    """Summed log loss of each task, shape [T], where the mask is true; 0 for none."""
    z_BT = np.where(mask_BT, logits_BT, 0.0)
    sums_T: Array = np.where(mask_BT, log_loss(z_BT, np.where(mask_BT, labels_BT, 0)), 0.0).sum(
        axis=0
    )
    return sums_T


def normalised_entropy(loss_sum: float, num_positives: float, num_examples: float) -> float:
    """Mean log loss over the entropy of the mean label; NaN unless both labels occur.

    Source: He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014.
    """
    if not 0 < num_positives < num_examples:
        return math.nan
    rate = num_positives / num_examples
    entropy = -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)
    return loss_sum / num_examples / entropy


def ne_gain(student_ne: float, shadow_ne: float) -> float:
    """Share of its shadow's NE that a student saves; negative if it is worse."""
    return (shadow_ne - student_ne) / shadow_ne if shadow_ne else math.nan


def transfer_ratio(student_ne: float, shadow_ne: float, teacher_ne: float) -> float:
    """Share of the teacher's advantage that reached the student; NaN without an advantage."""
    advantage = shadow_ne - teacher_ne
    return (shadow_ne - student_ne) / advantage if advantage > 0 else math.nan


class Quality:
    """Measures of one model on one task over a stream.

    NE and calibration are exact. AUC comes from a histogram of logits, 4096 bins over ± 12:
    examples of one bin count as ties, and `auc_error` bounds what that can change. GAUC is exact
    up to `gauc_rows` examples, then that of a random sample of users, chosen by their hash.
    """

    def __init__(self, gauc_rows: int = GAUC_ROWS) -> None:
        self.gauc_rows = gauc_rows
        self.counts_2K = np.zeros((2, NUM_BINS), dtype=np.int64)
        self.sums = np.zeros(2)  # log loss, probability
        self.level = 0  # users are kept whose hash ends in so many zero bits
        self.num_kept = 0
        self.kept: list[tuple[Array, Array, Array]] = []  # user int64, logit float32, label bool

    def update(self, logits_B: Array, labels_B: Array, users_B: Array | None = None) -> None:
        """Add examples; rows whose logit is not finite are left out.

        Args:
            logits_B: the model's logits.
            labels_B: 0 or 1.
            users_B: int64 key of each user, for GAUC.
        """
        finite_B = np.isfinite(logits_B)
        logits_B, labels_B = logits_B[finite_B], np.asarray(labels_B[finite_B], dtype=np.bool_)
        scaled_B = (logits_B.astype(np.float64) + LOGIT_LIMIT) * (NUM_BINS / (2 * LOGIT_LIMIT))
        bins_B = np.clip(scaled_B, 0, NUM_BINS - 1).astype(np.int64)
        for label in (0, 1):
            chosen = bins_B[labels_B == bool(label)]
            self.counts_2K[label] += np.bincount(chosen, minlength=NUM_BINS)
        self.sums += log_loss(logits_B, labels_B).sum(), probability(logits_B).sum()
        if users_B is not None:
            users_B = np.asarray(users_B[finite_B], dtype=np.int64)
            self._keep(users_B, logits_B.astype(np.float32), labels_B)

    def merge(self, other: Quality) -> None:
        """Add the examples of another stream."""
        self.counts_2K += other.counts_2K
        self.sums += other.sums
        self.level = max(self.level, other.level)
        for part in other.kept:
            self._keep(*part)
        self._shrink()

    def state(self) -> dict[str, Array]:
        """Plain arrays that `restore` takes back."""
        users, logits, labels = self._joined()
        return {
            "counts": self.counts_2K.copy(),
            "sums": self.sums.copy(),
            "level": np.array([self.level, self.gauc_rows], dtype=np.int64),
            "users": users,
            "logits": logits,
            "labels": labels,
        }

    @staticmethod
    def restore(state: Mapping[str, Any]) -> Quality:
        """The measures whose `state` this is; arrays or nested lists."""
        level, gauc_rows = (int(x) for x in state["level"])
        quality = Quality(gauc_rows)
        quality.level = level
        quality.counts_2K = np.array(state["counts"], dtype=np.int64)
        quality.sums = np.array(state["sums"], dtype=np.float64)
        quality._keep(
            np.array(state["users"], dtype=np.int64),
            np.array(state["logits"], dtype=np.float32),
            np.array(state["labels"], dtype=np.bool_),
        )
        return quality

    @property
    def num_examples(self) -> int:
        """Examples seen."""
        return int(self.counts_2K.sum())

    @property
    def num_positives(self) -> int:
        """Examples with label 1."""
        return int(self.counts_2K[1].sum())

    def ne(self) -> float:
        """Normalised entropy, 1 = learned nothing; NaN unless both labels occur."""
        return normalised_entropy(float(self.sums[0]), self.num_positives, self.num_examples)

    def calibration(self) -> float:
        """Sum of predictions over sum of labels; NaN without a positive."""
        return float(self.sums[1]) / self.num_positives if self.num_positives else math.nan

    def auc(self) -> float:
        """Area under the ROC curve, within `auc_error`; NaN unless both labels occur."""
        negatives_K, positives_K = self.counts_2K.astype(np.float64)
        pairs = negatives_K.sum() * positives_K.sum()
        below_K = np.cumsum(negatives_K) - negatives_K
        wins = (positives_K * (below_K + 0.5 * negatives_K)).sum()
        return float(wins / pairs) if pairs else math.nan

    def auc_error(self) -> float:
        """Largest possible difference of `auc` from the exact one: half the pairs within a bin."""
        negatives_K, positives_K = self.counts_2K.astype(np.float64)
        pairs = negatives_K.sum() * positives_K.sum()
        return float(0.5 * (negatives_K * positives_K).sum() / pairs) if pairs else math.nan

    def gauc(self) -> float:
        """AUC within each user, weighted by impressions; NaN unless a user has both labels.

        Source: Zhou et al., "Deep Interest Network", KDD 2018, section 6.3.
        """
        return grouped_auc(*self._joined())

    def _keep(self, users_U: Array, logits_U: Array, labels_U: Array) -> None:
        chosen_U = sampled(users_U, self.level)
        if chosen_U.any():
            self.kept.append((users_U[chosen_U], logits_U[chosen_U], labels_U[chosen_U]))
            self.num_kept += int(chosen_U.sum())
        if self.num_kept > self.gauc_rows:
            self._shrink()

    def _shrink(self) -> None:
        users_U, logits_U, labels_U = self._joined()
        chosen_U = sampled(users_U, self.level)
        while chosen_U.sum() > self.gauc_rows and self.level < 63:
            self.level += 1
            chosen_U = sampled(users_U, self.level)
        self.kept = [(users_U[chosen_U], logits_U[chosen_U], labels_U[chosen_U])]
        self.num_kept = int(chosen_U.sum())

    def _joined(self) -> tuple[Array, Array, Array]:
        none = (np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.bool_))
        users, logits, labels = zip(none, *self.kept, strict=True)
        return np.concatenate(users), np.concatenate(logits), np.concatenate(labels)


def sampled(users_U: Array, level: int) -> Array:
    """True for the users in a sample of one in 2**level, shape [U]."""
    hashes_U = splitmix64(users_U.view(np.uint64))
    chosen_U: Array = (hashes_U & np.uint64((1 << level) - 1)) == 0
    return chosen_U


def grouped_auc(users_U: Array, logits_U: Array, labels_U: Array) -> float:
    """Exact AUC of each user, ties counted half, weighted by its number of examples."""
    if not len(users_U):
        return math.nan
    order_U = np.lexsort((logits_U, users_U))
    users_U, logits_U, labels_U = users_U[order_U], logits_U[order_U], labels_U[order_U]
    new_user_U = np.r_[True, users_U[1:] != users_U[:-1]]
    new_tie_U = new_user_U | np.r_[True, logits_U[1:] != logits_U[:-1]]
    starts = np.flatnonzero(new_tie_U)
    sizes = np.diff(np.r_[starts, len(users_U)])
    ranks_U = np.repeat(starts + 0.5 * (sizes + 1), sizes)  # mean rank of a tie, from 1
    firsts = np.flatnonzero(new_user_U)
    totals = np.diff(np.r_[firsts, len(users_U)]).astype(np.float64)
    positives = np.add.reduceat(labels_U.astype(np.float64), firsts)
    rank_sums = np.add.reduceat(np.where(labels_U, ranks_U, 0.0), firsts) - positives * firsts
    pairs = positives * (totals - positives)
    both = pairs > 0
    if not both.any():
        return math.nan
    wins = rank_sums[both] - 0.5 * positives[both] * (positives[both] + 1)
    return float(np.average(wins / pairs[both], weights=totals[both]))
