"""Bodies of the Open Inference Protocol v2: JSON, and its binary tensor extension.

A binary body is JSON (its length in the header `Inference-Header-Content-Length`), then the raw
little-endian data of the tensors that announce a `binary_data_size`; an element of BYTES has its
length in front, as four bytes.

Source: https://github.com/kserve/open-inference-protocol and Triton's `binary_tensor_data`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

HEADER_LENGTH = "inference-header-content-length"
NUMPY_TYPES = {
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
JSON_NAMES: dict[type, str] = {dict: "an object", list: "an array", str: "a string"}
MAX_RANK = 8
LENGTH = struct.Struct("<I")

Array = np.ndarray[Any, Any]


class BadRequest(ValueError):
    """The request breaks a rule of the protocol or of the model; the message says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One named input: a flat array of its type, or a flat list of JSON values."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array | list[Any]
    """Flat, row by row. BYTES: a list of str (JSON) or bytes (binary)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """A decoded request."""

    id: str
    inputs: Sequence[Tensor]
    outputs: Mapping[str, bool] | None
    """Outputs asked for, and whether each is wanted binary; None: all."""
    binary: bool
    """Whether outputs are binary when `outputs` is None."""


def decode(body: bytes, header_length: str | None) -> InferRequest:
    """A request of the infer endpoint.

    Args:
        body: of the HTTP request.
        header_length: value of `Inference-Header-Content-Length`, None without one.

    Raises:
        BadRequest: it is not one.
    """
    end = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length) > len(body):
            raise BadRequest(
                f"{HEADER_LENGTH} must be within the body of {len(body)} bytes, "
                f"got {header_length!r}"
            )
        end = int(header_length)
    try:
        request = json.loads(body[:end])
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    request = expect(dict, request, "the request")
    tensors, rest = [], memoryview(body)[end:]
    for index, item in enumerate(expect(list, request.get("inputs"), "inputs")):
        tensor, used = decode_tensor(expect(dict, item, f"inputs[{index}]"), rest)
        tensors.append(tensor)
        rest = rest[used:]
    if rest:
        raise BadRequest(f"{len(rest)} bytes follow the last binary tensor")
    parameters = expect(dict, request.get("parameters", {}), "parameters")
    binary = bool(parameters.get("binary_data_output", False))
    return InferRequest(
        id=expect(str, request.get("id", ""), "id"),
        inputs=tensors,
        outputs=decode_outputs(request["outputs"], binary) if request.get("outputs") else None,
        binary=binary,
    )


def decode_outputs(outputs: Any, binary: bool) -> dict[str, bool]:
    """Names of the outputs asked for, and whether each is wanted binary."""
    wanted = {}
    for index, item in enumerate(expect(list, outputs, "outputs")):
        output = expect(dict, item, f"outputs[{index}]")
        parameters = expect(dict, output.get("parameters", {}), f"outputs[{index}].parameters")
        name = expect(str, output.get("name"), f"outputs[{index}].name")
        wanted[name] = bool(parameters.get("binary_data", binary))
    return wanted


def decode_tensor(item: dict[str, Any], rest: memoryview) -> tuple[Tensor, int]:
    """One input, and how many bytes of the binary part it took."""
    name = expect(str, item.get("name"), "name of an input")
    datatype = expect(str, item.get("datatype"), f"datatype of input {name!r}")
    shape = expect(list, item.get("shape"), f"shape of input {name!r}")
    if len(shape) > MAX_RANK:
        raise BadRequest(f"shape of input {name!r} may have {MAX_RANK} sides, got {len(shape)}")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise BadRequest(f"shape of input {name!r} must hold integers >= 0, got {shape}")
    if datatype != "BYTES" and datatype not in NUMPY_TYPES:
        known = ", ".join(["BYTES", *NUMPY_TYPES])
        raise BadRequest(f"datatype of input {name!r} must be one of {known}, got {datatype!r}")
    parameters = expect(dict, item.get("parameters", {}), f"parameters of input {name!r}")
    size = parameters.get("binary_data_size")
    data: Array | list[Any]
    if size is None:
        size, data = 0, flat(item.get("data"), len(shape), name)
    elif type(size) is not int or not 0 <= size <= len(rest):
        raise BadRequest(f"binary_data_size of {name!r} must be in 0..{len(rest)}, got {size!r}")
    else:
        data = raw(rest[:size], datatype, name)
    if len(data) != math.prod(shape):
        raise BadRequest(f"input {name!r} must hold {shape} elements, got {len(data)}")
    return Tensor(name=name, datatype=datatype, shape=tuple(shape), data=data), size


def raw(data: memoryview, datatype: str, name: str) -> Array | list[Any]:
    """Elements of a binary tensor."""
    if datatype == "BYTES":
        return split_bytes(data, name)
    dtype = np.dtype(NUMPY_TYPES[datatype])
    if len(data) % dtype.itemsize:
        raise BadRequest(
            f"input {name!r}: {len(data)} bytes are no whole number of {datatype} elements"
        )
    return np.frombuffer(data, dtype)


def split_bytes(data: memoryview, name: str) -> list[Any]:
    """Elements of a binary BYTES tensor."""
    whole, elements, position = bytes(data), [], 0
    while position < len(whole):
        start = position + LENGTH.size
        if start > len(whole):
            raise BadRequest(f"input {name!r}: its binary data ends within a length")
        position = start + LENGTH.unpack_from(whole, position)[0]
        if position > len(whole):
            raise BadRequest(f"input {name!r}: its binary data ends within an element")
        elements.append(whole[start:position])
    return elements


def flat(data: Any, depth: int, name: str) -> list[Any]:
    """Elements of JSON `data`, which may be nested by its shape or flat."""
    values: list[Any] = expect(list, data, f"data of input {name!r}")
    for _ in range(depth - 1):
        if not any(isinstance(value, list) for value in values):
            break
        values = [x for value in values for x in expect(list, value, f"a row of {name!r}")]
    return values


def expect(kind: type, value: Any, what: str) -> Any:
    """The value, which must be of that type.

    Raises:
        BadRequest: it is not.
    """
    if isinstance(value, kind):
        return value
    raise BadRequest(f"{what} must be {JSON_NAMES[kind]}, got {repr(value)[:80]}")


def encode(
    head: dict[str, Any], outputs: Mapping[str, Array], binary: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """A response of the infer endpoint.

    Args:
        head: its fields besides `outputs`.
        outputs: a float32 array [N] of each name.
        binary: which of them go as raw data.

    Returns:
        The body, and the length of its JSON if raw data follows, else None.
    """
    described, blobs = [], []
    for name, values in outputs.items():
        item: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if binary[name]:
            blobs.append(values.astype("<f4").tobytes())
            item["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            item["data"] = values.tolist()
        described.append(item)
    text = json.dumps({**head, "outputs": described}).encode()
    return b"".join([text, *blobs]), len(text) if blobs else None
