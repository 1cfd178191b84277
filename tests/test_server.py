"""The server: protocol, errors, health, and swaps under load."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from prometheus_client.registry import REGISTRY

from models.encoding import Encoder
from models.schema import Encoding, Feature, Network
from models.serving_graph import ServingGraph
from onnx_export import protocol
from onnx_export.manifest import WEIGHTS
from onnx_export.publish import Publisher
from onnx_export.server import serve
from onnx_export.session import Logits, Scorer
from onnx_export.store import SnapshotStore

TASKS = ("click", "buy")
ENCODING = Encoding(
    features=(
        Feature(name="domain", kind="categorical"),
        Feature(name="user", kind="categorical", dtype="int"),
        Feature(name="ad", kind="categorical"),
        Feature(name="history", kind="sequence", dtype="int", max_length=4),
        Feature(name="tags", kind="sequence", max_length=3),
        Feature(name="price", kind="numeric", transform="log1p"),
    ),
    crosses=(("domain", "ad"),),
    table_rows=300,
)
IMPRESSIONS = pa.table(
    {
        "domain": ["feed", "feed", "reels"],
        "user": [7, 7, 2**40],
        "ad": ["a1", "ä2", ""],
        "history": [[1, 2, 3], [], [4]],
        "tags": [["x"], ["y", "z"], []],
        "price": [1.5, -2.0, 0.0],
    }
)
INPUTS: list[dict[str, Any]] = [
    {"name": "domain", "datatype": "BYTES", "shape": [3], "data": ["feed", "feed", "reels"]},
    {"name": "user", "datatype": "INT64", "shape": [3], "data": [7, 7, 2**40]},
    {"name": "ad", "datatype": "BYTES", "shape": [3], "data": ["a1", "ä2", ""]},
    {
        "name": "history",
        "datatype": "INT64",
        "shape": [3, 3],
        "data": [[1, 2, 3], [-1, -1, -1], [4, -1, -1]],
    },
    {"name": "tags", "datatype": "BYTES", "shape": [3, 2], "data": ["x", "", "y", "z", "", ""]},
    {"name": "price", "datatype": "FP32", "shape": [3], "data": [1.5, -2, 0]},
]
MAX_ROWS = 50


@dataclass
class Site:
    """A served store, and the model behind its snapshots."""

    store: SnapshotStore
    graph: ServingGraph
    publisher: Publisher
    port: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def infer_url(self) -> str:
        """Where the model scores."""
        return f"{self.url}/v2/models/ads/infer"

    def publish(self, version: int) -> Logits:
        """Other weights as the next version; their logits on IMPRESSIONS."""
        source = torch.Generator().manual_seed(version)
        with torch.no_grad():
            for parameter in self.graph.parameters():
                parameter.normal_(0.0, 0.3, generator=source)
            self.graph.table[-1] = 0.0
        inputs = Encoder(ENCODING).encode(IMPRESSIONS)
        arrays = (inputs.ids_BF, inputs.sequence_BL, inputs.numeric_BN)
        with torch.no_grad():
            logits: Logits = self.graph(*(torch.from_numpy(a) for a in arrays)).numpy()
        outcome = self.publisher.publish(
            version,
            newest_example_ms=version,
            num_examples=1,
            recent=inputs,
            torch_logits=logits,
            quality={},
            ne={},
        )
        assert outcome.published
        return logits

    def run(self) -> Future[None]:
        """Serve in a thread until `stopped`."""
        listening = threading.Event()

        def on_ready(port: int) -> None:
            self.port = port
            listening.set()

        pool = ThreadPoolExecutor(1)
        running = pool.submit(
            serve,
            self.store.root,
            ("ads",),
            "127.0.0.1",
            0,
            0.01,
            MAX_ROWS,
            on_ready,
            self.stopped.is_set,
        )
        pool.shutdown(wait=False)
        wait_until(lambda: listening.is_set() or running.done())
        return running


def wait_until(claim: Callable[[], bool], within_s: float = 20.0) -> None:
    """Return once the claim holds; fail after a while."""
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, "still not so"
        threading.Event().wait(0.005)


@pytest.fixture
def empty_site(store: SnapshotStore) -> Iterator[Site]:
    torch.set_num_threads(1)
    graph = ServingGraph(ENCODING, Network(dim=4, hidden=(8,)), len(TASKS))
    site = Site(store, graph, Publisher(store, "ads", graph, ENCODING, TASKS))
    running = site.run()
    yield site
    site.stopped.set()
    running.result(timeout=20)


@pytest.fixture
def site(empty_site: Site) -> Site:
    """A site that serves version 1000."""
    empty_site.publish(1000)
    wait_until(lambda: httpx.get(f"{empty_site.url}/v2/health/ready").status_code == 200)
    return empty_site


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as session:
        yield session


def sigmoid(logits: Logits) -> list[list[float]]:
    """Probabilities by task."""
    probabilities: list[list[float]] = (1 / (1 + np.exp(-logits.astype(np.float64)))).T.tolist()
    return probabilities


def outputs(answer: dict[str, Any]) -> list[list[float]]:
    """Values of a JSON response by output."""
    return [item["data"] for item in answer["outputs"]]


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


def test_version_that_serves_can_be_named(site: Site, client: httpx.Client) -> None:
    base = f"{site.url}/v2/models/ads/versions/1000"
    assert client.post(f"{base}/infer", json={"inputs": INPUTS}).status_code == 200
    assert client.get(f"{base}/ready").json() == {"name": "ads", "ready": True}
    assert client.get(base).json()["versions"] == ["1000"]


def test_metadata_lists_inputs_and_outputs(site: Site, client: httpx.Client) -> None:
    server = client.get(f"{site.url}/v2").json()
    assert server["name"] == "exfm"
    assert "binary_tensor_data" in server["extensions"]
    model = client.get(f"{site.url}/v2/models/ads").json()
    assert (model["name"], model["versions"]) == ("ads", ["1000"])
    assert [(i["name"], i["datatype"], i["shape"]) for i in model["inputs"]] == [
        ("domain", "BYTES", [-1]),
        ("user", "INT64", [-1]),
        ("ad", "BYTES", [-1]),
        ("history", "INT64", [-1, -1]),
        ("tags", "BYTES", [-1, -1]),
        ("price", "FP32", [-1]),
    ]
    assert model["outputs"] == [
        {"name": "click", "datatype": "FP32", "shape": [-1]},
        {"name": "buy", "datatype": "FP32", "shape": [-1]},
    ]


def test_server_is_live_before_it_is_ready(empty_site: Site, client: httpx.Client) -> None:
    assert client.get(f"{empty_site.url}/v2/health/live").json() == {"live": True}
    for path in ("/v2/health/ready", "/v2/models/ads/ready"):
        response = client.get(empty_site.url + path)
        assert response.status_code == 503
        assert response.json()["ready"] is False
    assert client.post(empty_site.infer_url, json={"inputs": INPUTS}).status_code == 404
    empty_site.publish(1000)
    wait_until(lambda: client.get(f"{empty_site.url}/v2/health/ready").status_code == 200)
    assert client.get(f"{empty_site.url}/v2/models/ads/ready").json()["ready"] is True


def sample(name: str, **labels: str) -> float:
    """A metric's value; 0 before it was first written."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_metrics_count_requests_and_rows(site: Site, client: httpx.Client) -> None:
    good = sample("exfm_serve_requests_total", model="ads", status="200")
    bad = sample("exfm_serve_requests_total", model="ads", status="400")
    rows = sample("exfm_serve_rows_total", model="ads")
    client.post(site.infer_url, json={"inputs": INPUTS})
    client.post(site.infer_url, content=b"{")
    assert sample("exfm_serve_requests_total", model="ads", status="200") == good + 1
    assert sample("exfm_serve_requests_total", model="ads", status="400") == bad + 1
    assert sample("exfm_serve_rows_total", model="ads") == rows + 3
    text = client.get(f"{site.url}/metrics").text
    assert 'exfm_serve_version_seconds{model="ads"} 1.0' in text
    assert 'exfm_serve_request_seconds_count{model="ads"}' in text


