"""A served snapshot store for tests, and what is asked of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch

from models.encoding import Encoder
from models.schema import Encoding, Feature, Network
from models.serving_graph import ServingGraph
from onnx_export.publish import Publisher
from onnx_export.server import serve
from onnx_export.session import Logits
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


@pytest.fixture(name="empty_site")
def give_empty_site(store: SnapshotStore) -> Iterator[Site]:
    """A site whose store is empty."""
    torch.set_num_threads(1)
    graph = ServingGraph(ENCODING, Network(dim=4, hidden=(8,)), len(TASKS))
    site = Site(store, graph, Publisher(store, "ads", graph, ENCODING, TASKS))
    running = site.run()
    yield site
    site.stopped.set()
    running.result(timeout=20)


@pytest.fixture(name="site")
def give_site(empty_site: Site) -> Site:
    """A site that serves version 1000."""
    empty_site.publish(1000)
    wait_until(lambda: httpx.get(f"{empty_site.url}/v2/health/ready").status_code == 200)
    return empty_site


@pytest.fixture(name="client")
def give_client() -> Iterator[httpx.Client]:
    """A plain HTTP client."""
    with httpx.Client(trust_env=False) as session:
        yield session


def sigmoid(logits: Logits) -> list[list[float]]:
    """Probabilities by task."""
    probabilities: list[list[float]] = (1 / (1 + np.exp(-logits.astype(np.float64)))).T.tolist()
    return probabilities


def outputs(answer: dict[str, Any]) -> list[list[float]]:
    """Values of a JSON response by output."""
    return [item["data"] for item in answer["outputs"]]
