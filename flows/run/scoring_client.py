"""Asks the server of a run for scores, in the Open Inference Protocol: JSON over HTTP."""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from models.schema import Feature

TIMEOUT_S = 5.0


class Client:
    """One connection to the run's server, wherever it is now."""

    def __init__(self, address_file: Path) -> None:
        self._address_file = address_file
        self._connection: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of an answer.

        Raises:
            OSError: no answer.
            http.client.HTTPException: no answer that can be read.
        """
        if self._connection is None:
            netloc = urlsplit(address(self._address_file)).netloc
            self._connection = http.client.HTTPConnection(netloc, timeout=TIMEOUT_S)
        try:
            headers = {"Content-Type": "application/json"} if body else {}
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def close(self) -> None:
        """Drop the connection; the next call looks for the server again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def address(file: Path) -> str:
    """The server's address in its file; ConnectionError if it is not up."""
    try:
        return str(json.loads(file.read_bytes())["http"])
    except (OSError, ValueError, KeyError) as error:
        raise ConnectionError(f"{file}: the server has not announced itself") from error


def request_body(table: pa.Table, features: Sequence[Feature]) -> bytes:
    """An infer request on the rows of a table, JSON."""
    return json.dumps({"inputs": [tensor(table[f.name], f) for f in features]}).encode()


def tensor(column: pa.ChunkedArray, feature: Feature) -> dict[str, Any]:
    """One input: [N], or [N, L] padded for a sequence."""
    datatype = "BYTES" if feature.dtype == "string" else "INT64"
    values = column.to_pylist()
    if feature.kind != "sequence":
        kind = "FP32" if feature.kind == "numeric" else datatype
        return {"name": feature.name, "datatype": kind, "shape": [len(values)], "data": values}
    padding: str | int = "" if feature.dtype == "string" else -1
    lists = [(items or [])[: feature.max_length] for items in values]
    length = max(1, *(len(items) for items in lists))
    data = [item for items in lists for item in [*items, *[padding] * (length - len(items))]]
    return {
        "name": feature.name,
        "datatype": datatype,
        "shape": [len(lists), length],
        "data": data,
    }


def fault(status: int, body: bytes, tasks: Sequence[str], rows: int) -> str | None:
    """Why an answer counts as failed, or None."""
    if status != 200:
        return f"status_{status}"
    try:
        outputs = {o["name"]: o["data"] for o in json.loads(body)["outputs"]}
        scores = [float(value) for task in tasks for value in outputs[task]]
    except (ValueError, KeyError, TypeError):
        return "unreadable"
    good = len(scores) == rows * len(tasks) and all(
        math.isfinite(score) and 0.0 <= score <= 1.0 for score in scores
    )
    return None if good else "not_probabilities"
