"""The exported graph of one structure, without its weights: made once, used by every snapshot.

An export takes seconds and says nothing about the weights: each float parameter is an entry that
points into `weights.bin`. The file is kept in the store by a key of everything that shapes it.

Shape legend: B rows, F hashed fields, L ids of all sequences, N numeric features, T tasks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from onnxscript import ir
from torch import Tensor, nn

from models.durable import write_atomically
from models.schema import Encoding
from onnx_export.manifest import WEIGHTS
from onnx_export.weights import Layout, layout

OPSET = 20
OUTPUT = "logits_BT"
NUM_EXAMPLE_ROWS = 3


def template(graph: nn.Module, encoding: Encoding, tasks: Sequence[str], cache: Path) -> bytes:
    """The ONNX file of a graph's structure, from the cache or exported now.

    Args:
        graph: the serving path; its weights are not looked at.
        encoding: its inputs.
        tasks: columns of its logits.
        cache: folder of templates.

    Raises:
        ValueError: a parameter of the graph would be frozen into the file.
    """
    path = cache / f"{key(graph, encoding, tasks)}.onnx"
    if path.exists():
        return path.read_bytes()
    data = export(graph, encoding, tasks)
    write_atomically(path, data)
    return data


def key(graph: nn.Module, encoding: Encoding, tasks: Sequence[str]) -> str:
    """Equal for structures that export to the same file."""
    shapes = [(name, list(tensor.shape)) for name, tensor in graph.state_dict().items()]
    parts = [encoding.model_dump(mode="json"), list(tasks), shapes, repr(graph)]
    text = json.dumps([*parts, OPSET, torch.__version__])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def export(graph: nn.Module, encoding: Encoding, tasks: Sequence[str]) -> bytes:
    """Export the structure of a graph; seconds."""
    examples = example_inputs(encoding)
    rows = torch.export.Dim("B")
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            kwargs=dict(examples),
            input_names=list(examples),
            output_names=[OUTPUT],
            dynamic_shapes={name: {0: rows} for name in examples},
            dynamo=True,
            optimize=False,  # folding would keep old values of the weights
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model
    _point_outside(model.graph, layout(graph.state_dict()))
    model.metadata_props.update(
        {"tasks": json.dumps(list(tasks)), "encoding": encoding.model_dump_json()}
    )
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def example_inputs(encoding: Encoding) -> dict[str, Tensor]:
    """Inputs of the graph, a few rows of each, by name; those that the encoding has."""
    lengths = sum(f.max_length for f in encoding.sequences)
    num_fields = len(encoding.categorical) + len(encoding.crosses)
    inputs = {"ids_BF": torch.zeros((NUM_EXAMPLE_ROWS, num_fields), dtype=torch.int64)}
    if encoding.sequences:
        inputs["sequence_BL"] = torch.zeros((NUM_EXAMPLE_ROWS, lengths), dtype=torch.int64)
    if encoding.numeric:
        inputs["numeric_BN"] = torch.zeros((NUM_EXAMPLE_ROWS, len(encoding.numeric)))
    return inputs


def _point_outside(graph: ir.Graph, where: Layout) -> None:
    """Replace the values of all float parameters by their places in the weights file."""
    inside = [
        name
        for name, value in graph.initializers.items()
        if name not in where.places and value.dtype == ir.DataType.FLOAT
    ]
    missing = [name for name in where.places if name not in graph.initializers]
    if inside or missing:
        raise ValueError(
            "each float parameter must stand in the graph under its own name; "
            f"frozen into it: {inside}, not in it: {missing}"
        )
    for name, place in where.places.items():
        graph.initializers[name].const_value = ir.ExternalTensor(
            WEIGHTS,
            offset=place.offset,
            length=place.num_bytes,
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(place.shape),
            name=name,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter says about its own workings."""
    exporter = logging.getLogger("torch.onnx._internal.exporter")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
