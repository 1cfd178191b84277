"""The server: metadata, health, transport, and swaps under load."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.registry import REGISTRY

from onnx_export.manifest import WEIGHTS
from onnx_export.server import STOP_POLL_S, serve
from onnx_export.session import Scorer
from tests.served import (
    IMPRESSIONS,
    INPUTS,
    Site,
    give_client,
    give_empty_site,
    give_site,
    outputs,
    sigmoid,
    wait_until,
)

__all__ = ["give_client", "give_empty_site", "give_site"]  # fixtures, found here by pytest


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


def test_transport_refuses_a_header_that_never_ends(site: Site) -> None:
    endless = b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000
    assert exchange(site, endless).startswith(b"HTTP/1.1 431")


def test_transport_takes_a_large_body_with_the_next_head_behind_it(site: Site) -> None:
    body = b" " * 2**20
    head = b"POST /v2/models/ads/infer HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
    last = b"GET /v2/health/live HTTP/1.1\r\nconnection: close\r\n\r\n"
    received = exchange(site, head + body + last)
    assert received.count(b"HTTP/1.1 400") == 1
    assert received.endswith(b'{"live": true}')


def test_transport_stays_with_http_1_where_an_upgrade_is_offered(site: Site) -> None:
    """As RFC 9110, section 7.8, allows; Java's client offers HTTP/2 with each request."""
    offer = b"GET /v2/health/live HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    body = json.dumps({"inputs": INPUTS}).encode()
    scored = (
        b"POST /v2/models/ads/infer HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    last = b"GET /v2 HTTP/1.1\r\nconnection: close\r\n\r\n"
    received = exchange(site, offer * 2 + scored + last)
    assert received.count(b"HTTP/1.1 ") == received.count(b"HTTP/1.1 200 OK") == 4
    assert b'"model_version": "1000"' in received


def test_server_that_stops_sends_what_it_has_answered(empty_site: Site) -> None:
    other = Site(empty_site.store, empty_site.graph, empty_site.publisher)
    running = other.run()
    ask = b"GET /metrics HTTP/1.1\r\n\r\n" * 600
    with socket.create_connection(("127.0.0.1", other.port), timeout=20) as connection:
        connection.sendall(ask)
        received = connection.recv(1)  # all were answered, and wait in the server
        other.stopped.set()
        threading.Event().wait(10 * STOP_POLL_S)
        while piece := connection.recv(2**20):
            received += piece
    running.result(timeout=20)
    last = received[received.rindex(b"HTTP/1.1 200 OK") :]
    head, _, body = last.partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in head + b"\r\n"
    assert received.count(b"HTTP/1.1 200 OK") == 600


def test_server_that_stops_answers_a_request_that_has_begun(empty_site: Site) -> None:
    other = Site(empty_site.store, empty_site.graph, empty_site.publisher)
    running = other.run()
    with socket.create_connection(("127.0.0.1", other.port), timeout=20) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n")
        threading.Event().wait(2 * STOP_POLL_S)
        other.stopped.set()
        threading.Event().wait(4 * STOP_POLL_S)
        connection.sendall(b"\r\n")
        received = connection.recv(65536)
    running.result(timeout=20)
    assert received.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in received


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
        assert client.get(f"{site.url}/v2/models/ads").json()["versions"] == [str(version)]
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
