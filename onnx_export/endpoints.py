"""The Open Inference Protocol v2 over the live models: one request in, one response out.

    GET  /v2, /v2/health/live, /v2/health/ready, /metrics
    GET  /v2/models/{model}[/versions/{version}][/ready]
    POST /v2/models/{model}[/versions/{version}]/infer

An output is the probability of a task, FP32 of shape [N]. Errors are `{"error": message}`.
"""

from __future__ import annotations

import json
import time
import zlib
from typing import Any
from urllib.parse import unquote

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import REGISTRY

from monitoring import metrics
from onnx_export import features, protocol
from onnx_export.http import MAX_BODY_BYTES, Request, Response
from onnx_export.live import LiveModels
from onnx_export.protocol import Array, BadRequest
from onnx_export.session import Logits, Scorer

EXTENSIONS = ["binary_tensor_data"]
PLATFORM = "onnxruntime_onnx"


class NotServed(LookupError):
    """No such model, version or path."""


class Endpoints:
    """Answers requests.

    Args:
        live: the models.
        version: of this server, for its metadata.
        max_rows: candidates a request may hold.
    """

    def __init__(self, live: LiveModels, *, version: str, max_rows: int) -> None:
        self._live = live
        self._version = version
        self._max_rows = max_rows
        self._meters: dict[str, Meters] = {}

    def __call__(self, request: Request) -> Response:
        """The response; errors of the client included."""
        try:
            parts = [unquote(part) for part in request.path.strip("/").split("/")]
            if request.method == "POST" and parts[-1] == "infer":
                return self._infer(parts, request)
            if request.method not in ("GET", "HEAD"):
                return error(405, f"{request.method} is not allowed on {request.path}")
            return self._get(parts, request.path)
        except NotServed as reason:
            return error(404, str(reason))

    def _get(self, parts: list[str], path: str) -> Response:
        if parts == ["metrics"]:
            return Response(body=generate_latest(REGISTRY), content_type=CONTENT_TYPE_LATEST)
        if parts == ["v2"]:
            return answer({"name": "exfm", "version": self._version, "extensions": EXTENSIONS})
        if parts == ["v2", "health", "live"]:
            return answer({"live": True})
        if parts == ["v2", "health", "ready"]:
            ready = self._live.ready()
            return answer({"ready": ready}, 200 if ready else 503)
        if parts[:2] != ["v2", "models"] or len(parts) < 3:
            raise NotServed(f"no such path: {path}")
        rest = parts[3:]
        version = rest[1] if len(rest) >= 2 and rest[0] == "versions" else None
        rest = rest[2:] if version is not None else rest
        if rest == ["ready"]:
            return self._model_ready(parts[2], version)
        if rest:
            raise NotServed(f"no such path: {path}")
        return answer(describe(self._scorer(parts[2], version)))

    def _model_ready(self, model: str, version: str | None) -> Response:
        if model in self._live.names() and self._live.get(model) is None:
            return answer({"name": model, "ready": False}, 503)
        return answer({"name": self._scorer(model, version).manifest.model, "ready": True})

    def _scorer(self, model: str, version: str | None) -> Scorer:
        scorer = self._live.get(model)
        if scorer is None:
            known = ", ".join(self._live.names())
            raise NotServed(f"{model!r} has no snapshot yet, or is none of the models: {known}")
        if version not in (None, "", str(scorer.version)):
            raise NotServed(f"{model}: version {version} is not loaded, {scorer.version} is")
        return scorer

    def _infer(self, parts: list[str], request: Request) -> Response:
        started = time.perf_counter()
        versioned = len(parts) == 6 and parts[3] == "versions"
        if parts[:2] != ["v2", "models"] or not (len(parts) == 4 or versioned):
            raise NotServed(f"no such path: {request.path}")
        scorer = self._scorer(parts[2], parts[4] if versioned else None)
        meters = self._meters.get(parts[2]) or self._meters.setdefault(parts[2], Meters(parts[2]))
        try:
            response, num_rows = infer(scorer, request, self._max_rows)
        except BadRequest as reason:
            meters.bad.inc()
            return error(400, str(reason))
        except Exception:
            meters.failed.inc()
            raise
        meters.good.inc()
        meters.rows.inc(num_rows)
        meters.seconds.observe(time.perf_counter() - started)
        return response


