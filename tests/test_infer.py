"""Scoring requests: JSON and binary tensors, and what is wrong with bad ones."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from onnx_export import protocol
from onnx_export.session import Scorer
from tests.served import (
    ENCODING,
    IMPRESSIONS,
    INPUTS,
    Site,
    give_client,
    give_empty_site,
    give_site,
    outputs,
    sigmoid,
)

__all__ = ["give_client", "give_empty_site", "give_site"]  # fixtures, found here by pytest


def test_json_request_is_scored(site: Site, client: httpx.Client) -> None:
    response = client.post(site.infer_url, json={"id": "q1", "inputs": INPUTS})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("q1", "ads", "1000")
    assert answer["parameters"]["model_version"] == "1000"
    assert [(o["name"], o["datatype"], o["shape"]) for o in answer["outputs"]] == [
        ("click", "FP32", [3]),
        ("buy", "FP32", [3]),
    ]
    expected = Scorer.open(site.store.path("ads", 1000)).score_columns(IMPRESSIONS)
    np.testing.assert_allclose(outputs(answer), sigmoid(expected), rtol=1e-6)


def test_nested_and_flat_data_are_equal(site: Site, client: httpx.Client) -> None:
    def flattened(item: dict[str, Any]) -> dict[str, Any]:
        rows = item["data"]
        nested = isinstance(rows[0], list)
        return {**item, "data": [x for row in rows for x in row]} if nested else item

    nested = client.post(site.infer_url, json={"inputs": INPUTS}).json()
    flat = client.post(site.infer_url, json={"inputs": [flattened(i) for i in INPUTS]}).json()
    assert flat == nested


def as_binary(item: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """An input of the JSON form in the binary form."""
    values = np.array(item["data"], dtype=object).flatten()
    if item["datatype"] == "BYTES":
        raw = b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)
    else:
        raw = values.astype({"INT64": "<i8", "FP32": "<f4"}[item["datatype"]]).tobytes()
    head = {key: item[key] for key in ("name", "datatype", "shape")}
    return {**head, "parameters": {"binary_data_size": len(raw)}}, raw


def post_binary(
    site: Site, client: httpx.Client, inputs: list[dict[str, Any]], extra: dict[str, Any]
) -> httpx.Response:
    """All inputs but the last as binary tensors."""
    pairs = [as_binary(item) for item in inputs[:-1]]
    head = json.dumps({"inputs": [*(h for h, _ in pairs), inputs[-1]], **extra}).encode()
    body = head + b"".join(raw for _, raw in pairs)
    headers = {protocol.HEADER_LENGTH: str(len(head))}
    return client.post(site.infer_url, content=body, headers=headers)


def test_binary_request_is_scored_as_the_json_one(site: Site, client: httpx.Client) -> None:
    expected = outputs(client.post(site.infer_url, json={"inputs": INPUTS}).json())
    response = post_binary(site, client, INPUTS, {})
    assert outputs(response.json()) == expected
    assert protocol.HEADER_LENGTH not in response.headers


@pytest.mark.parametrize(
    "extra",
    [
        {"parameters": {"binary_data_output": True}},
        {
            "outputs": [
                {"name": "click", "parameters": {"binary_data": True}},
                {"name": "buy", "parameters": {"binary_data": True}},
            ]
        },
    ],
)
def test_binary_outputs_hold_the_json_values(
    site: Site, client: httpx.Client, extra: dict[str, Any]
) -> None:
    expected = outputs(client.post(site.infer_url, json={"inputs": INPUTS}).json())
    response = post_binary(site, client, INPUTS, extra)
    length = int(response.headers[protocol.HEADER_LENGTH])
    head, raw = json.loads(response.content[:length]), response.content[length:]
    assert [o["parameters"]["binary_data_size"] for o in head["outputs"]] == [12, 12]
    assert np.frombuffer(raw, "<f4").reshape(2, 3).tolist() == expected


def test_outputs_are_chosen_and_mixed(site: Site, client: httpx.Client) -> None:
    chosen = [{"name": "buy", "parameters": {"binary_data": True}}, {"name": "click"}]
    response = client.post(site.infer_url, json={"inputs": INPUTS, "outputs": chosen})
    length = int(response.headers[protocol.HEADER_LENGTH])
    head = json.loads(response.content[:length])
    assert [o["name"] for o in head["outputs"]] == ["buy", "click"]
    assert len(response.content) - length == 12
    assert len(head["outputs"][1]["data"]) == 3


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_compressed_request_is_scored(
    site: Site, client: httpx.Client, coding: str, compress: Callable[[bytes], bytes]
) -> None:
    expected = client.post(site.infer_url, json={"inputs": INPUTS}).json()
    body = compress(json.dumps({"inputs": INPUTS}).encode())
    headers = {"content-encoding": coding}
    assert client.post(site.infer_url, content=body, headers=headers).json() == expected
    for damaged in (b"plain", body[:-9]):
        response = client.post(site.infer_url, content=damaged, headers=headers)
        assert response.status_code == 400
    response = client.post(site.infer_url, content=body, headers={"content-encoding": "br"})
    assert "gzip or deflate, got 'br'" in response.json()["error"]


def test_no_rows_are_answered(site: Site, client: httpx.Client) -> None:
    empty = [{"name": "domain", "datatype": "BYTES", "shape": [0], "data": []}]
    answer = client.post(site.infer_url, json={"inputs": empty}).json()
    assert [(o["shape"], o["data"]) for o in answer["outputs"]] == [([0], []), ([0], [])]


def test_features_left_out_are_unknown_values(site: Site, client: httpx.Client) -> None:
    columns = IMPRESSIONS.select(["domain", "user"])
    unknown = {f.name: pa.nulls(3) for f in ENCODING.features[2:]}
    full = pa.table({**dict(zip(columns.column_names, columns.columns, strict=True)), **unknown})
    expected = Scorer.open(site.store.path("ads", 1000)).score_columns(full)
    nulls = {"name": "ad", "datatype": "BYTES", "shape": [3], "data": [None, None, None]}
    for inputs in (INPUTS[:2], [*INPUTS[:2], nulls]):
        answer = client.post(site.infer_url, json={"inputs": inputs}).json()
        np.testing.assert_allclose(outputs(answer), sigmoid(expected), rtol=1e-6)


def changed(index: int, **fields: Any) -> bytes:
    """A JSON request with one input changed."""
    inputs = [dict(item) for item in INPUTS]
    inputs[index].update(fields)
    return json.dumps({"inputs": inputs}).encode()


BAD_REQUESTS = {
    "not json": (b"{", "not JSON"),
    "deep json": (b"[" * 100_000, "not JSON"),
    "not an object": (b"[]", "the request must be an object"),
    "no inputs": (b"{}", "inputs must be an array, got None"),
    "empty inputs": (b'{"inputs": []}', "must hold 'domain'"),
    "no domain": (json.dumps({"inputs": INPUTS[1:]}).encode(), "must hold 'domain'"),
    "unknown name": (changed(0, name="page"), "no input 'page'; the model's inputs: domain"),
    "twice": (changed(1, **INPUTS[0]), "'domain' is given twice"),
    "unknown type": (changed(0, datatype="TEXT"), "must be one of BYTES"),
    "wrong type": (changed(0, datatype="INT64"), "'domain' must be BYTES, got 'INT64'"),
    "wrong values": (changed(1, data=["a", "b", "c"]), "'user' holds a value that is no INT64"),
    "fraction": (changed(1, data=[1.5, 2, 3]), "'user' holds a value that is no INT64"),
    "boolean": (changed(1, data=[True, 2, 3]), "no INT64: got a bool"),
    "too large": (changed(1, data=[2**70, 2, 3]), "'user' holds a value that is no INT64"),
    "surrogate": (changed(2, data=["\ud800", "a", "b"]), "'ad' holds a value that is no BYTES"),
    "text as number": (changed(5, data=["1", "2", "3"]), "'price' holds a value"),
    "rank": (changed(0, shape=[3, 1]), r"shape [N], got [3, 1]"),
    "sequence rank": (changed(3, shape=[3], data=[1, 2, 3]), r"shape [N, L], got [3]"),
    "rows": (changed(1, shape=[2], data=[1, 2]), "3 rows, as many as 'domain', got 2"),
    "elements": (changed(1, data=[1]), "must hold [3] elements, got 1"),
    "ragged": (changed(3, data=[[1, 2, 3], 4, 5]), "a row of 'history' must be an array"),
    "deep": (changed(0, shape=[1] * 9), "may have 8 sides, got 9"),
    "negative shape": (changed(0, shape=[-1]), "integers >= 0"),
    "no data": (changed(0, data=None), "data of input 'domain' must be an array"),
    "binary size": (changed(0, parameters={"binary_data_size": 9}), "must be in 0..0, got 9"),
    "too many rows": (
        changed(0, shape=[51], data=["a"] * 51),
        "a request may have 50 rows, got 51",
    ),
    "unknown output": (
        json.dumps({"inputs": INPUTS, "outputs": [{"name": "like"}]}).encode(),
        "no output 'like'",
    ),
}


@pytest.mark.parametrize(("body", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_bad_request_is_explained(
    site: Site, client: httpx.Client, body: bytes, message: str
) -> None:
    response = client.post(site.infer_url, content=body)
    assert response.status_code == 400
    assert message in response.json()["error"]
    assert client.post(site.infer_url, json={"inputs": INPUTS}).status_code == 200


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x01\x00", "ends within a length"),
        (struct.pack("<I", 9) + b"abc", "ends within an element"),
        (struct.pack("<I", 1) + b"\xff", "holds a value that is no BYTES"),
    ],
)
def test_bad_binary_strings_are_explained(
    site: Site, client: httpx.Client, raw: bytes, message: str
) -> None:
    size = {"binary_data_size": len(raw)}
    item = {"name": "domain", "datatype": "BYTES", "shape": [1], "parameters": size}
    head = json.dumps({"inputs": [item]}).encode()
    headers = {protocol.HEADER_LENGTH: str(len(head))}
    response = client.post(site.infer_url, content=head + raw, headers=headers)
    assert response.status_code == 400
    assert message in response.json()["error"]
    response = client.post(site.infer_url, content=head + raw + b"more", headers=headers)
    assert response.status_code == 400


def test_header_length_beyond_the_body_is_refused(site: Site, client: httpx.Client) -> None:
    response = client.post(site.infer_url, content=b"{}", headers={protocol.HEADER_LENGTH: "3"})
    assert response.status_code == 400
    assert "within the body of 2 bytes" in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/none/ready", 404),
        ("POST", "/v2/models/none/infer", 404),
        ("POST", "/v2/models/ads/versions/7/infer", 404),
        ("GET", "/v2/models/ads/versions/7", 404),
        ("GET", "/v2/models/ads/versions/7/ready", 404),
        ("GET", "/v2/models/ads/other", 404),
        ("GET", "/", 404),
        ("GET", "/v2/models", 404),
        ("POST", "/v2/infer", 404),
        ("DELETE", "/v2/models/ads", 405),
        ("GET", "/v2/models/ads/infer", 404),
    ],
)
def test_unknown_paths_are_refused(
    site: Site, client: httpx.Client, method: str, path: str, status: int
) -> None:
    response = client.request(method, site.url + path)
    assert response.status_code == status
    assert response.json()["error"]
