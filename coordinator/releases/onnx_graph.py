"""An ONNX graph while it is being written: nodes and constants under unique names, and the model made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
OUTPUT = "probability"
VALUE = "value"
"""The output of a model that predicts a number, in its unit."""


class Graph:
    """Collects nodes and constants. Without a name, one is made up from the operator."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[np.float64] | NDArray[np.float32] | NDArray[np.int64]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def float32(self, value: NDArray[np.float64] | float) -> str:
        """A constant in single precision."""
        return self.constant(f"constant{len(self.constants)}", np.asarray(value, dtype=np.float32))

    def int64(self, *values: int) -> str:
        """A constant (n,) of whole numbers."""
        return self.constant(f"constant{len(self.constants)}", np.array(values, dtype=np.int64))

    def add(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: object) -> str:
        named = output or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [named], **attributes))
        return named

    def split(self, value: str, parts: int, axis: int) -> list[str]:
        """Equal parts along an axis."""
        names = [f"split{len(self.nodes)}_{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [value], names, axis=axis))
        return names

    def model(
        self,
        name: str,
        given: str,
        kind: int,
        shape: Sequence[int],
        properties: Mapping[str, str] | None = None,
        output: str = OUTPUT,
        gives: Sequence[int] = (1,),
    ) -> bytes:
        """Serialised ModelProto, checked by onnx's own checker. given: the input's name; kind: its TensorProto type;
        shape: one record's. The output is `probability` or `value`, (patients, *gives) double."""
        proto = helper.make_model(
            helper.make_graph(
                self.nodes,
                name,
                [helper.make_tensor_value_info(given, kind, ["patients", *shape])],
                [helper.make_tensor_value_info(output, TensorProto.DOUBLE, ["patients", *gives])],
                self.constants,
            ),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="cloister",
        )
        helper.set_model_props(proto, dict(properties or {}))
        onnx.checker.check_model(proto, full_check=True)
        return bytes(proto.SerializeToString(deterministic=True))