class Meters:
    """A model's metrics, looked up once."""

    def __init__(self, model: str) -> None:
        self.good = metrics.SERVE_REQUESTS.labels(model, "200")
        self.bad = metrics.SERVE_REQUESTS.labels(model, "400")
        self.failed = metrics.SERVE_REQUESTS.labels(model, "500")
        self.rows = metrics.SERVE_ROWS.labels(model)
        self.seconds = metrics.SERVE_SECONDS.labels(model)


def infer(scorer: Scorer, request: Request, max_rows: int) -> tuple[Response, int]:
    """Score one request's rows.

    Returns:
        The response, and the number of rows.

    Raises:
        BadRequest: the request is not one for this model.
    """
    body = plain(request.body, request.headers.get("content-encoding", "identity"))
    decoded = protocol.decode(body, request.headers.get(protocol.HEADER_LENGTH))
    outputs = decoded.outputs or dict.fromkeys(scorer.tasks, decoded.binary)
    unknown = [name for name in outputs if name not in scorer.tasks]
    if unknown:
        raise BadRequest(f"no output {unknown[0]!r}; the model's outputs: {list(scorer.tasks)}")
    table = features.columns(decoded.inputs, scorer.manifest.encoding, max_rows)
    probabilities_BT = sigmoid(scorer.score_columns(table))
    chosen = {name: probabilities_BT[:, scorer.tasks.index(name)] for name in outputs}
    head: dict[str, Any] = {
        "model_name": scorer.manifest.model,
        "model_version": str(scorer.version),
        "parameters": {
            "model_version": str(scorer.version),
            "newest_example_ms": scorer.manifest.newest_example_ms,
        },
    }
    if decoded.id:
        head["id"] = decoded.id
    body, length = protocol.encode(head, chosen, outputs)
    if length is None:
        return Response(body=body), table.num_rows
    headers = {protocol.HEADER_LENGTH: str(length)}
    binary = Response(body=body, content_type="application/octet-stream", headers=headers)
    return binary, table.num_rows


def plain(body: bytes, coding: str) -> bytes:
    """A body without its compression.

    Raises:
        BadRequest: it is compressed in another way, damaged or too large.
    """
    if coding == "identity":
        return body
    if coding not in ("gzip", "deflate"):
        raise BadRequest(f"content-encoding must be identity, gzip or deflate, got {coding!r}")
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # finds out which of the two it is
    try:
        whole = inflate.decompress(body, MAX_BODY_BYTES)
    except zlib.error as reason:
        raise BadRequest(f"the body is not {coding}: {reason}") from reason
    if not inflate.eof:
        raise BadRequest(f"the body must end within {MAX_BODY_BYTES} bytes of {coding}")
    return whole


def sigmoid(logits_BT: Logits) -> Array:
    """Probabilities, float32; exact at both ends."""
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-logits_BT))


def describe(scorer: Scorer) -> dict[str, Any]:
    """The model's metadata."""
    return {
        "name": scorer.manifest.model,
        "versions": [str(scorer.version)],
        "platform": PLATFORM,
        "inputs": features.metadata(scorer.manifest.encoding),
        "outputs": [{"name": t, "datatype": "FP32", "shape": [-1]} for t in scorer.tasks],
    }


def answer(value: dict[str, Any], status: int = 200) -> Response:
    """A JSON response."""
    return Response(status=status, body=json.dumps(value).encode())


def error(status: int, message: str) -> Response:
    """An error in the protocol's form."""
    return answer({"error": message}, status)
