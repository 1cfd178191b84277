"""Scores against a run's server with tritonclient: `make triton RUN=runs/NAME`.

tritonclient caps protobuf, so it lives in an environment of its own, and this file imports nothing
of the project:

    python benchmarks/triton_client.py HOST:PORT
"""

from __future__ import annotations

import sys

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

ROWS = 64
LENGTH = 5
TYPES = {"BYTES": np.object_, "INT64": np.int64, "FP32": np.float32}


def tensor(rng: np.random.Generator, described: dict[str, object], binary: bool) -> InferInput:
    """Random values for one input of a model's metadata, of its type and rank."""
    name, datatype = str(described["name"]), str(described["datatype"])
    rank = len(list(described["shape"]))  # type: ignore[call-overload]
    shape = [ROWS] if rank == 1 else [ROWS, LENGTH]
    numbers = rng.integers(0, 1000, shape)
    values = np.array([str(n) for n in numbers.ravel()], dtype=object).reshape(shape)
    data = values if datatype == "BYTES" else numbers.astype(TYPES[datatype])
    made = InferInput(name, shape, datatype)
    made.set_data_from_numpy(data, binary_data=binary)
    return made


def score(client: InferenceServerClient, model: str, binary: bool) -> dict[str, np.ndarray]:
    """Probabilities of `ROWS` random candidates by task; the same ones for either encoding."""
    described = client.get_model_metadata(model)
    rng = np.random.default_rng(0)
    inputs = [tensor(rng, each, binary) for each in described["inputs"]]
    outputs = [InferRequestedOutput(o["name"], binary_data=binary) for o in described["outputs"]]
    answer = client.infer(model, inputs, outputs=outputs)
    return {o["name"]: answer.as_numpy(o["name"]) for o in described["outputs"]}


def main(address: str) -> int:
    """Score every model the server has, in both encodings; 0 if all agree."""
    client = InferenceServerClient(address)
    if not client.is_server_live() or not client.is_server_ready():
        print(f"{address}: not ready", file=sys.stderr)
        return 1
    failed = 0
    for model in sys.argv[2:]:
        json, binary = score(client, model, False), score(client, model, True)
        for task, expected in binary.items():
            agrees = np.allclose(json[task], expected, atol=1e-7)
            sound = expected.shape == (ROWS,) and bool(((expected > 0) & (expected < 1)).all())
            failed += not (agrees and sound)
            state = "ok" if agrees and sound else "FAILED"
            print(f"{model}/{task}: {ROWS} scores, mean {expected.mean():.4f}, {state}")
    return 1 if failed or len(sys.argv) < 3 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
