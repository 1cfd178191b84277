"""Named tensors of a request to the columns that the encoder reads, and back to metadata. No torch.

A categorical or numeric feature has the shape [N], a sequence [N, L]; ids are BYTES or INT64 as
declared, numbers FP32. Short sequences are padded with "" or -1. `null` (JSON) and NaN are unknown
values, and a feature that is left out is unknown for all rows; only `domain` may not be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.schema import Encoding, Feature
from onnx_export.protocol import BadRequest, Tensor

REQUIRED = "domain"
FLOATS = ("FP16", "FP32", "FP64")
ELEMENT_TYPES: dict[str, set[type]] = {
    "string": {str},
    "int64": {int},
    "double": {int, float},
}
"""JSON values that a column takes; bool is none of them."""
INTS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32")


def datatype(feature: Feature) -> str:
    """Type of a feature's tensor in the model's metadata."""
    if feature.kind == "numeric":
        return "FP32"
    return "BYTES" if feature.dtype == "string" else "INT64"


def shape(feature: Feature) -> list[int]:
    """Shape of a feature's tensor in the model's metadata; -1 is any."""
    return [-1, -1] if feature.kind == "sequence" else [-1]


def columns(tensors: Sequence[Tensor], encoding: Encoding, max_rows: int) -> pa.Table:
    """One column a feature, N rows.

    Args:
        tensors: inputs of a request.
        encoding: the model's features.
        max_rows: largest N.

    Raises:
        BadRequest: a name, type or shape is not the model's.
    """
    declared = {f.name: f for f in encoding.features}
    given: dict[str, pa.Array] = {}
    for tensor in tensors:
        if tensor.name not in declared:
            known = ", ".join(declared)
            raise BadRequest(f"no input {tensor.name!r}; the model's inputs: {known}")
        if tensor.name in given:
            raise BadRequest(f"input {tensor.name!r} is given twice")
        require_shape(tensor, declared[tensor.name], tensors[0], max_rows)
        given[tensor.name] = column(tensor, declared[tensor.name])
    if not given or (REQUIRED in declared and REQUIRED not in given):
        raise BadRequest(f"inputs must hold {REQUIRED!r}, got {list(given)}")
    num_rows = tensors[0].shape[0]
    for name, feature in declared.items():
        if name not in given:
            given[name] = pa.nulls(num_rows, arrow_type(feature))
    return pa.table(given)


def require_shape(tensor: Tensor, feature: Feature, first: Tensor, max_rows: int) -> None:
    """Raise BadRequest unless a tensor has the feature's rank and as many rows as the first."""
    expected = "[N, L]" if feature.kind == "sequence" else "[N]"
    if len(tensor.shape) != len(shape(feature)):
        raise BadRequest(
            f"input {tensor.name!r} must have the shape {expected}, got {list(tensor.shape)}"
        )
    if tensor.shape[0] != first.shape[0]:
        raise BadRequest(
            f"input {tensor.name!r} must have {first.shape[0]} rows, as many as "
            f"{first.name!r}, got {tensor.shape[0]}"
        )
    if tensor.shape[0] > max_rows:
        raise BadRequest(f"a request may have {max_rows} rows, got {tensor.shape[0]}")


def arrow_type(feature: Feature) -> pa.DataType:
    """Type of a feature's column."""
    if feature.kind == "numeric":
        return pa.float64()
    ident = pa.string() if feature.dtype == "string" else pa.int64()
    return pa.list_(ident) if feature.kind == "sequence" else ident


def column(tensor: Tensor, feature: Feature) -> pa.Array:
    """A tensor's values as the feature's column."""
    kinds = {"FP32": FLOATS, "INT64": INTS, "BYTES": ("BYTES",)}
    if tensor.datatype not in kinds[datatype(feature)]:
        raise BadRequest(
            f"datatype of input {tensor.name!r} must be {datatype(feature)}, "
            f"got {tensor.datatype!r}"
        )
    if feature.kind != "sequence":
        return elements(tensor, arrow_type(feature))
    num_rows, length = tensor.shape
    ids = elements(tensor, arrow_type(feature).value_type)
    padding = "" if feature.dtype == "string" else -1
    kept = pc.fill_null(pc.not_equal(ids, padding), False)
    kept_NL = kept.to_numpy(zero_copy_only=False).reshape(num_rows, length)
    offsets = np.concatenate([[0], np.cumsum(kept_NL.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), ids.filter(kept))


def elements(tensor: Tensor, kind: pa.DataType) -> pa.Array:
    """Flat values as an array of that type.

    Raises:
        BadRequest: a value is of another type.
    """
    try:
        if isinstance(tensor.data, np.ndarray):
            return pa.array(tensor.data).cast(kind)
        found = set(map(type, tensor.data)) - {type(None)}
        if found == {bytes}:
            return pa.array(tensor.data, pa.binary()).cast(kind)
        wrong = found - ELEMENT_TYPES[str(kind)]
        if wrong:
            raise TypeError(f"got a {wrong.pop().__name__}")
        return pa.array(tensor.data, kind)
    except (pa.ArrowException, TypeError, OverflowError, UnicodeError) as error:
        raise BadRequest(
            f"input {tensor.name!r} holds a value that is no {tensor.datatype}: {error}"
        ) from error


def metadata(encoding: Encoding) -> list[dict[str, Any]]:
    """Name, datatype and shape of each input."""
    return [{"name": f.name, "datatype": datatype(f), "shape": shape(f)} for f in encoding.features]
