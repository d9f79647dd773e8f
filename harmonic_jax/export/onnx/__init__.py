"""Inference as an ONNX model: one file, the weights inside, for any ONNX runtime.

    from harmonic_jax.export.onnx import write_onnx  # needs onnx

    function = on_frames(detector, variables, batch_size=1, height=480, width=640)
    write_onnx(function, Path("detector.onnx"))

and where neither this package nor JAX is installed:

    session = onnxruntime.InferenceSession("detector.onnx")
    boxes, scores, labels, valid = session.run(None, {"images": images})

The program that JAX would compile is translated operation by operation, non-maximum suppression
included, so that whatever is decided is decided alike. docs/export.md says why no other package
is asked to do it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from harmonic_jax import __version__
from harmonic_jax.export.onnx.convert import UnsupportedError, convert
from harmonic_jax.export.onnx.graph import Body, Graph, Node, Tensor
from harmonic_jax.export.program import InferenceFunction
from harmonic_jax.files import write_bytes

__all__ = ["UnsupportedError", "write_onnx"]

OPSET = 18
"""Has all that is used, and was read by ONNX Runtime in 2023 already."""
_IR_VERSION = 8  # of the file format; that of the operators' version
_MOST_BYTES = 2**31 - 1  # what a protocol buffer may hold
_ORDER = ("boxes", "scores", "labels", "valid", "masks")


def write_onnx(
    function: InferenceFunction, path: Path, *, about: Mapping[str, str] | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Writes the function as an ONNX model, the weights inside.

    What a network computes in float16 or bfloat16 is computed in float32 there. Images of a batch
    of any size are the rows of a `Scan`.

    Args:
      function: `on_canvas` or `on_frames`. Its arguments are the model's inputs, by their names.
      path: the .onnx file to write.
      about: texts to keep in the model's metadata.

    Returns:
      The model's outputs, in their order: `boxes`, `scores`, `labels`, `valid`, and of Mask R-CNN
      `masks`.

    Raises:
      UnsupportedError: the function has an operation that has no rule here, or more than 2 GB of
        weights.
      ModuleNotFoundError: the package `onnx` is not installed.
    """
    import onnx  # an optional dependency

    program, out = jax.make_jaxpr(function.call, return_shape=True)(*function.inputs.values())
    inputs = [Tensor(name, s.shape, np.dtype(s.dtype)) for name, s in function.inputs.items()]
    graph = Graph()
    found = dict(zip(sorted(out), convert(graph, program, inputs), strict=True))
    names = [name for name in _ORDER if name in found] + sorted(found.keys() - set(_ORDER))
    outputs = [Tensor(name, found[name].shape, np.dtype(out[name].dtype)) for name in names]
    for output in outputs:
        graph.emit_to([output], "Identity", found[output.name])
    model = onnx.helper.make_model(
        _graph_proto(Body(graph, inputs, outputs), "detector"),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="harmonic_jax",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(model, dict(about or {}))
    if model.ByteSize() > _MOST_BYTES:
        raise UnsupportedError("the weights need more than 2 GB, which one ONNX file cannot hold")
    write_bytes(path, model.SerializeToString())
    return {name: out[name] for name in names}


def _graph_proto(body: Body, name: str) -> Any:
    from onnx import helper, numpy_helper

    return helper.make_graph(
        [_node_proto(node) for node in body.graph.nodes],
        name,
        *([_described(tensor) for tensor in tensors] for tensors in (body.inputs, body.outputs)),
        initializer=[
            numpy_helper.from_array(array, n) for n, array in body.graph.constants.items()
        ],
    )


def _node_proto(node: Node) -> Any:
    from onnx import helper

    attributes = dict(node.attributes)
    for name, value in attributes.items():
        if isinstance(value, Body):
            attributes[name] = _graph_proto(value, f"{node.outputs[0]}_{name}")
        elif isinstance(value, np.dtype):
            attributes[name] = helper.np_dtype_to_tensor_dtype(value)
    return helper.make_node(node.operator, node.inputs, node.outputs, **attributes)


def _described(tensor: Tensor) -> Any:
    from onnx import helper

    shape = [n if isinstance(n, int) else str(n) for n in tensor.shape]
    element = helper.np_dtype_to_tensor_dtype(tensor.dtype)
    return helper.make_tensor_value_info(tensor.name, element, shape)
