"""Networks of the forms of DB and EAST whose "text" is what is red."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def _save(path: Path, side: int, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], channels: int) -> Path:
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, side, side])
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1, channels, None, None])]
    if any("geometry" in node.output for node in nodes):
        outputs.append(helper.make_tensor_value_info("geometry", TensorProto.FLOAT, [1, 5, None, None]))
    given = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "text", [image], outputs, given)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7), path)
    return path


def write_db_network(path: Path, side: int = 160, channels: int = 1) -> Path:
    """Writes an ONNX file of DB's form; letters that are near each other grow together, as DB's regions do."""
    red = np.array([-10, 0, 10], np.float32).reshape(1, 3, 1, 1).repeat(channels, 0)  # BGR
    nodes = [
        helper.make_node("MaxPool", ["input"], ["wide"], kernel_shape=[7, 7], pads=[3, 3, 3, 3], strides=[1, 1]),
        helper.make_node("Conv", ["wide", "red", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    return _save(path, side, nodes, {"red": red, "bias": np.full(channels, -5, np.float32)}, channels)


def write_east_network(path: Path, geometry: Sequence[float] = (0, 4, 4, 0, 0), side: int = 160) -> Path:
    """Writes an ONNX file of EAST's form; a red cell has a box of ``geometry``, by default the cell itself."""
    red = np.array([1, 0, -1], np.float32).reshape(1, 3, 1, 1) / 10  # RGB
    nodes = [
        helper.make_node("AveragePool", ["input"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["cells", "red", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
        helper.make_node("Conv", ["cells", "nothing", "box"], ["geometry"]),
    ]
    weights: dict[str, np.ndarray] = {"red": red, "bias": np.full(1, -12, np.float32)}
    weights |= {"nothing": np.zeros((5, 3, 1, 1), np.float32), "box": np.array(geometry, np.float32)}
    return _save(path, side, nodes, weights, 1)
