"""What an impression holds and how a model sees it: features, tasks, networks. No torch.

These values stand in the configuration file, in checkpoints and in snapshot manifests, so that
training and serving read one declaration.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Value(BaseModel):
    """A frozen value that refuses unknown keys, and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Feature(Value):
    """One declared field of an impression."""

    name: Name
    kind: Literal["categorical", "numeric", "sequence"]
    dtype: Literal["string", "int"] = "string"
    """Type of the ids of a categorical or sequence feature; ignored for numeric (float32)."""
    max_length: Annotated[int, Field(ge=1, le=1000)] = 20
    """Ids kept of a sequence: the first `max_length`; ignored for other kinds."""
    transform: Literal["none", "log1p"] = "none"
    """Applied to a numeric value before the network; log1p is sign(x) log(1 + |x|)."""


class Encoding(Value):
    """How features become row numbers of one hashed table: part of the model, like its weights."""

    features: tuple[Feature, ...]
    crosses: tuple[tuple[Name, ...], ...] = ()
    """Each a tuple of categorical features, hashed together into one more field."""
    table_rows: Annotated[int, Field(ge=16, le=2**31)] = 2**16

    @property
    def categorical(self) -> tuple[Feature, ...]:
        """Features with one id an impression, in declared order."""
        return self.of("categorical")

    @property
    def numeric(self) -> tuple[Feature, ...]:
        """Features with one float an impression, in declared order."""
        return self.of("numeric")

    @property
    def sequences(self) -> tuple[Feature, ...]:
        """Features with a bounded list of ids, in declared order."""
        return self.of("sequence")

    def of(self, kind: str) -> tuple[Feature, ...]:
        """Features of one kind, in declared order."""
        return tuple(f for f in self.features if f.kind == kind)

    @property
    def num_fields(self) -> int:
        """Embedded fields: categorical, then crosses, then pooled sequences."""
        return len(self.categorical) + len(self.crosses) + len(self.sequences)


class Network(Value):
    """Shape of a DCNv2 trunk over embedded fields and numeric inputs."""

    dim: Annotated[int, Field(ge=1, le=256)] = 8
    """Width of an embedding row."""
    cross_layers: Annotated[int, Field(ge=0, le=8)] = 2
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64, 32)
    """Widths of the MLP behind the cross layers."""
    table_rows: Annotated[int, Field(ge=16, le=2**31)] = 2**16
    crosses: tuple[tuple[Name, ...], ...] = ()


class Learning(Value):
    """Step sizes of one-pass training."""

    batch: Annotated[int, Field(ge=1)] = 128
    """Examples a step."""
    embedding_lr: Annotated[float, Field(gt=0)] = 0.2
    """Row-wise Adagrad on touched rows."""
    dense_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Adam on everything else."""
    seed: int = 0


class Distillation(Value):
    """How a student learns from the teacher's logged prediction (arXiv 2502.17494)."""

    mode: Literal["none", "kd", "kd_sa", "ah", "ah_sa"] = "ah"
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """Label scaling of the teacher's probability, clipped to 1."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """Scale of the auxiliary gradient into the shared trunk."""
    weight: Annotated[float, Field(ge=0)] = 3.0
    """Weight w of the auxiliary loss (ah, ah_sa)."""
    kd_lambda: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the teacher in the target of a single head (kd, kd_sa)."""


def named(features: Iterable[Feature], names: Iterable[str]) -> tuple[Feature, ...]:
    """Features of the given names, in the order of `names`.

    Raises:
        KeyError: a name is not declared.
    """
    declared = {f.name: f for f in features}
    return tuple(declared[name] for name in names)
