"""A network of YuNet's form whose "faces" are red squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)


def write_face_network(path: Path) -> Path:
    """Writes an ONNX file with YuNet's input and outputs; it finds a red 32x32 square on the grid of 32 pixels."""
    nodes, weights, outputs = [], [], []

    def add_weight(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    for kind, channels in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in STRIDES:
            name = f"{kind}_{stride}"
            weight = np.zeros((channels, 3, 1, 1), np.float32)
            bias = np.zeros(channels, np.float32)
            if kind in ("cls", "obj"):  # red minus green and blue, in BGR; near 0 elsewhere and at other strides
                weight[0, :, 0, 0] = np.array([-1, -1, 1]) if stride == 32 else 0
                bias[0] = -120 if stride == 32 else -30
            if kind == "bbox":  # centre half a cell on, side of one cell
                bias[:2] = 0.5
            sizes: dict[str, Any] = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
            nodes += [
                helper.make_node("AveragePool", ["input"], [f"{name}_pool"], **sizes),
                helper.make_node(
                    "Conv",
                    [f"{name}_pool", add_weight(f"{name}_w", weight), add_weight(f"{name}_b", bias)],
                    [f"{name}_conv"],
                ),
                helper.make_node("Transpose", [f"{name}_conv"], [f"{name}_last"], perm=[0, 2, 3, 1]),
                helper.make_node(
                    "Reshape", [f"{name}_last", add_weight(f"{name}_s", np.array([1, -1, channels]))], [f"{name}_r"]
                ),
                helper.make_node("Sigmoid" if kind in ("cls", "obj") else "Identity", [f"{name}_r"], [name]),
            ]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, None, channels]))
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 64, 64])
    graph = helper.make_graph(nodes, "faces", [image], outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7), path)
    return path