def exchange(site: Site, data: bytes) -> bytes:
    """What the server sends for raw bytes until it closes."""
    with socket.create_connection(("127.0.0.1", site.port), timeout=20) as connection:
        connection.sendall(data)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received


def test_transport_takes_pipelined_split_and_chunked_requests(site: Site) -> None:
    live = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    body = json.dumps({"inputs": INPUTS}).encode()
    chunked = (
        b"POST /v2/models/ads/infer HTTP/1.1\r\ntransfer-encoding: chunked\r\n"
        b"connection: close\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    )
    received = exchange(site, live * 3 + chunked)
    assert received.count(b"HTTP/1.1 200 OK") == 4
    assert received.count(b'{"live": true}') == 3
    assert b'"model_version": "1000"' in received


def test_transport_refuses_what_is_not_http(site: Site, client: httpx.Client) -> None:
    assert exchange(site, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400")
    large = b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000 + b"\r\n\r\n"
    assert exchange(site, large).startswith(b"HTTP/1.1 431")
    assert client.get(f"{site.url}/v2/health/live").status_code == 200


def test_transport_asks_for_the_body(site: Site) -> None:
    head = b"POST /v2/models/ads/infer HTTP/1.1\r\nexpect: 100-continue\r\n"
    received = exchange(site, head + b"content-length: 2\r\nconnection: close\r\n\r\n{}")
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400")


def test_swaps_under_load_fail_no_request(site: Site, client: httpx.Client) -> None:
    expected = {"1000": Scorer.open(site.store.path("ads", 1000)).score_columns(IMPRESSIONS)}
    answers: list[tuple[int, Any]] = []
    done = threading.Event()

    async def load() -> None:
        async with httpx.AsyncClient(trust_env=False) as session:
            while not done.is_set():
                response = await session.post(site.infer_url, json={"inputs": INPUTS})
                answers.append((response.status_code, response.json()))

    async def loads() -> None:
        await asyncio.gather(*(load() for _ in range(3)))

    before = sample("exfm_serve_swaps_total", model="ads")
    site.store.keep = 2
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, loads())
        for version in range(1001, 1051):
            expected[str(version)] = site.publish(version)
            served = f"{site.url}/v2/models/ads/versions/{version}/ready"
            wait_until(lambda url=served: client.get(url).status_code == 200)  # type: ignore[misc]
        done.set()
        running.result(timeout=20)
    assert sample("exfm_serve_swaps_total", model="ads") == before + 50
    assert {status for status, _ in answers} == {200}
    versions = [int(answer["model_version"]) for _, answer in answers]
    assert len(set(versions)) > 25
    for _, answer in answers:
        logits = expected[answer["model_version"]]
        np.testing.assert_allclose(outputs(answer), sigmoid(logits), rtol=1e-4)


def test_corrupted_snapshot_is_refused_while_the_last_good_one_serves(
    site: Site, client: httpx.Client
) -> None:
    refused = sample("exfm_serve_refused_versions_total", model="ads")
    with site.store._locked("ads"):  # published, damaged and pointed at in one step
        path = site.store.path("ads", 1000)
        damaged = site.store.path("ads", 2000)
        damaged.mkdir()
        for file in path.iterdir():
            (damaged / file.name).write_bytes(file.read_bytes())
        weights = bytearray((path / WEIGHTS).read_bytes())
        weights[17] ^= 1
        (damaged / WEIGHTS).write_bytes(weights)
        pointer = path.parent / "latest.json"
        pointer.write_text(json.dumps({"version": 2000, "newest": 2000, "first": 1000}))
    wait_until(lambda: sample("exfm_serve_refused_versions_total", model="ads") > refused)
    answer = client.post(site.infer_url, json={"inputs": INPUTS}).json()
    assert answer["model_version"] == "1000"
    site.publish(3000)
    served = f"{site.url}/v2/models/ads/versions/3000/ready"
    wait_until(lambda: client.get(served).status_code == 200)
    assert sample("exfm_serve_refused_versions_total", model="ads") == refused + 1


def test_restart_beside_a_corrupted_snapshot_serves_the_one_before(
    site: Site, client: httpx.Client
) -> None:
    site.publish(2000)
    (site.store.path("ads", 2000) / WEIGHTS).write_bytes(b"")
    other = Site(site.store, site.graph, site.publisher)
    running = other.run()
    assert client.get(f"{other.url}/v2/models/ads").json()["versions"] == ["1000"]
    other.stopped.set()
    running.result(timeout=20)


def test_rollback_is_followed(site: Site, client: httpx.Client) -> None:
    site.publish(2000)
    for version in (2000, 1000):
        served = f"{site.url}/v2/models/ads/versions/{version}/ready"
        wait_until(lambda url=served: client.get(url).status_code == 200)  # type: ignore[misc]
        if version == 2000:
            site.store.rollback("ads")


def test_address_in_use_is_an_error(site: Site) -> None:
    with pytest.raises(OSError, match=str(site.port)):
        serve(site.store.root, (), "127.0.0.1", site.port, 1.0, 1, lambda port: None, lambda: True)


def test_server_imports_no_torch() -> None:
    code = (
        "import sys; import onnx_export.server; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'onnxscript', 'bytewax')))"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
